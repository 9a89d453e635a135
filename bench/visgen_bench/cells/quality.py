"""The quality cell: weights -> samples -> metrics; or a user's folder of samples -> metrics.

Reference statistics are there before the first sample is drawn. Samples are drawn in chunks; after
each one the sums are saved, so a killed attempt costs one chunk. A sample depends on the cell's
seed and its own index alone: rank r of w draws the indices r, r + w, ... and the ranks' sums are
merged in rank order, which gives what one rank gives.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visgen_bench.cell import QualityCell
from visgen_bench.cells import broken, splits
from visgen_bench.cells.grid import COUNT, save_sheet
from visgen_bench.cells.ranks import Ranks
from visgen_bench.context import Context, Unavailable

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen_bench.cells.samples import Source
    from visgen_bench.extractors.opening import Extractors
    from visgen_bench.metrics.evaluation import ImageEvaluation, MetricValue, ReferenceStatistics


def run_quality(cell: QualityCell, context: Context) -> None:
    """Score a cell's samples and write a row for each metric that was asked for.

    Raises:
        Unavailable: if not one of the metrics can be computed here; says why for each.
        CheckpointError: for weights that do not fit.
    """
    from visgen.data import open_data
    from visgen_bench.presets import config_of

    ranks = Ranks(context)
    extractors = _extractors(cell, context)
    possible, reasons = _possible(cell, context, extractors, ranks)
    data = open_data(cell.data, root=context.data_root, offline=context.offline)
    reference = _reference(cell, context, data, possible, extractors, ranks)
    config = config_of(cell) if cell.model else None
    from visgen_bench.cells import seeding
    from visgen_bench.cells.samples import FolderSource, source_of

    source = source_of(cell, config, data, context)
    samples = source.count if context.limit is None else min(source.count, context.limit)
    if ranks.first:
        broken.report(data, context, phase="data")
        if isinstance(source, FolderSource):
            broken.report(source.data, context, phase="images")
        _report_weights(source, context)
        _save_reference_sheet(context.artifacts / "reference.png", data, cell)
    first: dict[int, Tensor] = {}
    evaluation = _evaluated(cell, context, source, reference, possible, samples, ranks, first)
    if not ranks.first:
        return
    seeding.report(source, evaluation, first, context)
    for value in evaluation.results():
        _report(value, context, limited=context.limit is not None and samples < source.count)
    for metric, reason in reasons.items():
        context.metric(metric, None, reason=reason, comparable=False)
    context.provenance(artifacts_path=f"artifacts/{context.spec_key}")
    shutil.rmtree(context.state, ignore_errors=True)


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
    data: "Data",
    metrics: list[str],
    extractors: "Extractors",
    ranks: Ranks,
) -> "ReferenceStatistics":
    """Statistics of the real images; rank 0 computes them and the others read what it stored."""
    from visgen_bench.metrics.evaluation import ReferenceStatistics

    images = real_images(data, cell.split)
    train = real_images(data, "train") if "copy_share" in metrics else None
    cache = context.root / "cache" / "reference"

    def prepare() -> ReferenceStatistics:
        return ReferenceStatistics.prepare(
            metrics, images, train=train, extractors=extractors, cache=cache
        )

    if ranks.first:
        context.progress(f"reference statistics: {cell.data}, {cell.split}, {images.n} images")
        found = prepare()
        ranks.barrier()
        return found
    ranks.barrier()
    return prepare()


def real_images(data: "Data", split: str) -> Any:
    """A split as a stream of real images; pictures of differing sizes come one by one."""
    from visgen_bench.cells.samples import pictures
    from visgen_bench.metrics.evaluation import RealImages

    indices = splits.indices(data, split)
    return RealImages(
        batches=lambda: pictures(data, indices, batch=256),
        n=len(indices),
        fingerprint=data.fingerprint,
        split=split,
        image_size=data.size,
    )


def _evaluated(
    cell: QualityCell,
    context: Context,
    source: "Source",
    reference: "ReferenceStatistics",
    metrics: list[str],
    samples: int,
    ranks: Ranks,
    first: dict[int, Tensor],
) -> "ImageEvaluation":
    """Draw what is missing of this rank's share, chunk by chunk; rank 0 gets everybody's.

    `first` takes the first pictures that this rank draws, by index.
    """
    from visgen_bench.metrics.evaluation import ImageEvaluation

    def evaluation(rank: int) -> ImageEvaluation:
        # Weights and code are in the name: what others drew is not gone on from.
        drawn = f"{(source.weights_sha256 or 'none')[:12]}-{context.code_hash[:12]}"
        folder = context.state / f"samples-{samples}-{drawn}" / f"rank-{rank}-of-{ranks.size}"
        folder.mkdir(parents=True, exist_ok=True)
        return ImageEvaluation(metrics, reference, samples=samples, folder=folder)

    own = evaluation(ranks.rank)
    if own.restore():
        context.progress(f"resumed: {samples - len(own.missing())} samples are there already")
    missing = own.missing()
    missing = missing[missing % ranks.size == ranks.rank]
    shown: list[Tensor] = []
    for start in range(0, samples, cell.chunk):
        chunk = missing[(missing >= start) & (missing < start + cell.chunk)]
        if len(chunk):
            _draw_chunk(source, chunk, own, shown, first)
            own.save()
            context.progress(f"samples {start}..{int(chunk[-1])} of {samples}")
    if ranks.first:
        _save_sheet(context.artifacts / "samples.png", source, shown, min(samples, COUNT))
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
    indices: Tensor,
    evaluation: "ImageEvaluation",
    shown: list[Tensor],
    first: dict[int, Tensor],
) -> None:
    """Draw and score samples; the run's first pictures, as they come in order, go to `shown`.

    The first ones of this rank go to `first`, by index.
    """
    from visgen_bench.cells.seeding import REDRAWN

    done = 0
    for images in source.draw(indices):
        own = indices[done : done + len(images)]
        evaluation.update(images, own)
        for index, image in zip(own.tolist(), images, strict=True):
            if index == len(shown) < COUNT:
                shown.append(image)
            if len(first) < REDRAWN:
                first[index] = image
        done += len(images)


def _save_sheet(path: Path, source: "Source", shown: list[Tensor], count: int) -> None:
    """The sheet of the run's first samples; those that other ranks or attempts drew are redrawn."""
    if len(shown) < count:
        rest = torch.arange(len(shown), count)
        shown = [*shown, *(image for batch in source.draw(rest) for image in batch)]
    save_sheet(path, shown)


def _save_reference_sheet(path: Path, data: "Data", cell: QualityCell) -> None:
    from visgen_bench.cells.samples import pictures

    chosen = splits.indices(data, cell.split)[:COUNT]
    save_sheet(path, [image for batch in pictures(data, chosen, batch=COUNT) for image in batch])


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
