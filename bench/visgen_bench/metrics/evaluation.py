"""Scores a stream of generated images, or clips, by several metrics at once.

    reference = ReferenceStatistics.prepare(metrics, RealSamples.from_data(data, "test"),
    cache=folder) evaluation = Evaluation(metrics, reference, samples=1000)
    evaluation.update(images, first_index=0)            # uint8 (n, 3, h, w), any batching, any
    order rows = evaluation.results()

One evaluation looks at one medium: images, clips (uint8 (n, t, 3, h, w)) or the frames of clips;
`video_evaluation` puts together what clips need. Every sample has an index, so ranks may take any
share of them: `merge` in rank order equals one rank. `save` and `restore` go on after an
interruption, bit for bit. With moment metrics alone (`fid`, `fd_*`, `fvd*`) memory does not grow
with the number of samples; kernel distances and precision/recall keep feature rows in a
memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics import repeats
from visgen_bench.metrics.digit_share import DigitCounts
from visgen_bench.metrics.errors import MetricError, ProtocolError, StateError, TooFewSamples
from visgen_bench.metrics.frechet import FrechetReference
from visgen_bench.metrics.inception_score import ScoreAccumulator, split_of
from visgen_bench.metrics.moments import load_arrays, save_arrays
from visgen_bench.metrics.plugins import plugin_names
from visgen_bench.metrics.protocol import (
    Protocol,
    protocol,
    protocols,
    require_published_weights,
    require_video_protocol,
)
from visgen_bench.metrics.real_samples import RealSamples, same_medium
from visgen_bench.metrics.reference import (
    LayerKey,
    LayerStatistics,
    ReferenceStatistics,
    needs_rows,
)
from visgen_bench.metrics.scoring import Evidence, MetricValue, Score, score
from visgen_bench.metrics.streams import FeatureStream

__all__ = [
    "Evaluation",
    "Extractors",
    "MetricValue",
    "RealSamples",
    "ReferenceStatistics",
    "available",
]

_STATE = "evaluation.npz"


def available(
    metric: str, extractors: Extractors | None = None, *, frames: int | None = None
) -> str | None:
    """None if a metric can be computed here, else why not and what fixes it.

    Args:
        metric: A name of protocols.toml.
        extractors: Says where weights lie and whether they may be downloaded.
        frames: Of the clips to be scored, if they are clips.

    Raises:
        ProtocolError: if there is no such metric.
    """
    entry = protocol(metric)
    if frames is not None:
        try:
            require_video_protocol(metric, frames, entry.layer)
        except ProtocolError as error:
            return str(error)
    return (extractors or Extractors()).unavailable(entry.extractor)


class Evaluation:
    """Streams, merges and resumes; one per set of samples.

    Args:
        metrics: Names of protocols.toml, all of the medium that the reference is of.
        reference: Prepared for at least these metrics.
        samples: How many samples there will be; indices run from 0 to samples - 1.
        folder: Where kept feature rows and the saved state lie. Needed for `save`.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        reference: ReferenceStatistics,
        *,
        samples: int,
        folder: Path | None = None,
    ) -> None:
        self.metrics = tuple(metrics)
        self.reference = reference
        self.samples = samples
        self.folder = folder
        self.seen = np.zeros(samples, dtype=bool)
        self._protocols = [protocol(metric) for metric in self.metrics]
        for entry in self._protocols:
            same_medium(entry, reference.real)
        self._streams = {layer: self._stream(layer) for layer in self._feature_layers()}
        self._score, self._split = self._score_sums()
        self._digits = self._digit_counts()
        self._copied = 0
        self._digests = np.zeros(samples, np.uint64)
        if "copy_share" in self.metrics and reference.copies is None:
            raise StateError("the reference was not prepared for copy_share.")

    def update(self, batch: Tensor, first_index: int | Tensor) -> None:
        """Add samples.

        Args:
            batch: Images or frames uint8 (n, 3, h, w), 0..255, or clips uint8 (n, t, 3, h, w).
                Batches may differ in height and width.
            first_index: Index of the first sample, the others follow; or int64 (n,), the index of
                each.

        Raises:
            ImageRangeError: if they are not such images; nothing is added then.
            ClipShapeError: if they are not clips of the reference's frames; nothing is added then.
            StateError: if an index is out of range or was seen before.
        """
        self.reference.real.check(batch)
        indices = self.checked_indices(first_index, len(batch))
        if len(indices) == 0:
            return
        features = self._extract(batch)
        for layer, stream in self._streams.items():
            stream.add(indices, features[layer])
        if self._score is not None:
            logits = features[self._layer_of("inception-score")]
            self._score.update(logits, self._split[indices])
        if self._digits is not None:
            self._digits.update(features[self._layer_of("class-count", "confident-share")])
        if self.reference.copies is not None and "copy_share" in self.metrics:
            self._copied += self.reference.copies.copies(batch.cpu())
        self._digests[indices] = repeats.digests(batch)
        self.seen[indices] = True

    def merge(self, other: Evaluation) -> None:
        """Add what another evaluation saw; call it in rank order where bits must repeat.

        Raises:
            StateError: if metrics, reference or number of samples differ, or a sample is in both.
        """
        if self.identity() != other.identity():
            raise StateError(
                "evaluations of other metrics, references or sample counts do not merge."
            )
        if bool((self.seen & other.seen).any()):
            twice = int(np.flatnonzero(self.seen & other.seen)[0])
            raise StateError(
                f"sample {twice} is in both evaluations; give each rank its own indices."
            )
        theirs = np.flatnonzero(other.seen)
        for layer, stream in self._streams.items():
            stream.merge(other._streams[layer], theirs)
        if self._score is not None and other._score is not None:
            self._score.merge(other._score)
        if self._digits is not None and other._digits is not None:
            self._digits.merge(other._digits)
        self._copied += other._copied
        self._digests[theirs] = other._digests[theirs]
        self.seen |= other.seen

    def different_pictures(self) -> int:
        """How many of the samples seen are different pictures, bit for bit."""
        return repeats.different(self._digests[self.seen])

    def missing(self) -> Tensor:
        """Indices not seen yet: int64, ascending."""
        return torch.from_numpy(np.flatnonzero(~self.seen))

    def save(self) -> None:
        """Write the state into `folder`, whole or not at all; kept rows lie there already.

        Raises:
            StateError: if the evaluation has no folder.
        """
        save_arrays(self._state_path(), self.arrays())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name; kept rows are flushed to their file and not repeated here."""
        arrays: dict[str, NDArray[Any]] = {
            "identity": np.array(self.identity()),
            "seen": np.packbits(self.seen),
            "copied": np.array(self._copied),
            "digests": self._digests,
        }
        for layer, stream in self._streams.items():
            arrays |= {f"{_label(layer)}/{k}": v for k, v in stream.arrays().items()}
        if self._score is not None:
            arrays |= {f"score/{k}": v for k, v in vars(self._score).items()}
        if self._digits is not None:
            arrays["digits/classes"] = self._digits.classes
            arrays["digits/confident"] = np.array(self._digits.confident)
        return arrays

    def restore(self) -> bool:
        """Go on from what `save` wrote into `folder`; False if nothing is there.

        Raises:
            StateError: if it was saved for other metrics, another reference or another number of
                samples.
        """
        try:
            arrays = load_arrays(self._state_path())
        except FileNotFoundError:
            return False
        self.load(arrays, str(self._state_path()))
        return True

    def load(self, arrays: dict[str, NDArray[Any]], origin: str) -> None:
        """Go on from `arrays`; `origin` says in messages where they lay.

        Raises:
            StateError: if they are another evaluation's; nothing is changed then.
        """
        if str(arrays["identity"]) != self.identity():
            raise StateError(
                f"{origin} belongs to another evaluation; use another folder or delete it."
            )
        self.seen = np.unpackbits(arrays["seen"], count=self.samples).astype(bool)
        self._copied = int(arrays["copied"])
        self._digests = arrays["digests"]
        for layer, stream in self._streams.items():
            stream.restore(_below(arrays, _label(layer)))
        if self._score is not None:
            self._score = ScoreAccumulator(**_below(arrays, "score"))
        if self._digits is not None:
            self._digits.classes = arrays["digits/classes"]
            self._digits.confident = int(arrays["digits/confident"])

    def results(self, against: Evaluation | None = None) -> list[MetricValue]:
        """A value, or a reason, for each metric in the order asked; the stream may go on.

        Args:
            against: Holds the reconstructions that metrics with the sides "samples/reconstructions"
                compare these samples with.
        """
        shared: dict[str, Any] = {}
        return [self._result(entry, shared, against) for entry in self._protocols]

    def _result(
        self, entry: Protocol, shared: dict[str, Any], against: Evaluation | None
    ) -> MetricValue:
        layer = (entry.extractor, entry.layer)
        evidence = Evidence(
            indices=np.flatnonzero(self.seen),
            samples=self.samples,
            stream=self._streams.get(layer),
            reference=None,
            score=self._score,
            digits=self._digits,
            copied=self._copied,
            copies=self.reference.copies,
            shared=shared,
        )
        sha256 = "" if entry.extractor == "pixels" else self._open(entry).sha256
        try:
            require_published_weights(entry.metric, sha256)
            found = score(entry, replace(evidence, reference=self._side(entry, against)))
        except MetricError as error:
            found = Score(value=float("nan"), n=len(evidence.indices), n_ref=self._n_ref(entry))
            return self._value(entry, sha256, found, str(error))
        return self._value(entry, sha256, found, None)

    def _side(self, entry: Protocol, against: Evaluation | None) -> LayerStatistics | None:
        """What a metric compares its samples with."""
        layer = (entry.extractor, entry.layer)
        if entry.needs_reference:
            return self.reference.layers.get(layer)
        if against is None or layer not in against._streams:
            raise StateError(
                f"{entry.metric} compares samples with reconstructions; call results(against) with "
                "their evaluation."
            )
        return against.as_reference(entry)

    def as_reference(self, entry: Protocol) -> LayerStatistics:
        """What this evaluation has seen, as the side that others are compared with.

        Raises:
            TooFewSamples: if it has seen fewer than 2.
        """
        stream = self._streams[entry.extractor, entry.layer]
        indices = np.flatnonzero(self.seen)
        if len(indices) < 2:
            raise TooFewSamples(
                f"{entry.metric} needs 2 reconstructions of real clips, {len(indices)} were given."
            )
        rows, ddof = stream.rows(indices), int(entry.options["ddof"])
        if rows is not None and len(rows) <= stream.width:
            side = FrechetReference.from_features(rows, ddof)
        else:
            side = FrechetReference.from_moments(stream.moments(), ddof)
        return LayerStatistics(len(indices), self.reference.real.fingerprint[:32], side)

    def _value(self, entry: Protocol, sha256: str, found: Score, reason: str | None) -> MetricValue:
        layer = self.reference.layers.get((entry.extractor, entry.layer))
        layer = layer if entry.needs_reference else None
        options: dict[str, Any] = {
            "layer": entry.layer,
            "resize": entry.resize,
            "split": self.reference.real.split,
            "reference": layer.key if layer else self.reference.real.fingerprint[:32],
            **entry.options,
        }
        if entry.media != "image":
            options |= {"frames": self.reference.real.frames, "sides": entry.sides}
        if found.no_interval is not None:
            options["interval"] = found.no_interval
        low, high = found.interval or (None, None)
        return MetricValue(
            metric=entry.metric,
            value=None if reason else found.value,
            n=found.n,
            n_ref=found.n_ref,
            ci_low=low,
            ci_high=high,
            stderr=found.stderr,
            ci_method=found.method,
            protocol=entry.id,
            extractor=entry.extractor,
            extractor_sha256=sha256,
            comparable=entry.published and reason is None and found.n >= entry.samples,
            metric_opts=options,
            details=found.details,
            reason=reason,
        )

    def _n_ref(self, entry: Protocol) -> int:
        if not entry.needs_reference:
            return 0
        layer = self.reference.layers.get((entry.extractor, entry.layer))
        return layer.n if layer else 0

    def _open(self, entry: Protocol) -> Any:
        return self.reference.extractors.open(entry.extractor)

    def _feature_layers(self) -> list[LayerKey]:
        found: dict[LayerKey, None] = {}
        for entry in self._protocols:
            layer = (entry.extractor, entry.layer)
            if entry.formula == "frechet" or needs_rows(entry):
                if entry.needs_reference and layer not in self.reference.layers:
                    raise StateError(
                        f"the reference was not prepared for {entry.metric}; name it in prepare()."
                    )
                found[layer] = None
        return list(found)

    def _stream(self, layer: LayerKey) -> FeatureStream:
        entries = [e for e in self._protocols if (e.extractor, e.layer) == layer]
        width = self.reference.extractors.open(layer[0]).widths[layer[1]]
        path = None if self.folder is None else self.folder / f"{_label(layer)}.npy"
        return FeatureStream(
            width,
            self.samples,
            # Up to d rows cost no more than the moments, and give the exact route.
            keep=any(map(needs_rows, entries)) or self.samples <= width,
            moments=any(e.formula == "frechet" for e in entries),
            path=path,
        )

    def _score_sums(self) -> tuple[ScoreAccumulator | None, NDArray[np.int64]]:
        entry = next((e for e in self._protocols if e.formula == "inception-score"), None)
        if entry is None:
            return None, np.zeros(0, np.int64)
        classes = self._open(entry).widths[entry.layer]
        splits = int(entry.options["splits"])
        return ScoreAccumulator.empty(classes, splits), split_of(self.samples, splits)

    def _digit_counts(self) -> DigitCounts | None:
        if not any(e.formula in ("class-count", "confident-share") for e in self._protocols):
            return None
        return DigitCounts.empty(float(protocol("digit_confident").options["above"]))

    def _layer_of(self, *formulas: str) -> LayerKey:
        entry = next(e for e in self._protocols if e.formula in formulas)
        return entry.extractor, entry.layer

    def _extract(self, batch: Tensor) -> dict[LayerKey, Tensor]:
        layers: dict[str, list[str]] = {}
        for entry in self._protocols:
            if entry.extractor != "pixels" and entry.layer not in layers.get(entry.extractor, []):
                layers.setdefault(entry.extractor, []).append(entry.layer)
        found: dict[LayerKey, Tensor] = {}
        for name, wanted in layers.items():
            features = self.reference.extractors.open(name).layers(batch, tuple(wanted))
            found |= {(name, layer): values for layer, values in features.items()}
        return found

    def checked_indices(self, first: int | Tensor, n: int) -> NDArray[np.int64]:
        """Indices of n samples to come: int64 (n,).

        Args:
            first: As in `update`.
            n: How many samples.

        Raises:
            StateError: if an index is out of range or was seen before.
        """
        if isinstance(first, Tensor):
            indices = first.cpu().numpy().astype(np.int64)
            if indices.shape != (n,):
                raise StateError(f"{n} samples came with indices of shape {indices.shape}.")
        else:
            indices = np.arange(first, first + n, dtype=np.int64)
        if n and not 0 <= int(indices.min()) <= int(indices.max()) < self.samples:
            raise StateError(
                f"samples {int(indices.min())}..{int(indices.max())} came, but there are "
                f"{self.samples}: "
                f"0..{self.samples - 1}."
            )
        if len(np.unique(indices)) != n or bool(self.seen[indices].any()):
            raise StateError(
                "a sample came twice; leave out what a sampler repeats to fill its last batch."
            )
        return indices

    def identity(self) -> str:
        """What tells this evaluation from others whose state does not fit it."""
        keys = [layer.key for layer in self.reference.layers.values()]
        ids = [entry.id for entry in self._protocols]
        return f"{ids} {keys} {self.reference.real.fingerprint} {self.samples}"

    def _state_path(self) -> Path:
        if self.folder is None:
            raise StateError("save and restore need Evaluation(..., folder=...).")
        return self.folder / _STATE


def names() -> tuple[str, ...]:
    """All metric names this module can compute, those of plug-ins last; loads none of these."""
    return (*protocols(), *plugin_names())


def _label(layer: LayerKey) -> str:
    return f"{layer[0]}-{layer[1]}"


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
