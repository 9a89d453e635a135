"""Statistics of real images: computed once, before any sample is drawn, and cached by content.

The cache key is a hash of the data's fingerprint, split, number, size and order, and of everything
that turns an image into a feature (extractor, weights' sha256, layer, resize, dtype, device).
Nothing is keyed by a name that could come to mean other data. Files are npz and npy without
pickles, renamed into place whole; a damaged one is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.extractors.images import check_images
from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics.copies import CopyReference
from visgen_bench.metrics.errors import MetricError, StateError, TooFewSamples
from visgen_bench.metrics.frechet import FrechetReference
from visgen_bench.metrics.moments import load_arrays, save_arrays
from visgen_bench.metrics.prdc import radii
from visgen_bench.metrics.protocol import (
    PLUGIN_FORMULA,
    Protocol,
    protocol,
    require_published_weights,
)
from visgen_bench.metrics.streams import FeatureStream, Rows

if TYPE_CHECKING:
    from visgen.data import Data

_VERSION = 2  # raise it when what is stored changes its meaning

LayerKey = tuple[str, str]  # extractor, layer


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """A stream of real images that can be read more than once, and its identity.

    Attributes:
        batches: Gives a fresh iterator of uint8 (b, 3, h, w); batches may differ in size (then b
            is 1).
        n: Images in all.
        fingerprint: Hash of the data's content.
        split: Which part of it.
        image_size: (h, w) they were brought to, or None for as stored; part of the identity.
        selection: Which images of the split, if not all ("first 1000").
    """

    batches: Callable[[], Iterable[Tensor]]
    n: int
    fingerprint: str
    split: str
    image_size: tuple[int, int] | None = None
    selection: str = "all"

    @classmethod
    def of(cls, images: Tensor, fingerprint: str, split: str, batch: int = 256) -> Self:
        """From images in memory, uint8 (n, 3, h, w)."""
        size = (images.shape[-2], images.shape[-1])
        return cls(
            batches=lambda: images.split(batch),
            n=len(images),
            fingerprint=fingerprint,
            split=split,
            image_size=size,
        )

    @classmethod
    def from_data(
        cls, data: Data, split: str, size: tuple[int, int] | None = None, batch: int = 256
    ) -> Self:
        """From a split of a data set, brought to `size` if one is given."""
        indices = data.split(split)
        return cls(
            batches=lambda: (data.images(part, size) for part in indices.split(batch)),
            n=len(indices),
            fingerprint=data.fingerprint,
            split=split,
            image_size=size or data.size,
        )

    def identity(self) -> dict[str, Any]:
        """What a cache key takes from the data."""
        size = list(self.image_size) if self.image_size else None
        return {
            "fingerprint": self.fingerprint,
            "split": self.split,
            "n": self.n,
            "image_size": size,
            "selection": self.selection,
        }

    def checked(self) -> Iterator[Tensor]:
        """The batches, after checks of range, shape and number."""
        seen = 0
        for batch in self.batches():
            seen += len(check_images(batch))
            yield batch
        if seen != self.n:
            raise StateError(f'split "{self.split}" was to hold {self.n} images and gave {seen}.')


@dataclass(frozen=True)
class LayerStatistics:
    """Real images as one extractor layer sees them.

    Attributes:
        n: Images.
        frechet: The factored side of the Frechet distance, if asked for.
        features: float32 (n, d), memory-mapped where a cache folder is given; if asked for.
        radii: By k, float64 (min(n, limit),): k-th neighbour distances; if asked for.
        key: Content key, hex.
    """

    n: int
    key: str
    frechet: FrechetReference | None = None
    features: Rows | None = None
    radii: dict[int, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """All that a set of metrics needs to know of the real images.

    Attributes:
        images: The identity of the real images.
        layers: By (extractor, layer).
        copies: For `copy_share`.
        extractors: The opened networks; an evaluation uses the same ones.
    """

    images: RealImages
    layers: dict[LayerKey, LayerStatistics]
    copies: CopyReference | None
    extractors: Extractors

    @classmethod
    def prepare(
        cls,
        metrics: Sequence[str],
        images: RealImages,
        *,
        train: RealImages | None = None,
        extractors: Extractors | None = None,
        cache: Path | None = None,
    ) -> Self:
        """Compute, or read from `cache`, what `metrics` need.

        Args:
            metrics: Names of protocols.toml.
            images: The real images that samples are compared with (digits: the test split).
            train: The images a model was trained on; for `copy_share` only.
            extractors: Opened networks to use; new ones on the CPU if None.
            cache: Folder for the statistics; nothing is stored if None.

        Raises:
            ProtocolError: on an unknown metric, or weights that a reserved name does not allow.
            WeightsError: if an extractor cannot be opened; ask `available` first.
            MetricError: if the images are too few, of wrong range, or training images are missing.
        """
        opened = extractors or Extractors()
        wanted: dict[LayerKey, list[Protocol]] = {}
        for entry in map(protocol, metrics):
            if entry.formula == "frechet" or needs_rows(entry):
                wanted.setdefault((entry.extractor, entry.layer), []).append(entry)
        layers = {
            layer: _layer_statistics(layer, entries, images, opened, cache)
            for layer, entries in wanted.items()
        }
        copies = None
        if "copy_share" in metrics:
            copies = _copy_reference(protocol("copy_share"), images, train, cache)
        return cls(images=images, layers=layers, copies=copies, extractors=opened)


def needs_rows(entry: Protocol) -> bool:
    """Whether a metric needs every feature row, not only moments."""
    return entry.formula in ("kernel-subsets", "kernel-full", "prdc", PLUGIN_FORMULA)


def _layer_statistics(
    layer: LayerKey,
    entries: list[Protocol],
    images: RealImages,
    extractors: Extractors,
    cache: Path | None,
) -> LayerStatistics:
    extractor = extractors.open(layer[0])
    for entry in entries:
        require_published_weights(entry.metric, extractor.sha256)
    key = _hash(
        {
            **images.identity(),
            "extractor": [*layer, extractor.sha256, entries[0].resize],
            "dtype": "float32",
            "device": extractors.device.partition(":")[0],
        }
    )
    # One layer serves one Frechet metric, hence one ddof.
    ddof = next((int(e.options["ddof"]) for e in entries if e.formula == "frechet"), None)
    neighbours = {
        (int(e.options["k"]), int(e.options["max_samples"])) for e in entries if e.formula == "prdc"
    }
    keep = any(map(needs_rows, entries))
    frechet = _stored_frechet(cache, key, ddof)
    features = _stored_features(cache, key) if keep else None
    if (ddof is not None and frechet is None) or (keep and features is None):
        stream = _extract(layer, images, extractors, keep, ddof is not None)
        rows = stream.rows(np.arange(images.n))
        if ddof is not None:
            frechet = _factor(stream, rows, ddof)
            _save(cache, f"{key}-frechet-ddof{ddof}.npz", frechet.arrays())
        if keep and rows is not None:
            features = _store_features(cache, key, rows)
    balls: dict[int, NDArray[np.float64]] = {}
    for k, limit in neighbours:
        if images.n > k:  # else precision and its kin say themselves why there is no number
            balls[k] = _radii(cache, key, k, limit, features)
    return LayerStatistics(images.n, key, frechet, features, balls)


def _extract(
    layer: LayerKey, images: RealImages, extractors: Extractors, keep: bool, moments: bool
) -> FeatureStream:
    if images.n < 2:
        raise TooFewSamples(f'split "{images.split}" has {images.n} images; a reference needs 2.')
    extractor = extractors.open(layer[0])
    width = extractor.widths[layer[1]]
    # Up to d rows cost no more than their moments and give the exact route of the Frechet distance.
    stream = FeatureStream(width, images.n, keep=keep or images.n <= width, moments=moments)
    first = 0
    for batch in together(images.checked()):
        rows = np.arange(first, first + len(batch))
        stream.add(rows, extractor.layers(batch, (layer[1],))[layer[1]])
        first += len(batch)
    return stream


def together(batches: Iterable[Tensor], limit: int = 64) -> Iterator[Tensor]:
    """Join consecutive batches of equal image size, up to `limit` images, for speed."""
    waiting: list[Tensor] = []
    count = 0
    for batch in batches:
        if waiting and (batch.shape[1:] != waiting[0].shape[1:] or count + len(batch) > limit):
            yield torch.cat(waiting)
            waiting, count = [], 0
        waiting.append(batch)
        count += len(batch)
    if waiting:
        yield torch.cat(waiting)


def _copy_reference(
    entry: Protocol, images: RealImages, train: RealImages | None, cache: Path | None
) -> CopyReference:
    if train is None:
        raise MetricError(
            "copy_share compares samples with the training images; give them with train=."
        )
    percentile = float(entry.options["percentile"])
    key = _hash({"test": images.identity(), "train": train.identity(), "percentile": percentile})
    stored = _load(cache, f"{key}-copies.npz")
    if stored is not None:
        return CopyReference.from_arrays(stored)
    copies = CopyReference.fit(train.checked(), images.checked(), percentile)
    _save(cache, f"{key}-copies.npz", copies.arrays())
    return copies


def _factor(stream: FeatureStream, rows: Rows | None, ddof: int) -> FrechetReference:
    if rows is not None and len(rows) <= stream.width:
        return FrechetReference.from_features(rows, ddof)
    return FrechetReference.from_moments(stream.moments(), ddof)


def _stored_frechet(cache: Path | None, key: str, ddof: int | None) -> FrechetReference | None:
    stored = None if ddof is None else _load(cache, f"{key}-frechet-ddof{ddof}.npz")
    return None if stored is None else FrechetReference.from_arrays(stored)


def _stored_features(cache: Path | None, key: str) -> Rows | None:
    if cache is None:
        return None
    path = cache / f"{key}-features.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError):
        path.unlink(missing_ok=True)  # damaged: computed again
        return None


def _store_features(cache: Path | None, key: str, rows: Rows) -> Rows:
    if cache is None:
        return rows
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{key}-features.npy"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _radii(
    cache: Path | None, key: str, k: int, limit: int, features: Rows | None
) -> NDArray[np.float64]:
    if features is None:
        raise StateError("radii need feature rows.")
    name = f"{key}-radii-k{k}-first{limit}.npz"
    stored = _load(cache, name)
    if stored is not None:
        return stored["radii"]
    values = radii(features[:limit], k)
    _save(cache, name, {"radii": values})
    return values


def _load(cache: Path | None, name: str) -> dict[str, NDArray[Any]] | None:
    if cache is None:
        return None
    try:
        return load_arrays(cache / name)
    except FileNotFoundError:
        return None
    except StateError:
        (cache / name).unlink(missing_ok=True)  # damaged: computed again
        return None


def _save(cache: Path | None, name: str, arrays: dict[str, NDArray[Any]]) -> None:
    if cache is not None:
        save_arrays(cache / name, arrays)


def _hash(content: dict[str, Any]) -> str:
    text = json.dumps({"version": _VERSION, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
