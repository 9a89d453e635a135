"""What must hold of a cell and its data before it may run, and what its user should know of them.

A mistake of whoever wrote the suite is a `SuiteError` with its place; what this machine lacks, or
a combination that cannot run, is a reason to skip the cell.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from visgen.data.dataset import Data
from visgen.data.videos import VideoData
from visgen.names import hint_or_list
from visgen.objectives.gan import OBJECTIVES as GAN_OBJECTIVES
from visgen_bench import media
from visgen_bench.cell import Cell, PerformanceCell, QualityCell, Sampled, TrainCell
from visgen_bench.cells import broken, splits
from visgen_bench.context import Unavailable
from visgen_bench.suite import SuiteError

if TYPE_CHECKING:
    from visgen_bench.metrics.protocol import Protocol

AnyData = Data | VideoData
_HELD = {"class": "classes", "text": "captions", "actions": "actions"}

# Formulas that look at the samples alone.
_WITHOUT_REFERENCE = ("inception-score", "class-count", "confident-share")
LEAST_REFERENCE = 2  # pictures; a covariance of one is nothing


def check_data(spec: str, where: str) -> None:
    """Raise `SuiteError`, with the nearest match, for a data set there is not; opens nothing."""
    from visgen.data import UnknownData

    try:
        media.check_name(spec)
    except UnknownData as error:
        raise SuiteError(f"{where}: data: {error}") from error


def check_metrics(cell: QualityCell, where: str) -> None:
    """Raise `SuiteError`, with the nearest match, if a cell asks for a metric there is not.

    Pictures have metrics of pictures, clips those of clips and of their frames.
    """
    from visgen_bench.metrics.errors import ProtocolError
    from visgen_bench.metrics.protocol import protocol

    clips = media.is_video(cell.data)
    for metric in cell.metrics:
        try:
            found = protocol(metric)
        except ProtocolError as error:
            raise SuiteError(f"{where}: metrics: {error}") from error
        if (found.media == "image") == clips:
            held, asked = ("clips", "pictures") if clips else ("pictures", "clips")
            raise SuiteError(
                f'{where}: metrics: {metric} looks at {asked}, and "{cell.data}" holds {held}'
            )


def check_request(cell: Cell, config: Any, where: str) -> None:
    """Raise `SuiteError` for what a model, or its task, cannot be asked for; opens nothing."""
    if not media.has_clips(cell, config):
        for name in ("clip", "stride", "policy"):
            if getattr(cell, name) is not None:
                said = f"{name} = {getattr(cell, name)!r}"
                raise SuiteError(f"{where}: {said} is about clips; leave it out for pictures")
    if isinstance(cell, TrainCell):
        _check_stage(cell, config, where)
    if isinstance(cell, Sampled):
        _check_condition(cell, config, where)
        _check_sampling(cell, config, where)


def _check_stage(cell: TrainCell, config: Any, where: str) -> None:
    """A recipe trains a part of its model; a prior learns the codes of a trained VQ-VAE."""
    known = getattr(config, "objectives", GAN_OBJECTIVES)
    if cell.recipe.objective not in known:
        raise SuiteError(
            f'{where}: recipe.objective = "{cell.recipe.objective}" does not train {cell.model} '
            f"(allowed: {', '.join(known)})"
        )
    if cell.recipe.objective == "prior" and cell.weights is None:
        raise SuiteError(
            f"{where}: a prior learns the codes of a trained VQ-VAE, and there is none: name it, "
            f'as in weights = "train:{cell.model}" (a train cell with objective = "vqvae"), '
            '"file:PATH" or "zoo:NAME"'
        )


def _check_condition(cell: Sampled, config: Any, where: str) -> None:
    known = getattr(config, "conditions", ())
    for kind in getattr(config, "requires", ()):
        if kind not in cell.conditions:
            raise SuiteError(
                f'{where}: {cell.model} draws nothing without {kind}; set condition = "{kind}"'
            )
    for kind in cell.conditions:
        if kind not in known:
            what = cell.model or "a folder of samples"
            takes = f"it takes {', '.join(known)}" if known else "it takes none; leave it out"
            raise SuiteError(f'{where}: condition = "{kind}" means nothing to {what}; {takes}')


def _check_sampling(cell: Sampled, config: Any, where: str) -> None:
    if cell.sampling is None:
        return
    kind = getattr(config, "sampling_choices", None)
    if kind is None:
        raise SuiteError(f"{where}: sampling: {cell.model or 'a folder'} has no choices to make")
    known = [field.name for field in dataclasses.fields(kind)]
    for name in cell.sampling:
        if name not in known:
            near = hint_or_list(name, known)
            raise SuiteError(f'{where}: sampling: {cell.model} has no choice "{name}"{near}')
    try:
        kind(**cell.sampling)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"{where}: sampling: {error}") from error


def check_samples(cell: Cell, config: Any, data: AnyData | None, where: str) -> None:
    """Raise `SuiteError` for data of another size than the model's, or of too few samples."""
    if data is None:
        return
    _check_sizes(cell, config, data, where)
    if isinstance(cell, Sampled):
        _check_known(cell, data, where)
    if isinstance(cell, TrainCell) and not len(data.split(cell.split)):
        raise SuiteError(f"{where}: split: {_holds(data, cell.split)}; training needs one")
    if isinstance(cell, QualityCell):
        _check_reference(cell, data, where)
        if config is not None and not hasattr(config, "build"):
            _check_fit(cell, config, data, where)


