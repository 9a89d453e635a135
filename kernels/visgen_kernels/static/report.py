"""The static report of one compiled kernel: what it takes, and what its main loops cost.

Main loops are the innermost loops that hold a matrix instruction. In code without any, they are
looked for by exponentials, then by loads, but only if it is known how many scores a pass computes;
a kernel without such a loop is one pass from end to end. What the code does not say is None, and
`Report.unread` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log2

from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.counts import (
    Moved,
    atomics,
    bulk_copies,
    by_pipe,
    exponentials,
    local_accesses,
    matrix_instructions,
    mma_flops,
    moved,
    pipe_of,
    shared_bytes,
)
from visgen_kernels.static.loops import Instruction, Loop, Program, read_program
from visgen_kernels.static.occupancy import Occupancy, occupancy
from visgen_kernels.static.pointers import Pointers, read_pointers

# Pipes of instructions that do something; loops without any wait for a barrier.
_BUSY = ("mma", "mufu", "fma", "ldg", "lds")


@dataclass(frozen=True)
class Counts:
    """Instructions that one warp executes in a stretch of code, from its text.

    Attributes:
        total: All of them.
        pipes: By the pipe that executes them.
        matrix: Matrix instructions by mnemonic.
        matrix_flops: That one warp's matrix instructions stand for; None if they carry no shape.
        exponentials: Exponential instructions.
        loads: Of global memory by width.
        stores: Of global memory by width.
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
    loads: Moved
    stores: Moved
    bulk: int
    local: int
    shared: int
    atomics: int

    def wide_share(self, width: int, *, stores: bool = False) -> float | None:
        """Of the tensors' loaded (stored) bytes, the share in accesses of at least `width` bytes.

        None if it cannot be known.
        """
        return None if self.bulk else (self.stores if stores else self.loads).wide_share(width)


@dataclass(frozen=True)
class LoopCost:
    """One pass of a stretch of code over one tile of scores.

    Attributes:
        counts: Of one warp.
        scores: That the pass computes; None: unknown, and with it the next three.
        flops: Matrix FLOPs that they need.
        instructions: Lane instructions for each score: warp instructions x warps x lanes / scores.
        exponentials: The same for exponentials; above 1.1 warps repeat each other.
        mma_ratio: Matrix FLOPs executed / needed; None also where mnemonics carry no shape.
    """

    counts: Counts
    scores: float | None
    flops: float | None
    instructions: float | None
    exponentials: float | None
    mma_ratio: float | None

    @property
    def pipes(self) -> Mapping[str, int]:
        """Warp instructions by pipe."""
        return self.counts.pipes

    @property
    def weight(self) -> float:
        """What loops are compared by: instructions for each score, or as they are."""
        return self.counts.total if self.instructions is None else self.instructions


@dataclass(frozen=True)
class Report:
    """What a compiled kernel takes and does.

    Attributes:
        compiled: The code.
        occupancy: Of a multiprocessor.
        whole: The whole code, each instruction once, as if it were one pass.
        loops: Main loops in the code's order.
        straight: Whether no other loop than these computes or moves anything.
        unread: Why something is None, by its name here.
    """

    compiled: Compiled
    occupancy: Occupancy
    whole: LoopCost
    loops: tuple[LoopCost, ...]
    straight: bool = True
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def interior(self) -> LoopCost:
        """The cheapest loop, over tiles that every row sees whole; without loops the whole code."""
        if not self.loops:
            return self.whole
        return min(self.loops, key=lambda loop: loop.weight)

    @property
    def boundary(self) -> LoopCost | None:
        """The dearest loop, over tiles that are masked score by score; None if only one."""
        if len(self.loops) < 2:
            return None
        return max(self.loops, key=lambda loop: loop.weight)


