"""Statistics of real images or clips: computed once, before any sample is drawn.

They are cached by content: the cache key is a hash of the data's fingerprint, split, number, size
and order, and of everything that turns an image into a feature (extractor, weights' sha256, layer,
resize, dtype, device). Nothing is keyed by a name that could come to mean other data. Files are npz
and npy without pickles, renamed into place whole; a damaged one is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics.copies import CopyReference
from visgen_bench.metrics.errors import (
    MetricError,
    StateError,
    TooFewSamples,
)
from visgen_bench.metrics.frechet import FrechetReference
from visgen_bench.metrics.moments import load_arrays, save_arrays
from visgen_bench.metrics.prdc import radii
from visgen_bench.metrics.protocol import (
    PLUGIN_FORMULA,
    Media,
    Protocol,
    protocol,
    require_published_weights,
    require_video_protocol,
)
from visgen_bench.metrics.real_samples import NOUN, RealSamples, same_medium
from visgen_bench.metrics.streams import FeatureStream, Rows

_VERSION = 2  # raise it when what is stored changes its meaning

_TOGETHER: dict[Media, int] = {"image": 64, "video": 16, "frame": 64}  # samples in one batch

LayerKey = tuple[str, str]  # extractor, layer


@dataclass(frozen=True)
class LayerStatistics:
    """Real samples as one extractor layer sees them.

    Attributes:
        n: Images, clips or frames.
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
    """All that a set of metrics needs to know of the real samples.

    Attributes:
        real: The identity of the real samples.
        layers: By (extractor, layer).
        copies: For `copy_share`.
        extractors: The opened networks; an evaluation uses the same ones.
    """

    real: RealSamples
    layers: dict[LayerKey, LayerStatistics]
    copies: CopyReference | None
    extractors: Extractors

    @classmethod
    def prepare(
        cls,
        metrics: Sequence[str],
        real: RealSamples,
        *,
        train: RealSamples | None = None,
        extractors: Extractors | None = None,
        cache: Path | None = None,
    ) -> Self:
        """Compute, or read from `cache`, what `metrics` need.

        Args:
            metrics: Names of protocols.toml, all of the medium that `real` is of.
            real: What samples are compared with (digits: the test split).
            train: The images a model was trained on; for `copy_share` only.
            extractors: Opened networks to use; new ones on the CPU if None.
            cache: Folder for the statistics; nothing is stored if None.

        Raises:
            ProtocolError: on an unknown metric or one of another medium, on clips that a metric is
                not defined for, and on weights that a reserved name does not allow.
            WeightsError: if an extractor cannot be opened; ask `available` first.
            MetricError: if the images are too few, of wrong range, or training images are missing.
        """
        opened = extractors or Extractors()
        wanted: dict[LayerKey, list[Protocol]] = {}
        for entry in map(protocol, metrics):
            same_medium(entry, real)
            if entry.media == "video":
                require_video_protocol(entry.metric, real.frames, entry.layer)
            if not entry.needs_reference:
                continue
            if entry.formula == "frechet" or needs_rows(entry):
                wanted.setdefault((entry.extractor, entry.layer), []).append(entry)
        layers = {
            layer: _layer_statistics(layer, entries, real, opened, cache)
            for layer, entries in wanted.items()
        }
        copies = None
        if "copy_share" in metrics:
            copies = _copy_reference(protocol("copy_share"), real, train, cache)
        return cls(real=real, layers=layers, copies=copies, extractors=opened)


def needs_rows(entry: Protocol) -> bool:
    """Whether a metric needs every feature row, not only moments."""
    return entry.formula in ("kernel-subsets", "kernel-full", "prdc", PLUGIN_FORMULA)


def _layer_statistics(
    layer: LayerKey,
    entries: list[Protocol],
    real: RealSamples,
    extractors: Extractors,
    cache: Path | None,
) -> LayerStatistics:
    extractor = extractors.open(layer[0])
    for entry in entries:
        require_published_weights(entry.metric, extractor.sha256)
    key = _hash(
        {
            **real.identity(),
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
        stream = _extract(layer, real, extractors, keep, ddof is not None)
        rows = stream.rows(np.arange(real.n))
        if ddof is not None:
            frechet = _factor(stream, rows, ddof)
            _save(cache, f"{key}-frechet-ddof{ddof}.npz", frechet.arrays())
        if keep and rows is not None:
            features = _store_features(cache, key, rows)
    balls: dict[int, NDArray[np.float64]] = {}
    for k, limit in neighbours:
        if real.n > k:  # else precision and its kin say themselves why there is no number
            balls[k] = _radii(cache, key, k, limit, features)
    return LayerStatistics(real.n, key, frechet, features, balls)


def _extract(
    layer: LayerKey, real: RealSamples, extractors: Extractors, keep: bool, moments: bool
) -> FeatureStream:
    if real.n < 2:
        raise TooFewSamples(
            f'split "{real.split}" has {real.n} {NOUN[real.media]}; a reference needs 2.'
        )
    extractor = extractors.open(layer[0])
    width = extractor.widths[layer[1]]
    # Up to d rows cost no more than their moments and give the exact route of the Frechet distance.
    stream = FeatureStream(width, real.n, keep=keep or real.n <= width, moments=moments)
    first = 0
    for batch in together(real.checked(), _TOGETHER[real.media]):
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
    entry: Protocol, images: RealSamples, train: RealSamples | None, cache: Path | None
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
