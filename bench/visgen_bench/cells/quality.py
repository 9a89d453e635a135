"""The quality cell: weights -> samples -> metrics; or a user's folder of samples -> metrics.

Reference statistics are there before the first sample is drawn. Samples are drawn in chunks; after
each one the sums are saved, so a killed attempt costs one chunk. A sample depends on the cell's
seed and its own index alone: rank r of w draws the indices r, r + w, ... and the ranks' sums are
merged in rank order, which gives what one rank gives.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from visgen_bench import media
from visgen_bench.cell import QualityCell
from visgen_bench.cells import broken, splits
from visgen_bench.cells.grid import COUNT, save_sheet
from visgen_bench.cells.ranks import Ranks
from visgen_bench.context import Context, Unavailable

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen_bench.cells.samples import Source
    from visgen_bench.extractors.opening import Extractors
    from visgen_bench.metrics.evaluation import Evaluation, MetricValue, ReferenceStatistics


class Scoring(Protocol):
    """How samples of one medium are compared with real ones."""

    @property
    def shown(self) -> int:
        """Samples that are kept for people to look at."""
        ...

    def prepare(self, metrics: Sequence[str], extractors: "Extractors", cache: Path) -> Any: ...

    def evaluation(
        self, metrics: Sequence[str], reference: Any, samples: int, folder: Path
    ) -> Any: ...

    def add(self, evaluation: Any, batch: Tensor, indices: Tensor, /) -> None: ...

    def save_shown(self, folder: Path, shown: Sequence[Tensor]) -> None: ...

    def save_reference(self, folder: Path) -> None: ...

    def report(
        self, evaluation: Any, values: Sequence["MetricValue"], context: Context
    ) -> None: ...


def run_quality(cell: QualityCell, context: Context) -> None:
    """Score a cell's samples and write a row for each metric that was asked for.

    Raises:
        Unavailable: if not one of the metrics can be computed here; says why for each.
        CheckpointError: for weights that do not fit.
    """
    from visgen_bench.presets import config_of

    ranks = Ranks(context)
    extractors = _extractors(cell, context)
    possible, reasons = _possible(cell, context, extractors, ranks)
    config = config_of(cell) if cell.model else None
    data = media.open_set(cell.data, cell, config, root=context.data_root, offline=context.offline)
    source, scoring = _scoring(cell, config, data, context)
    reference = _reference(cell, context, scoring, possible, extractors, ranks)
    from visgen_bench.cells import seeding

    samples = source.count if context.limit is None else min(source.count, context.limit)
    if ranks.first:
        broken.report(data, context, phase="data")
        if (own := getattr(source, "data", None)) is not None:
            broken.report(own, context, phase="images")
        _report_weights(source, context)
        scoring.save_reference(context.artifacts)
    first: dict[int, Tensor] = {}
    evaluation = _evaluated(
        cell, context, source, scoring, reference, possible, samples, ranks, first
    )
    if not ranks.first:
        return
    seeding.report(source, evaluation, first, context)
    values = evaluation.results()
    for value in values:
        _report(value, context, limited=context.limit is not None and samples < source.count)
    scoring.report(evaluation, values, context)
    for metric, reason in reasons.items():
        context.metric(metric, None, reason=reason, comparable=False)
    context.provenance(artifacts_path=f"artifacts/{context.spec_key}")
    shutil.rmtree(context.state, ignore_errors=True)


def _scoring(
    cell: QualityCell, config: Any, data: Any, context: Context
) -> "tuple[Source, Scoring]":
    """The cell's samples, and how they are scored."""
    if media.is_video(cell.data):
        from visgen_bench.cells import video_quality

        source = video_quality.source_of(cell, config, data, context)
        return source, video_quality.ClipScoring(cell, data, source)
    from visgen_bench.cells import samples

    return samples.source_of(cell, config, data, context), PictureScoring(cell, data)


