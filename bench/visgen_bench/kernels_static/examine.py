"""From a task to findings: compile, read, predict. What a worker process runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from visgen_bench.kernels_static.request import OwnTask, Task
from visgen_kernels.launch import Launch
from visgen_kernels.roofline import Work
from visgen_kernels.shapes import SHAPES
from visgen_kernels.static.analysis import Analysis, Facts, Specimen, analyse
from visgen_kernels.static.compile import CompileFailed
from visgen_kernels.static.facts import tensors_of
from visgen_kernels.static.signature import load_launches
from visgen_kernels.static.specimens import Layer, specimens, tile_of
from visgen_kernels.static.targets import TARGETS


@dataclass(frozen=True)
class Finding:
    """One kernel of a task: its analysis, or why there is none.

    Attributes:
        task: What it belongs to.
        kernel: Short name; of a user's kernel its function, with the autotuner's config.
        tile: What was chosen for it.
        analysis: None if it could not be had.
        error: Why.
        seconds: That compiling and reading took.
    """

    task: Task | OwnTask
    kernel: str
    tile: dict[str, int]
    analysis: Analysis | None
    error: str = ""
    seconds: float = 0.0


def examine(task: Task | OwnTask) -> list[Finding]:
    """All kernels of a task, in the order of their launch."""
    if isinstance(task, Task):
        return list(_examine_layer(task))
    return list(_examine_own(task))


def _examine_layer(task: Task) -> Iterator[Finding]:
    layer, target = Layer(SHAPES[task.shape], task.dtype), TARGETS[task.target]
    try:
        found = specimens(layer, task.direction, target)
    except (ValueError, NotImplementedError) as error:
        yield Finding(task, task.direction, {}, None, str(error) or type(error).__name__)
        return
    for specimen in found:
        if not task.kernels or specimen.facts.kernel in task.kernels:
            yield _finding(task, specimen)


def _examine_own(task: OwnTask) -> Iterator[Finding]:
    launches = load_launches(
        task.name,
        signature=task.signature,
        constants=task.constants,
        options=task.options,
        warps=task.warps,
        stages=task.stages,
    )
    for label, launch in launches:
        yield _finding(task, Specimen(launch, _own_facts(task, label, launch)))


def _own_facts(task: OwnTask, label: str, launch: Launch) -> Facts:
    name = f"{launch.name} ({label})" if label else launch.name
    programs = task.programs if task.programs is not None else launch.programs
    return Facts(
        kernel=name,
        direction="",
        programs=programs,
        tile=tile_of(launch),
        scores=task.scores,
        flops=task.flops,
        whole=task.passes,
        work=_own_work(task, programs),
        tensors=tensors_of(launch),
    )


def _own_work(task: OwnTask, programs: int) -> Work | None:
    """The least work, as far as it was said; None without the bytes."""
    if task.moved is None:
        return None
    return Work(flops=programs * (task.passes or 1.0) * (task.flops or 0.0), bytes=task.moved)


def _finding(task: Task | OwnTask, specimen: Specimen) -> Finding:
    start = time.perf_counter()
    analysis, error = None, ""
    try:
        analysis = analyse(specimen, TARGETS[task.target])
    except CompileFailed as failed:
        error = str(failed)
    if analysis is not None and isinstance(task, OwnTask) and not _knows_grid(task):
        analysis = _without_grid(analysis)
    seconds = time.perf_counter() - start
    facts = specimen.facts
    return Finding(task, facts.kernel, dict(facts.tile), analysis, error, seconds)


def _knows_grid(task: OwnTask) -> bool:
    """A launch says how large its grid is, a signature does not."""
    return task.programs is not None or task.signature is None


def _without_grid(analysis: Analysis) -> Analysis:
    """Where the grid is unknown there are no waves and no time, only what one pass takes."""
    unknown = tuple(
        replace(one, launched=None, seconds=None, reason="the size of the grid was not given")
        for one in analysis.predictions
    )
    return replace(analysis, predictions=unknown)
