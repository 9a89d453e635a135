"""The static report of one compiled kernel: what it takes, and what its main loops cost.

Main loops are the innermost loops that hold a matrix instruction; a kernel without such a loop is
one pass from end to end. What the code does not say is None, and `Report.unread` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.counts import (
    Access,
    atomics,
    bulk_copies,
    by_pipe,
    exponentials,
    global_accesses,
    local_accesses,
    matrix_instructions,
    mma_flops,
    pipe_of,
    shared_bytes,
    wide_share,
)
from visgen_kernels.static.loops import Instruction, read_program
from visgen_kernels.static.occupancy import Occupancy, occupancy


@dataclass(frozen=True)
class Counts:
    """Instructions that one warp executes in a stretch of code, from its text.

    Attributes:
        total: All of them.
        pipes: By the pipe that executes them.
        matrix: Matrix instructions by mnemonic.
        matrix_flops: That one warp's matrix instructions stand for; None if they carry no shape.
        exponentials: Exponential instructions.
        accesses: Loads and stores of global memory by width.
        bulk: Copies whose size the instruction does not say.
        local: Loads and stores of local memory.
        shared: Bytes of shared memory that a lane reads and writes.
        atomics: Atomic operations on global memory.
    """

    total: int
    pipes: Mapping[str, int]
    matrix: Mapping[str, int]
    matrix_flops: float | None
    exponentials: int
    accesses: tuple[Access, ...]
    bulk: int
    local: int
    shared: int
    atomics: int

    def wide_share(self, width: int) -> float | None:
        """Share of bytes in accesses of at least `width` bytes; None if it cannot be known."""
        return None if self.bulk else wide_share(self.accesses, width)


@dataclass(frozen=True)
class LoopCost:
    """One pass of a stretch of code over one tile of scores.

    Attributes:
        counts: Of one warp.
        instructions: Lane instructions for each score: warp instructions x warps x lanes / scores;
            None where the number of scores is unknown, as are the next two.
        exponentials: The same for exponentials; above 1.1 warps repeat each other.
        mma_ratio: Matrix FLOPs executed / needed; None also where mnemonics carry no shape.
    """

    counts: Counts
    instructions: float | None
    exponentials: float | None
    mma_ratio: float | None

    @property
    def pipes(self) -> Mapping[str, int]:
        """Warp instructions by pipe."""
        return self.counts.pipes


@dataclass(frozen=True)
class Report:
    """What a compiled kernel takes and does.

    Attributes:
        compiled: The code.
        occupancy: Of a multiprocessor.
        whole: The whole code, each instruction once, as if it were one pass.
        loops: Main loops in the code's order.
        scores: That one pass of a main loop computes; None if unknown.
        flops: Matrix FLOPs that one pass needs; None if unknown.
        unread: Why something is None, by its name here.
    """

    compiled: Compiled
    occupancy: Occupancy
    whole: LoopCost
    loops: tuple[LoopCost, ...]
    scores: float | None = None
    flops: float | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def interior(self) -> LoopCost:
        """The loop over tiles that every row sees whole; without loops the whole code.

        Of the loops with the most matrix work (masked tiles may be taken in pieces) the cheapest.
        """
        if not self.loops:
            return self.whole
        return max(self.loops, key=lambda loop: (_matrix_work(loop.counts), -loop.counts.total))

    @property
    def boundary(self) -> LoopCost | None:
        """Of the others, over tiles that are masked score by score, the dearest; None without."""
        others = [loop for loop in self.loops if loop is not self.interior]
        return max(others, key=lambda loop: loop.counts.total, default=None)


def _matrix_work(counts: Counts) -> float:
    """Matrix FLOPs, or where mnemonics carry no shape the number of matrix instructions."""
    if counts.matrix_flops is not None:
        return counts.matrix_flops
    return sum(counts.matrix.values())


def report(
    compiled: Compiled, *, scores: float | None = None, flops: float | None = None
) -> Report:
    """Read a kernel whose main loop computes `scores` scores with `flops` matrix FLOPs a pass."""
    amd = compiled.target.is_amd
    program = read_program(compiled.code, amd=amd)
    loops = program.innermost(lambda one: pipe_of(one, amd=amd) == "mma")
    whole = _cost(program.instructions, compiled, scores, flops)
    return Report(
        compiled=compiled,
        occupancy=occupancy(compiled),
        whole=whole,
        loops=tuple(_cost(loop.instructions, compiled, scores, flops) for loop in loops),
        scores=scores,
        flops=flops,
        unread=_unread(whole.counts, bool(loops), scores),
    )


def count(instructions: tuple[Instruction, ...], *, amd: bool) -> Counts:
    """Counts of a stretch of code."""
    return Counts(
        total=len(instructions),
        pipes=dict(by_pipe(instructions, amd=amd)),
        matrix=dict(matrix_instructions(instructions, amd=amd)),
        matrix_flops=mma_flops(instructions, amd=amd),
        exponentials=exponentials(instructions, amd=amd),
        accesses=global_accesses(instructions, amd=amd),
        bulk=bulk_copies(instructions, amd=amd),
        local=local_accesses(instructions, amd=amd),
        shared=shared_bytes(instructions, amd=amd),
        atomics=atomics(instructions, amd=amd),
    )


def _cost(
    code: tuple[Instruction, ...], compiled: Compiled, scores: float | None, flops: float | None
) -> LoopCost:
    counts = count(code, amd=compiled.target.is_amd)
    lanes = compiled.warps * compiled.target.warp
    executed = counts.matrix_flops
    return LoopCost(
        counts=counts,
        instructions=counts.total * lanes / scores if scores else None,
        exponentials=counts.exponentials * lanes / scores if scores else None,
        mma_ratio=executed * compiled.warps / flops if executed is not None and flops else None,
    )


def _unread(whole: Counts, loops: bool, scores: float | None) -> dict[str, str]:
    reasons = {}
    if not whole.matrix:
        reasons["loops"] = "no matrix instruction, so no main loop is known; counts are the whole's"
    elif not loops:
        reasons["loops"] = "matrix instructions stand in no loop; counts are the whole kernel's"
    if whole.matrix and whole.matrix_flops is None:
        unknown = ", ".join(sorted(whole.matrix))
        reasons["mma_ratio"] = f"the mnemonic carries no shape ({unknown})"
    if scores is None:
        reasons["instructions"] = "the number of scores (results) of one pass was not given"
    if whole.bulk:
        reasons["wide_share"] = f"{whole.bulk} bulk copies (TMA) do not say their size"
    elif not whole.accesses:
        reasons["wide_share"] = "no load or store of global memory was found"
    return reasons