class PictureScoring:
    """How pictures are compared with a split of real ones."""

    shown = COUNT

    def __init__(self, cell: QualityCell, data: "Data") -> None:
        self.cell, self.data = cell, data

    def prepare(
        self, metrics: Sequence[str], extractors: "Extractors", cache: Path
    ) -> "ReferenceStatistics":
        """Statistics of the real images."""
        from visgen_bench.metrics.evaluation import ReferenceStatistics

        images = real_images(self.data, self.cell.split, self.cell.reference)
        train = real_images(self.data, "train") if "copy_share" in metrics else None
        return ReferenceStatistics.prepare(
            metrics, images, train=train, extractors=extractors, cache=cache
        )

    def evaluation(
        self,
        metrics: Sequence[str],
        reference: "ReferenceStatistics",
        samples: int,
        folder: Path,
    ) -> "Evaluation":
        """A new evaluation of so many samples."""
        from visgen_bench.metrics.evaluation import Evaluation

        return Evaluation(metrics, reference, samples=samples, folder=folder)

    def add(self, evaluation: "Evaluation", batch: Tensor, indices: Tensor) -> None:
        """Score pictures."""
        evaluation.update(batch, indices)

    def save_shown(self, folder: Path, shown: Sequence[Tensor]) -> None:
        """The samples, as a sheet."""
        save_sheet(folder / "samples.png", shown)

    def save_reference(self, folder: Path) -> None:
        """The first real images of the split, as a sheet."""
        from visgen_bench.cells.samples import pictures

        chosen = splits.indices(self.data, self.cell.split)[:COUNT]
        found = [image for batch in pictures(self.data, chosen, batch=COUNT) for image in batch]
        save_sheet(folder / "reference.png", found)

    def report(
        self, evaluation: "Evaluation", values: Sequence["MetricValue"], context: Context
    ) -> None:
        """Pictures have nothing beside their metrics."""


def _extractors(cell: QualityCell, context: Context) -> "Extractors":
    from visgen_bench.extractors.opening import Extractors

    device = cell.device
    if context.world_size > 1 and cell.device_type != "cpu":
        device = f"{cell.device_type}:{context.rank}"
    return Extractors(device, allow_download=not context.offline)


def _possible(
    cell: QualityCell, context: Context, extractors: "Extractors", ranks: Ranks
) -> tuple[list[str], dict[str, str]]:
    """Metrics that can be computed here, and why the others cannot."""
    asked = list(dict.fromkeys(cell.metrics))
    if not ranks.first:
        ranks.barrier()  # rank 0 downloads what is missing, the others find it
    faults = {metric: _fault(metric, extractors) for metric in asked}
    if ranks.first:
        ranks.barrier()
    everywhere = ranks.gather(faults)  # a metric needs its network on every rank
    reasons = {m: next((f[m] for f in everywhere if f[m]), None) for m in asked}
    possible = [metric for metric, reason in reasons.items() if reason is None]
    missing = {metric: reason for metric, reason in reasons.items() if reason is not None}
    if not possible:
        for metric, reason in missing.items():
            context.metric(metric, None, reason=reason, comparable=False)
        raise Unavailable("; ".join(dict.fromkeys(missing.values())))
    return possible, missing


def _fault(metric: str, extractors: "Extractors") -> str | None:
    """Why a metric cannot be computed, found out by opening its network; None if it can."""
    from visgen_bench.extractors.weights import WeightsError
    from visgen_bench.metrics.evaluation import available
    from visgen_bench.metrics.protocol import protocol

    reason, entry = available(metric, extractors), protocol(metric)
    if reason is not None or entry.extractor == "pixels":
        return reason
    try:
        widths = extractors.open(entry.extractor).widths
    except WeightsError as error:  # a download was allowed and failed, or a plug-in's network did
        return str(error)
    if entry.layer not in widths:
        return f'{entry.extractor} has no layer "{entry.layer}"; it has {", ".join(widths)}'
    return None


def _reference(
    cell: QualityCell,
    context: Context,
    scoring: Scoring,
    metrics: list[str],
    extractors: "Extractors",
    ranks: Ranks,
) -> Any:
    """Statistics of the real samples; rank 0 computes them and the others read what it stored."""
    cache = context.root / "cache" / "reference"
    if ranks.first:
        context.progress(f"reference statistics: {cell.data}, {cell.split}")
        found = scoring.prepare(metrics, extractors, cache)
        ranks.barrier()
        return found
    ranks.barrier()
    return scoring.prepare(metrics, extractors, cache)


def real_images(data: "Data", split: str, most: int | None = None) -> Any:
    """The first `most` real images of a split; those of differing sizes come one by one."""
    from visgen_bench.cells.samples import pictures
    from visgen_bench.metrics.evaluation import RealSamples

    indices = splits.indices(data, split)[:most]
    return RealSamples(
        batches=lambda: pictures(data, indices, batch=256),
        n=len(indices),
        fingerprint=data.fingerprint,
        split=split,
        image_size=data.size,
        selection="all" if most is None else f"first {len(indices)}",
    )