def _check_known(cell: Sampled, data: AnyData, where: str) -> None:
    """What a condition asks for is taken from the data, which must know it."""
    if not isinstance(data, VideoData):
        return
    first = splits.indices(data, getattr(cell, "split", next(iter(data.splits))))[:1]
    seeds = torch.zeros(1, dtype=torch.int64)[: len(first)]
    for kind, known in (
        ("class", data.labels(first)),
        ("text", data.captions(first)),
        ("actions", data.actions(first, seeds)),
    ):
        if kind in cell.conditions and known is None:
            raise SuiteError(f'{where}: condition = "{kind}": {data.name} has no {_HELD[kind]}')


def _holds(data: AnyData, split: str) -> str:
    own = len(splits.indices(data, split))
    kind = "clip" if isinstance(data, VideoData) else "picture"
    pictures = f"1 {kind}" if len(data) == 1 else f"{len(data)} {kind}s"
    return f'{data.name} holds {pictures}, {own} of them in its split "{split}"'


def _check_reference(cell: QualityCell, data: AnyData, where: str) -> None:
    from visgen_bench.metrics.protocol import protocol

    needy = [metric for metric in cell.metrics if _needs_reference(protocol(metric))]
    if not needy or len(splits.indices(data, cell.split)) >= LEAST_REFERENCE:
        return
    own = data.name.startswith(("folder:", "videos:"))
    fix = "give a folder with more" if own else "name another split"
    if len(data) >= LEAST_REFERENCE and "all" in data.splits:
        fix = 'split = "all" (--split all) takes every picture'
    raise SuiteError(
        f"{where}: data: {_holds(data, cell.split)}; a reference for {needy[0]} needs "
        f"{LEAST_REFERENCE}: {fix}"
    )


def _needs_reference(entry: "Protocol") -> bool:
    alone = entry.per_sample or entry.formula in _WITHOUT_REFERENCE
    return entry.needs_reference and not alone


def _check_fit(cell: QualityCell, config: Any, data: AnyData, where: str) -> None:
    """A reference generator is fitted to the training pictures, all of one size."""
    if data.size is None:
        raise SuiteError(
            f"{where}: data: {cell.model} is fitted to pictures of one size, and those of "
            f"{data.name} differ; bring them to one size"
        )
    least = getattr(config, "least_images", 1)
    if len(data.split("train")) < least:
        raise SuiteError(
            f"{where}: data: {_holds(data, 'train')}; {cell.model} is fitted to {least} or more"
        )


def _check_sizes(cell: Cell, config: Any, data: AnyData, where: str) -> None:
    """A row says which data its model is for, so both must be of one size.

    Training alone resizes, and only a folder: of a shipped set the right size can be named.
    """
    size = getattr(config, "image_size", None)
    if data.size is None or size is None or tuple(size) == tuple(data.size):
        return  # clips are brought to the model's size as they are read
    folder = data.name.startswith("folder:")
    if isinstance(cell, TrainCell) and folder:
        return
    fix = "take a model and data of one size"
    if isinstance(cell, PerformanceCell):
        fix += ", or leave data out: speed does not depend on it"
    elif folder:
        fix += f", or bring the folder's pictures to {size[0]}x{size[1]}"
    raise SuiteError(
        f"{where}: {cell.model} draws {size[0]}x{size[1]} pictures and {data.name} holds "
        f"{data.size[0]}x{data.size[1]}; {fix}"
    )


def impossible(cell: Cell, config: Any) -> list[str]:
    """Why this combination cannot run on this machine; empty if it can."""
    reasons = []
    if cell.device_type != "cpu":
        reasons += _device_fault(cell)
    if isinstance(cell, TrainCell):
        if cell.devices > 1:
            reasons.append("training over several devices is not built yet")
        if cell.dtype == "fp16":
            reasons.append("training in fp16 needs loss scaling; use bf16")
    if isinstance(cell, QualityCell) and cell.compile:
        reasons.append("a quality cell does not compile; speed is a performance cell's business")
    if isinstance(cell, PerformanceCell) and not reasons:
        from visgen_bench.cells.workload import refuse_impossible

        try:
            refuse_impossible(cell, config)
        except Unavailable as reason:
            reasons.append(str(reason))
    return reasons


def _device_fault(cell: Cell) -> list[str]:
    import torch

    kind = cell.device_type
    backend = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}[kind]
    there = backend.device_count() if backend.is_available() else 0
    _, _, number = cell.device.partition(":")
    if there == 0:
        return [f"device {cell.device}: torch sees no {kind} device here"]
    if cell.devices > there or int(number or 0) >= there:
        return [f"device {cell.device}, devices = {cell.devices}: this machine has {there}"]
    return []


def notes_of(
    cell: Cell, config: Any, data: AnyData | None, images: AnyData | None
) -> tuple[str, ...]:
    """Files that cannot be used, which part of a folder is compared with, what is resized."""
    found = [broken.describe(one) for one in (data, images) if one is not None]
    if isinstance(data, Data) and data.name.startswith("folder:"):
        if isinstance(cell, QualityCell) and cell.split in ("train", "test"):
            found.append(_part(cell, data))
        if isinstance(cell, TrainCell):
            found.append(_resizing(config, data))
    return tuple(note for note in found if note)


def _part(cell: QualityCell, data: Data) -> str:
    own = len(data.split(cell.split))
    return (
        f'{data.name}: scores are against its split "{cell.split}", {own} of {len(data)} pictures '
        '(test is a fifth, chosen by content); split = "all" (--split all) takes every picture'
    )


def _resizing(config: Any, data: Data) -> str | None:
    size = getattr(config, "image_size", None)
    if size is None or (data.size is not None and tuple(data.size) == tuple(size)):
        return None
    own = "of several sizes" if data.size is None else f"of {data.size[0]}x{data.size[1]}"
    return f"{data.name}: pictures {own} are resized to the model's {size[0]}x{size[1]} to train"
