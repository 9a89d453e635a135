"""The static report of one compiled kernel: what its main loops cost for each score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.counts import (
    Access,
    by_pipe,
    exponentials,
    global_accesses,
    local_accesses,
    mma_flops,
    pipe_of,
)
from visgen_kernels.static.loops import Loop, read_program
from visgen_kernels.static.occupancy import Occupancy, occupancy


@dataclass(frozen=True)
class LoopCost:
    """One pass of a main loop over one tile of scores.

    Attributes:
        instructions: Lane instructions for each score: warp instructions x warps x lanes / scores.
        exponentials: The same for exponentials; above 1.1 warps repeat each other.
        mma_ratio: Matrix FLOPs executed / needed; None where mnemonics carry no shape.
        pipes: Warp instructions by pipe.
    """

    instructions: float
    exponentials: float
    mma_ratio: float | None
    pipes: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What a compiled kernel takes and does; `loops` are its main loops in the code's order."""

    compiled: Compiled
    occupancy: Occupancy
    loops: tuple[LoopCost, ...]
    accesses: tuple[Access, ...]
    local_accesses: int
    matrix_instructions: int

    @property
    def cheapest_loop(self) -> LoopCost:
        """The loop over tiles that every row sees; ValueError if no loop was found."""
        if not self.loops:
            raise ValueError("no loop with matrix instructions was found in the code.")
        return min(self.loops, key=lambda loop: loop.instructions)


def report(compiled: Compiled, *, scores: int, flops: float) -> Report:
    """Read a kernel whose main loop computes `scores` scores with `flops` matrix FLOPs a pass."""
    amd = compiled.target.is_amd
    program = read_program(compiled.code, amd=amd)
    loops = program.innermost(lambda one: pipe_of(one, amd=amd) == "mma")
    every = program.instructions
    return Report(
        compiled=compiled,
        occupancy=occupancy(compiled),
        loops=tuple(_cost(loop, compiled, scores, flops) for loop in loops),
        accesses=global_accesses(every, amd=amd),
        local_accesses=local_accesses(every, amd=amd),
        matrix_instructions=by_pipe(every, amd=amd)["mma"],
    )


def _cost(loop: Loop, compiled: Compiled, scores: int, flops: float) -> LoopCost:
    amd, lanes = compiled.target.is_amd, compiled.warps * compiled.target.warp
    executed = mma_flops(loop.instructions, amd=amd)
    return LoopCost(
        instructions=len(loop.instructions) * lanes / scores,
        exponentials=exponentials(loop.instructions, amd=amd) * lanes / scores,
        mma_ratio=None if executed is None else executed * compiled.warps / flops,
        pipes=dict(by_pipe(loop.instructions, amd=amd)),
    )