def _evaluated(
    cell: QualityCell,
    context: Context,
    source: "Source",
    scoring: Scoring,
    reference: Any,
    metrics: list[str],
    samples: int,
    ranks: Ranks,
    first: dict[int, Tensor],
) -> Any:
    """Draw what is missing of this rank's share, chunk by chunk; rank 0 gets everybody's.

    `first` takes the first samples that this rank draws, by index.
    """

    def evaluation(rank: int) -> Any:
        # Weights and code are in the name: what others drew is not gone on from.
        drawn = f"{(source.weights_sha256 or 'none')[:12]}-{context.code_hash[:12]}"
        folder = context.state / f"samples-{samples}-{drawn}" / f"rank-{rank}-of-{ranks.size}"
        folder.mkdir(parents=True, exist_ok=True)
        return scoring.evaluation(metrics, reference, samples, folder)

    own = evaluation(ranks.rank)
    if own.restore():
        context.progress(f"resumed: {samples - len(own.missing())} samples are there already")
    missing = own.missing()
    missing = missing[missing % ranks.size == ranks.rank]
    shown: list[Tensor] = []
    for start in range(0, samples, cell.chunk):
        chunk = missing[(missing >= start) & (missing < start + cell.chunk)]
        if len(chunk):
            _draw_chunk(source, scoring, chunk, own, shown, first)
            own.save()
            context.progress(f"samples {start}..{int(chunk[-1])} of {samples}")
    if ranks.first:
        _save_shown(context.artifacts, source, scoring, shown, min(samples, scoring.shown))
    ranks.barrier()
    if ranks.first:
        for rank in range(1, ranks.size):
            other = evaluation(rank)
            if not other.restore() and samples > rank:
                raise RuntimeError(f"rank {rank} left no sums; see the log.")
            own.merge(other)
    return own


def _draw_chunk(
    source: "Source",
    scoring: Scoring,
    indices: Tensor,
    evaluation: Any,
    shown: list[Tensor],
    first: dict[int, Tensor],
) -> None:
    """Draw and score samples; the run's first ones, as they come in order, go to `shown`.

    The first ones of this rank go to `first`, by index.
    """
    from visgen_bench.cells.seeding import REDRAWN

    done = 0
    for batch in source.draw(indices):
        own = indices[done : done + len(batch)]
        scoring.add(evaluation, batch, own)
        for index, sample in zip(own.tolist(), batch, strict=True):
            if index == len(shown) < scoring.shown:
                shown.append(sample)
            if len(first) < REDRAWN:
                first[index] = sample
        done += len(batch)


def _save_shown(
    folder: Path, source: "Source", scoring: Scoring, shown: list[Tensor], count: int
) -> None:
    """The run's first samples; those that other ranks or attempts drew are drawn again."""
    if len(shown) < count:
        rest = torch.arange(len(shown), count)
        shown = [*shown, *(sample for batch in source.draw(rest) for sample in batch)]
    scoring.save_shown(folder, shown)


def _report_weights(source: "Source", context: Context) -> None:
    from visgen_bench.cells.samples import ModelSource

    if source.weights_sha256 is not None:
        context.provenance(weights_sha256=source.weights_sha256)
    if isinstance(source, ModelSource):
        for part, network in source.model.networks().items():
            size = sum(p.numel() for p in network.parameters())
            context.metric("params", float(size), phase=part)


def _report(value: "MetricValue", context: Context, *, limited: bool) -> None:
    """One row; what a run with `--limit` gives is never comparable."""
    columns = {
        name: getattr(value, name)
        for name in ("n", "n_ref", "ci_low", "ci_high", "stderr", "ci_method", "protocol")
    }
    columns |= {"extractor": value.extractor, "extractor_sha256": value.extractor_sha256 or None}
    columns |= {"metric_version": value.metric_version, "metric_opts": dict(value.metric_opts)}
    columns["comparable"] = value.comparable and not limited
    if isinstance(value.metric_opts.get("reference"), str):
        columns["ref_stats_sha256"] = value.metric_opts["reference"]
    context.metric(value.metric, value.value, stat=value.stat, reason=value.reason, **columns)
    if value.details:
        context.progress(f"{value.metric}: {value.details}")
