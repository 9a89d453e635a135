"""Scores a stream of generated clips by every kind of metric at once.

    reference = VideoReference.prepare(metrics, RealSamples.from_videos(data, "test"), cache=folder)
    evaluation = VideoEvaluation(metrics, reference, samples=256, frames=16, folder=folder)
    evaluation.update(clips, indices, facts=SampleFacts(real=..., reconstruction=..., context=1))
    rows, curves = evaluation.results(), evaluation.curves()

Four parts look at each clip: one row for the whole clip (`fvd*`), one row for every frame
(`fd_lite0_frames`; frame f of sample i has the index i * frames + f), the tokenizer's
reconstruction of the real clip beside it (`r_fvd*`, and the other side of `fvd_star*`), and numbers
of the clip alone (`per_sample`). They are saved as one file, whole or not at all, so a killed run
loses what came after the last `save`; ranks merge as one `Evaluation` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics.errors import MetricError, ProtocolError, StateError
from visgen_bench.metrics.evaluation import Evaluation
from visgen_bench.metrics.moments import load_arrays, save_arrays
from visgen_bench.metrics.per_sample import (
    PER_SAMPLE,
    PerSample,
    RowStore,
    SampleFacts,
    stores,
)
from visgen_bench.metrics.protocol import Protocol, protocol
from visgen_bench.metrics.real_samples import RealSamples
from visgen_bench.metrics.reference import ReferenceStatistics
from visgen_bench.metrics.scoring import MetricValue

_STATE = "video_evaluation.npz"
_NO_RECONSTRUCTIONS = "no reconstructions of real clips came with the samples."
_NOTHING = SampleFacts()


@dataclass(frozen=True, kw_only=True)
class VideoReference:
    """The real clips as whole clips and, if a metric asks for it, frame by frame."""

    clips: ReferenceStatistics
    frames: ReferenceStatistics | None

    @classmethod
    def prepare(
        cls,
        metrics: Sequence[str],
        real: RealSamples,
        *,
        extractors: Extractors | None = None,
        cache: Path | None = None,
    ) -> Self:
        """Compute, or read from `cache`, what `metrics` need of the real clips.

        Args:
            metrics: Names of protocols.toml that look at clips or at their frames.
            real: Clips, all of as many frames as the samples will have.
            extractors: Opened networks to use; new ones on the CPU if None.
            cache: Folder for the statistics; nothing is stored if None.

        Raises:
            ProtocolError: on a metric of images, on clips that a metric is not defined for, and on
                weights that a reserved name does not allow.
            WeightsError: if an extractor cannot be opened; ask `available` first.
            MetricError: if the clips are too few or of wrong range.
        """
        opened = extractors or Extractors()
        whole, by_frame, _ = _sorted(metrics)
        names = [entry.metric for entry in whole]
        clips = ReferenceStatistics.prepare(names, real, extractors=opened, cache=cache)
        frames = None
        if by_frame:
            frames = ReferenceStatistics.prepare(
                [entry.metric for entry in by_frame],
                real.as_frames(),
                extractors=opened,
                cache=cache,
            )
        return cls(clips=clips, frames=frames)


class VideoEvaluation:
    """Streams, merges and resumes; one per set of generated clips.

    Args:
        metrics: Names of protocols.toml that look at clips or at their frames.
        reference: Prepared for at least these metrics.
        samples: How many samples there will be; indices run from 0 to samples - 1.
        frames: Of each clip; as many as the reference's clips have.
        folder: Where kept feature rows and the saved state lie. Needed for `save`.
        per_sample: Functions of the per-sample metrics by name; those of `per_sample.PER_SAMPLE`
            if None.

    Raises:
        ProtocolError: on a metric of images.
        StateError: if the reference was not prepared for a metric, or for clips of other lengths.
        FactsMissing: if a per-sample metric has no function.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        reference: VideoReference,
        *,
        samples: int,
        frames: int,
        folder: Path | None = None,
        per_sample: Mapping[str, PerSample] | None = None,
    ) -> None:
        if frames != reference.clips.real.frames:
            raise StateError(
                f"samples of {frames} frames came with a reference of clips of "
                f"{reference.clips.real.frames}; open the data for clips of {frames} frames."
            )
        self.metrics = tuple(metrics)
        self.samples = samples
        self.frames = frames
        self.folder = folder
        whole, by_frame, alone = _sorted(metrics)
        self._clips = Evaluation(
            [entry.metric for entry in whole if entry.of_samples],
            reference.clips,
            samples=samples,
            folder=_below(folder, "clips"),
        )
        self._parts = {"clips": self._clips}
        if by_frame:
            if reference.frames is None:
                raise StateError(
                    f"the reference was not prepared for {by_frame[0].metric}; name it in "
                    "VideoReference.prepare()."
                )
            self._parts["frames"] = Evaluation(
                [entry.metric for entry in by_frame],
                reference.frames,
                samples=samples * frames,
                folder=_below(folder, "frames"),
            )
        if paired := [entry.metric for entry in whole if entry.of_reconstructions]:
            self._parts["reconstructions"] = Evaluation(
                paired,
                reference.clips,
                samples=samples,
                folder=_below(folder, "reconstructions"),
            )
        self._rows = stores(alone, samples, PER_SAMPLE if per_sample is None else per_sample)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which samples came: bool (samples,)."""
        return self._clips.seen

    def update(
        self, clips: Tensor, indices: int | Tensor, *, facts: SampleFacts = _NOTHING
    ) -> None:
        """Add samples.

        Args:
            clips: uint8 (n, frames, 3, h, w), 0..255.
            indices: int64 (n,), the index of each; or of the first, the others follow.
            facts: What belongs to these samples, in their order.

        Raises:
            ImageRangeError: if samples or facts are not uint8; nothing is added then.
            ClipShapeError: if samples or facts are not such clips; nothing is added then.
            StateError: if an index is out of range or was seen before; nothing is added then.
        """
        self._clips.reference.real.check(clips)
        facts.check(clips)
        own = self._clips.checked_indices(indices, len(clips))
        if len(own) == 0:
            return
        self._add_rows(clips, own, facts.on(clips.device))
        at = torch.from_numpy(own)
        if "frames" in self._parts:
            each = at[:, None] * self.frames + torch.arange(self.frames)
            self._parts["frames"].update(clips.flatten(0, 1), each.flatten())
        if "reconstructions" in self._parts and facts.reconstruction is not None:
            self._parts["reconstructions"].update(facts.reconstruction, at)
        self._clips.update(clips, at)

    def _add_rows(self, clips: Tensor, own: NDArray[np.int64], facts: SampleFacts) -> None:
        for store in self._rows.values():
            if store.reason is not None:
                continue
            try:
                store.put(own, store.made(clips, facts))
            except MetricError as error:
                store.reason = str(error)

    def merge(self, other: VideoEvaluation) -> None:
        """Add what another rank saw; call it in rank order where bits must repeat.

        Raises:
            StateError: if metrics, reference, frames or number of samples differ, or a sample is in
                both.
        """
        if self._identity() != other._identity():
            raise StateError(
                "evaluations of other metrics, references, frames or sample counts do not merge."
            )
        theirs = np.flatnonzero(other.seen)
        self._clips.merge(other._clips)  # refuses a sample that is in both, before anything else
        for name in self._parts.keys() - {"clips"}:
            self._parts[name].merge(other._parts[name])
        for metric, store in self._rows.items():
            store.merge(other._rows[metric], theirs)

    def different_pictures(self) -> int:
        """How many of the clips seen are different, bit for bit."""
        return self._clips.different_pictures()

    def missing(self) -> Tensor:
        """Indices not seen yet: int64, ascending."""
        return self._clips.missing()

    def save(self) -> None:
        """Write the state of all parts into `folder`, as one file, whole or not at all.

        Raises:
            StateError: if the evaluation has no folder.
        """
        arrays: dict[str, NDArray[Any]] = {"identity": np.array(self._identity())}
        for name, part in self._parts.items():
            arrays |= {f"{name}/{key}": value for key, value in part.arrays().items()}
        for metric, store in self._rows.items():
            arrays[f"rows/{metric}"] = store.rows
            arrays[f"reason/{metric}"] = np.array(store.reason or "")
        save_arrays(self._state_path(), arrays)

    def restore(self) -> bool:
        """Go on from what `save` wrote into `folder`; False if nothing is there.

        Raises:
            StateError: if it was saved for other metrics, another reference, other frames or
                another number of samples.
        """
        path = self._state_path()
        try:
            arrays = load_arrays(path)
        except FileNotFoundError:
            return False
        if str(arrays["identity"]) != self._identity():
            raise StateError(
                f"{path} belongs to another evaluation; use another folder or delete it."
            )
        for name, part in self._parts.items():
            start = f"{name}/"
            own = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            part.load(own, str(path))
        for metric, store in self._rows.items():
            store.rows = arrays[f"rows/{metric}"]
            store.reason = str(arrays[f"reason/{metric}"]) or None
        return True

    def results(self) -> list[MetricValue]:
        """A value, or a reason, for each metric in the order asked; the stream may go on."""
        reconstructions = self._parts.get("reconstructions")
        found = {value.metric: value for value in self._clips.results(reconstructions)}
        if "frames" in self._parts:
            found |= {value.metric: value for value in self._parts["frames"].results()}
        if reconstructions is not None:
            for value in reconstructions.results():
                if protocol(value.metric).of_samples:
                    continue  # its value came with the samples
                if not reconstructions.seen.any():
                    value = replace(value, reason=_NO_RECONSTRUCTIONS)
                found[value.metric] = value
        found |= {metric: self._alone(store) for metric, store in self._rows.items()}
        return [found[metric] for metric in self.metrics]

    def curves(self) -> dict[str, list[float]]:
        """Mean over samples at each frame, of per-sample metrics that have more than one column.

        Of `flicker`, number f is the step from frame f to the next. NaN stands where no sample has
        a value, such as frames that the model was given.
        """
        curves: dict[str, list[float]] = {}
        for metric, store in self._rows.items():
            if store.reason is None and store.rows.shape[1] > 1:
                curves[metric] = store.curve()
        return curves

    def _alone(self, store: RowStore) -> MetricValue:
        entry, real = store.entry, self._clips.reference.real
        blank = MetricValue(
            metric=entry.metric,
            value=None,
            n=int(self.seen.sum()),
            n_ref=0,
            protocol=entry.id,
            extractor=entry.extractor,
            extractor_sha256=entry.sha256,
            comparable=False,
            metric_opts={"split": real.split, "frames": self.frames, **entry.options},
        )
        if store.reason is not None:
            return replace(blank, reason=store.reason)
        if not self.seen.any():
            return replace(blank, reason="no sample was given.")
        try:
            score = store.score()
        except MetricError as error:
            return replace(blank, reason=str(error))
        options = blank.metric_opts
        if score.no_interval is not None:
            options = {**options, "interval": score.no_interval}
        low, high = score.interval or (None, None)
        return replace(
            blank,
            value=score.value,
            n=score.n,
            ci_low=low,
            ci_high=high,
            stderr=score.stderr,
            ci_method=score.method,
            comparable=entry.published and score.n >= entry.samples,
            metric_opts=options,
            details=score.details,
        )

    def _identity(self) -> str:
        parts = {name: part.identity() for name, part in self._parts.items()}
        ids = [store.entry.id for store in self._rows.values()]
        return f"{parts} {ids} {self.frames} {self.samples}"

    def _state_path(self) -> Path:
        if self.folder is None:
            raise StateError("save and restore need VideoEvaluation(..., folder=...).")
        return self.folder / _STATE


def _sorted(
    metrics: Sequence[str],
) -> tuple[list[Protocol], list[Protocol], list[Protocol]]:
    """Metrics of whole clips, of their frames, and of each clip alone."""
    entries = [protocol(metric) for metric in metrics]
    for entry in entries:
        if entry.media == "image":
            raise ProtocolError(
                f"{entry.metric} looks at pictures, and these are clips; name a metric of clips "
                "(fvd_lite0_frames) or of their frames (fd_lite0_frames)."
            )
    alone = [entry for entry in entries if entry.per_sample]
    whole = [entry for entry in entries if entry.media == "video" and not entry.per_sample]
    return whole, [entry for entry in entries if entry.media == "frame"], alone


def _below(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name
