"""One kernel on one target: its static report, and what a model predicts for every device.

The prediction is the largest of three: the least bytes at 0.9 of the bandwidth, the matrix FLOPs
that the code executes at 0.8 of the peak (what real cards reach), and the issue model's cycles for
all passes of all programs, in waves. It knows no latency, no cache and no launch: a ranking, right
within 30 % at best, and no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from visgen_kernels.launch import Launch
from visgen_kernels.roofline import Device, Floor, Work, devices_of, floor
from visgen_kernels.static.compile import Compiled, compile_launch
from visgen_kernels.static.cycles import Cycles, Launched, cycles, grid_cycles, launched
from visgen_kernels.static.report import Counts, LoopCost, Report, report
from visgen_kernels.static.targets import Target

PRACTICAL_BANDWIDTH, PRACTICAL_MMA = 0.9, 0.8


@dataclass(frozen=True)
class Facts:
    """What is known of a launch beside its code.

    Attributes:
        kernel: Short name, `forward`.
        direction: `forward`, `backward`, `double_backward`; "" if it has none.
        programs: Size of the grid.
        tile: What was chosen for it, by name: rows, warps, stages.
        scores: That one pass of a main loop (without a loop: one program) computes; None: unknown.
        flops: Matrix FLOPs such a pass needs.
        whole: Passes of a program through the loop without masks, on average; None: unknown.
        masked: Passes through the masking loop.
        masked_scores: That such a pass computes, if it takes tiles in smaller pieces.
        has_whole: Whether the code has a loop over whole tiles.
        exponentials: That a score needs.
        steps: Passes that the compiler may have unrolled into one.
        step_bytes: Of global memory that one of them reads.
        work: The least that the whole launch has to do; None: unknown.
        widest: Bytes of the widest access that the strides allow.
        tensors: The pointer arguments it is for, those of q, k, v and the like; None: all.
        dtype: Of the operands of matrix products.
    """

    kernel: str
    direction: str
    programs: int
    tile: Mapping[str, int]
    scores: float | None = None
    flops: float | None = None
    whole: float | None = None
    masked: float = 0.0
    masked_scores: float | None = None
    has_whole: bool = True
    exponentials: float = 1.0
    steps: int = 1
    step_bytes: float = 0.0
    work: Work | None = None
    widest: int = 16
    tensors: frozenset[str] | None = None
    dtype: str = "bf16"


@dataclass(frozen=True)
class Specimen:
    """A launch and its facts."""

    launch: Launch
    facts: Facts


@dataclass(frozen=True)
class Prediction:
    """What the model says of one device; None with a reason where it says nothing.

    Attributes:
        device: Its id.
        floor: Of the least work; it knows nothing of the code.
        issue: Seconds that the issue slots alone ask for, of the instructions of all passes.
        cycles: Of one pass through the interior loop.
        resident: Blocks that share a multiprocessor in it.
        launched: Waves and tail.
        seconds: Predicted time of the kernel.
        reason: Why something is missing.
    """

    device: str
    floor: Floor | None
    issue: float | None
    cycles: Cycles | None
    resident: int
    launched: Launched | None
    seconds: float | None
    reason: str = ""


@dataclass(frozen=True)
class Analysis:
    """What was found; plain data, without the code's text, which may be megabytes."""

    facts: Facts
    target: str
    report: Report
    predictions: tuple[Prediction, ...]


def analyse(specimen: Specimen, target: Target) -> Analysis:
    """Compile, read, predict.

    Raises:
        CompileFailed: if the compiler refuses the kernel.
    """
    facts = specimen.facts
    compiled = compile_launch(specimen.launch, target)
    found = read(compiled, facts)
    predictions = tuple(predict(facts, found, device) for device in devices_of(target.name))
    found = replace(found, compiled=replace(compiled, code="", ttgir="", ptx=""))
    return Analysis(facts, target.name, found, predictions)


def read(compiled: Compiled, facts: Facts) -> Report:
    """The report of a launch's code."""
    return report(
        compiled,
        scores=facts.scores,
        flops=facts.flops,
        masked_scores=facts.masked_scores,
        has_whole=facts.has_whole,
        steps=facts.steps,
        step_bytes=facts.step_bytes,
        tensors=facts.tensors,
    )


def predict(facts: Facts, found: Report, device: Device) -> Prediction:
    """The model's figures for one device."""
    blocks = found.occupancy.blocks
    body = _cycles(found, found.interior, facts, device)
    stretches = _stretches(facts, found, device)
    least = None if facts.work is None else floor(facts.work, device, facts.dtype)
    if blocks < 1 or stretches is None:
        reason = "how often a program runs its loop is not known"
        if blocks < 1:
            reason = f"no block fits on a multiprocessor ({found.occupancy.limiter})"
        return Prediction(device.id, least, None, body, blocks, None, None, reason)
    share = facts.programs / (device.units * device.clock)  # seconds for a cycle of each program
    issue, matrix = (
        share * sum(times * part.pipes[pipe] for part, times in stretches)
        for pipe in ("issue", "mma")
    )
    seconds = None
    if least is not None:
        total = grid_cycles(facts.programs, blocks, device, stretches)
        seconds = max(
            total / device.clock,
            matrix / PRACTICAL_MMA,
            least.seconds["bytes"] / PRACTICAL_BANDWIDTH,
        )
    return Prediction(
        device=device.id,
        floor=least,
        issue=issue,
        cycles=body,
        resident=blocks,
        launched=launched(facts.programs, blocks, device),
        seconds=seconds,
        reason="" if facts.work else "how many bytes this kernel has to move is not known",
    )


def _stretches(facts: Facts, found: Report, device: Device) -> list[tuple[Cycles, float]] | None:
    """Stretches of code with how often a program runs each; None if that is unknown."""
    if not found.loops and not found.straight:
        return None
    if not found.loops:
        return [(_cycles(found, found.whole, facts, device), 1.0)]
    if facts.whole is None:
        return None
    rest = found.whole.counts
    for loop in found.loops:
        rest = _without(rest, loop.counts)
    once = cycles(rest, found.compiled, device, dtype=facts.dtype)
    masked, whole = found.boundary or found.interior, facts.whole
    if facts.steps > 1 and facts.scores and found.interior.scores:  # perhaps unrolled
        whole *= facts.scores / found.interior.scores
    return [
        (once, 1.0),
        (_cycles(found, found.interior, facts, device), whole),
        (_cycles(found, masked, facts, device), facts.masked),
    ]


def _cycles(found: Report, loop: LoopCost, facts: Facts, device: Device) -> Cycles:
    return cycles(loop.counts, found.compiled, device, flops=loop.flops, dtype=facts.dtype)


def _without(counts: Counts, part: Counts) -> Counts:
    """What is left of a stretch of code when a part of it is taken out."""
    pipes = {name: n - part.pipes.get(name, 0) for name, n in counts.pipes.items()}
    flops = None
    if counts.matrix_flops is not None and part.matrix_flops is not None:
        flops = counts.matrix_flops - part.matrix_flops
    return replace(
        counts,
        total=counts.total - part.total,
        pipes=pipes,
        matrix_flops=flops,
        exponentials=counts.exponentials - part.exponentials,
        shared=counts.shared - part.shared,
    )
