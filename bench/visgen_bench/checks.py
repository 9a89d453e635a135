"""What must hold of a cell and its data before it may run, and what its user should know of them.

A mistake of whoever wrote the suite is a `SuiteError` with its place; what this machine lacks, or
a combination that cannot run, is a reason to skip the cell.
"""

from typing import TYPE_CHECKING, Any

from visgen_bench.cell import Cell, PerformanceCell, QualityCell, TrainCell
from visgen_bench.cells import broken, splits
from visgen_bench.context import Unavailable
from visgen_bench.suite import SuiteError

if TYPE_CHECKING:
    from visgen.data import Data

LEAST_REFERENCE = 2  # pictures; a covariance of one is nothing
# Formulas that look at the samples alone.
_WITHOUT_REFERENCE = ("inception-score", "class-count", "confident-share")


def check_data(spec: str, where: str) -> None:
    """Raise `SuiteError`, with the nearest match, for a data set there is not; opens nothing."""
    from visgen.data import UnknownData
    from visgen.data.opening import check_name

    try:
        check_name(spec)
    except UnknownData as error:
        raise SuiteError(f"{where}: data: {error}") from error


def check_metrics(cell: QualityCell, where: str) -> None:
    """Raise `SuiteError`, with the nearest match, if a cell asks for a metric there is not."""
    from visgen_bench.metrics.errors import ProtocolError
    from visgen_bench.metrics.protocol import protocol

    for metric in cell.metrics:
        try:
            protocol(metric)
        except ProtocolError as error:
            raise SuiteError(f"{where}: metrics: {error}") from error


def check_pictures(cell: Cell, config: Any, data: "Data | None", where: str) -> None:
    """Raise `SuiteError` for data of another size than the model's, or of too few pictures."""
    if data is None:
        return
    _check_sizes(cell, config, data, where)
    if isinstance(cell, TrainCell) and not len(data.split(cell.split)):
        raise SuiteError(f"{where}: split: {_holds(data, cell.split)}; training needs one")
    if isinstance(cell, QualityCell):
        _check_reference(cell, data, where)
        if config is not None and not hasattr(config, "build"):
            _check_fit(cell, config, data, where)


def _holds(data: "Data", split: str) -> str:
    own = len(splits.indices(data, split))
    pictures = "1 picture" if len(data) == 1 else f"{len(data)} pictures"
    return f'{data.name} holds {pictures}, {own} of them in its split "{split}"'


def _check_reference(cell: QualityCell, data: "Data", where: str) -> None:
    from visgen_bench.metrics.protocol import protocol

    needy = [m for m in cell.metrics if protocol(m).formula not in _WITHOUT_REFERENCE]
    if not needy or len(splits.indices(data, cell.split)) >= LEAST_REFERENCE:
        return
    fix = "give a folder with more" if data.name.startswith("folder:") else "name another split"
    if len(data) >= LEAST_REFERENCE and "all" in data.splits:
        fix = 'split = "all" (--split all) takes every picture'
    raise SuiteError(
        f"{where}: data: {_holds(data, cell.split)}; a reference for {needy[0]} needs "
        f"{LEAST_REFERENCE}: {fix}"
    )


def _check_fit(cell: QualityCell, config: Any, data: "Data", where: str) -> None:
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


def _check_sizes(cell: Cell, config: Any, data: "Data", where: str) -> None:
    """A row says which data its model is for, so both must be of one size.

    Training alone resizes, and only a folder: of a shipped set the right size can be named.
    """
    size = getattr(config, "image_size", None)
    if data.size is None or size is None or tuple(size) == tuple(data.size):
        return
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
    cell: Cell, config: Any, data: "Data | None", images: "Data | None"
) -> tuple[str, ...]:
    """Files that cannot be used, which part of a folder is compared with, what is resized."""
    found = [broken.describe(one) for one in (data, images) if one is not None]
    if data is not None and data.name.startswith("folder:"):
        if isinstance(cell, QualityCell) and cell.split in ("train", "test"):
            found.append(_part(cell, data))
        if isinstance(cell, TrainCell):
            found.append(_resizing(config, data))
    return tuple(note for note in found if note)


def _part(cell: QualityCell, data: "Data") -> str:
    own = len(data.split(cell.split))
    return (
        f'{data.name}: scores are against its split "{cell.split}", {own} of {len(data)} pictures '
        '(test is a fifth, chosen by content); split = "all" (--split all) takes every picture'
    )


def _resizing(config: Any, data: "Data") -> str | None:
    size = getattr(config, "image_size", None)
    if size is None or (data.size is not None and tuple(data.size) == tuple(size)):
        return None
    own = "of several sizes" if data.size is None else f"of {data.size[0]}x{data.size[1]}"
    return f"{data.name}: pictures {own} are resized to the model's {size[0]}x{size[1]} to train"