def report(
    compiled: Compiled,
    *,
    scores: float | None = None,
    flops: float | None = None,
    masked_scores: float | None = None,
    has_whole: bool = True,
    steps: int = 1,
    step_bytes: float = 0.0,
    tensors: frozenset[str] | None = None,
) -> Report:
    """Read a kernel whose main loop computes `scores` scores with `flops` matrix FLOPs a pass.

    A loop that masks may take its tiles in smaller pieces: how many scores it computes is seen from
    its matrix work against that of the largest loop. Where no loop goes over whole tiles
    (`has_whole` false), all of them compute `masked_scores`. A pass is one of `steps` steps that
    read `step_bytes` of global memory each, unless the compiler has unrolled them: then a loop
    reads what all of them read. `tensors` are the pointer arguments whose loads and stores are to
    be counted apart from those of others; None: all.
    """
    amd = compiled.target.is_amd
    program = read_program(compiled.code, amd=amd)
    loops = program.innermost(lambda one: pipe_of(one, amd=amd) == "mma")
    if not loops and scores is not None and not by_pipe(program.instructions, amd=amd)["mma"]:
        loops = _by_other_anchors(program, amd=amd)
    counted = [count(loop.instructions, amd=amd) for loop in loops]
    pointers = None if tensors is None else read_pointers(compiled.ttgir, compiled.ptx)
    every = count(program.instructions, amd=amd, pointers=pointers, tensors=tensors)
    share = masked_scores / scores if masked_scores and scores and not has_whole else 1.0
    lanes = compiled.warps * compiled.target.warp
    unrolled = [
        steps if one.loads.bytes * lanes > (steps - 0.5) * step_bytes else 1 for one in counted
    ]
    parts = [part * share * times for part, times in zip(_parts(counted), unrolled, strict=True)]
    whole = _cost(every, compiled, scores, flops)
    return Report(
        compiled=compiled,
        occupancy=occupancy(compiled),
        whole=whole,
        loops=tuple(
            _cost(one, compiled, _times(scores, part), _times(flops, part))
            for one, part in zip(counted, parts, strict=True)
        ),
        straight=bool(loops) or not program.innermost(lambda one: pipe_of(one, amd=amd) in _BUSY),
        unread=_unread(whole.counts, bool(loops), scores),
    )


def _by_other_anchors(program: Program, *, amd: bool) -> tuple[Loop, ...]:
    """Innermost loops with an exponential, or where there are none with a global access."""
    loops = program.innermost(lambda one: exponentials([one], amd=amd) > 0)
    return loops or program.innermost(lambda one: pipe_of(one, amd=amd) == "ldg")


def _parts(loops: Sequence[Counts]) -> list[float]:
    """What share of the largest loop's scores each loop computes, a power of two."""
    sizes = [one.matrix_flops for one in loops]
    known = [size for size in sizes if size]
    if len(known) < len(loops):  # mnemonics without a shape
        known = [float(one.exponentials) for one in loops]
    if not known or not all(known):
        return [1.0] * len(loops)
    return [2.0 ** round(log2(size / max(known))) for size in known]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def count(
    instructions: tuple[Instruction, ...],
    *,
    amd: bool,
    pointers: Pointers | None = None,
    tensors: frozenset[str] | None = None,
) -> Counts:
    """Counts of a stretch of code."""
    loads, stores = (
        moved(instructions, amd=amd, store=store, pointers=pointers, tensors=tensors)
        for store in (False, True)
    )
    return Counts(
        total=len(instructions),
        pipes=dict(by_pipe(instructions, amd=amd)),
        matrix=dict(matrix_instructions(instructions, amd=amd)),
        matrix_flops=mma_flops(instructions, amd=amd),
        exponentials=exponentials(instructions, amd=amd),
        loads=loads,
        stores=stores,
        bulk=bulk_copies(instructions, amd=amd),
        local=local_accesses(instructions, amd=amd),
        shared=shared_bytes(instructions, amd=amd),
        atomics=atomics(instructions, amd=amd),
    )


def _cost(
    counts: Counts, compiled: Compiled, scores: float | None, flops: float | None
) -> LoopCost:
    lanes = compiled.warps * compiled.target.warp
    executed = counts.matrix_flops
    return LoopCost(
        counts=counts,
        scores=scores,
        flops=flops,
        instructions=counts.total * lanes / scores if scores else None,
        exponentials=counts.exponentials * lanes / scores if scores else None,
        mma_ratio=executed * compiled.warps / flops if executed is not None and flops else None,
    )


def _unread(whole: Counts, loops: bool, scores: float | None) -> dict[str, str]:
    reasons = {}
    if not whole.matrix and not loops:
        reasons["loops"] = "no matrix instruction, so no main loop is known; counts are the whole's"
    elif not loops:
        reasons["loops"] = "matrix instructions stand in no loop; counts are the whole kernel's"
    if not whole.matrix:
        reasons["mma_ratio"] = "there is no matrix instruction"
    elif whole.matrix_flops is None:
        unknown = ", ".join(sorted(whole.matrix))
        reasons["mma_ratio"] = f"the mnemonic carries no shape ({unknown})"
    if scores is None:
        reasons["instructions"] = "the number of scores (results) of one pass was not given"
    for name, word, found in (
        ("wide_share", "load", whole.loads),
        ("wide_share/stores", "store", whole.stores),
    ):
        unknown = sum(access.count for access in found.unattributed)
        if whole.bulk:
            reasons[name] = f"{whole.bulk} bulk copies (TMA) do not say their size"
        elif unknown:
            reasons[name] = f"{unknown} {word}s may go through these pointers or through others"
        elif not found.tensors:
            reasons[name] = f"no {word} of global memory through these pointers was found"
    return reasons
