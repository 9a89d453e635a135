"""What an entry of the tile table stands for, and whether it is clean.

An entry is one kernel on one target for head dimensions up to a width. It is compiled at that width
with every kind of mask and bias it stands for; clean means: nothing spilled, shared memory within
the target's limit, matrix FLOPs and exponentials of the main loop not repeated by several warps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from visgen_kernels.attention import double_backward
from visgen_kernels.attention.arguments import Scoring, head_parts, scoring_of
from visgen_kernels.attention.backward import keys_launch, keys_of, queries_launch, queries_of
from visgen_kernels.attention.bias_gradient import bias_launch, bias_plan
from visgen_kernels.attention.forward import forward_launch
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.launch import key_passes
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import Second, first_of, second_of
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.layouts import Sequence
from visgen_kernels.masks import Causal, Full, Mask, SlidingWindow
from visgen_kernels.static.compile import CompileFailed, compile_launch
from visgen_kernels.static.facts import kernel_of
from visgen_kernels.static.report import report
from visgen_kernels.static.targets import TARGETS
from visgen_kernels.static.work import tile_flops

TOKENS, HEADS, SIDE = 1024, 4, 32
# Each row's factor exp(m - m') is computed by the four lanes that share the row. With 32 keys a
# tile that alone is 1.12 for each score.
EXPONENTIALS, EXPONENTIALS_OF_32_KEYS = 1.1, 1.13


@dataclass(frozen=True)
class Variant:
    """What is added to plain attention."""

    mask: Mask = field(default_factory=Full)
    bias: bool = False
    key_bias: bool = False
    lengths: bool = False
    dropout: float = 0.0


# Causal code holds that of no mask too, and a window's with global tokens has the most loops.
PLAIN = (Variant(Causal(), lengths=True),)
RICH = (
    Variant(bias=True),
    Variant(SlidingWindow(32, 1)),
    Variant(SlidingWindow(32, 1), key_bias=True, lengths=True),
    Variant(dropout=0.1),
)
BIASED = (Variant(bias=True), Variant(bias=True, key_bias=True, lengths=True))


@dataclass(frozen=True)
class Judgement:
    """What a tile costs, or why it is not clean.

    Attributes:
        instructions: Per score of the main loop, all launches of the kernel together; None: how
            many scores a pass computes is not known.
        warps: Resident on a multiprocessor.
        fault: In words; None if the tile is clean.
    """

    instructions: float | None = None
    warps: int = 0
    fault: str | None = None


def variants_of(kernel: str, *, plain: bool) -> tuple[Variant, ...]:
    """What an entry is compiled with."""
    if kernel in ("table", "double_table"):
        return BIASED
    return PLAIN if plain else RICH


def judge(
    kernel: str, target: str, d: int, dtype: torch.dtype, variant: Variant, tile: Tile
) -> Judgement:
    """Compile a kernel at a tile, and read it."""
    total, warps = 0.0, 1024
    limit = EXPONENTIALS if tile.block_n >= 64 or kernel != "forward" else EXPONENTIALS_OF_32_KEYS
    if dtype == torch.float32:  # without matrix units rows are spread over more lanes
        limit = 4.0
    with recorded(target):
        launches = launches_of(kernel, d, dtype, variant, tile)
    for launch in launches:
        scores = float(tile.block_m * tile.block_n)
        flops = tile_flops(kernel_of(launch), scores, sum(head_parts(d)), sum(head_parts(d)))
        matrix = dtype != torch.float32
        one = judge_code(launch, target, scores, flops, exponentials=limit, matrix=matrix)
        if one.fault:
            return one
        total, warps = total + (one.instructions or 0.0), min(warps, one.warps)
    return Judgement(total, warps)


def judge_code(
    launch: Launch,
    target: str,
    scores: float | None = None,
    flops: float | None = None,
    *,
    exponentials: float = EXPONENTIALS,
    matrix: bool = False,
    blocks: int = 1,
) -> Judgement:
    """Compile a launch, and read it.

    Args:
        launch: Recorded for the target.
        target: Its name.
        scores: That a pass of the main loop computes; None: unknown, and work is not judged.
        flops: Matrix FLOPs that such a pass needs.
        exponentials: Most for each score.
        matrix: Whether there have to be matrix instructions.
        blocks: That a multiprocessor has to hold.
    """
    try:
        compiled = compile_launch(launch, TARGETS[target])
    except CompileFailed as error:
        return Judgement(fault=str(error).splitlines()[0][:80])
    found = report(compiled, scores=scores, flops=flops)
    if compiled.stack or compiled.spilled:
        return Judgement(fault=f"spills {max(compiled.stack, 4 * (compiled.spilled or 0))} bytes")
    if not compiled.fits:
        wanted = f"{compiled.shared} bytes of shared memory"
        if compiled.tensor_memory > compiled.target.tensor_memory:
            wanted = f"{compiled.tensor_memory} columns of tensor memory"
        return Judgement(fault=wanted)
    if found.occupancy.blocks < blocks:
        return Judgement(fault=f"{found.occupancy.blocks} blocks ({found.occupancy.limiter})")
    loop = found.interior
    if matrix and not loop.counts.matrix:
        return Judgement(fault="no matrix instruction")
    if loop.mma_ratio is not None and loop.mma_ratio > 1.01:
        return Judgement(fault=f"matrix work x {loop.mma_ratio:.2f}")
    if loop.exponentials is not None and loop.exponentials > exponentials:
        return Judgement(fault=f"exponentials x {loop.exponentials:.2f}")
    return Judgement(loop.instructions, found.occupancy.warps)


def call_of(variant: Variant, q: Tensor, size: tuple[int, int]) -> Call:
    """A call with a variant's mask and what it adds; q (b, n, h, d) lies on a map of `size`."""

    def new(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*sizes, device="meta", dtype=dtype)

    batch, _, heads, _ = q.shape
    table = new((2 * size[0] - 1) * (2 * size[1] - 1), heads) if variant.bias else None
    return Call(
        Sequence(),
        variant.mask,
        table,
        size if variant.bias else None,
        new(*q.shape[:-1]) if variant.key_bias else None,
        new(batch, dtype=torch.int32) if variant.lengths else None,
        new(1, dtype=torch.int64) if variant.dropout else None,
        0.1,
        variant.dropout,
    )


class _Layer:
    """Meta tensors of 1,024 tokens of 4 heads."""

    def __init__(self, d: int, dtype: torch.dtype, variant: Variant) -> None:
        self.q = torch.empty(2, TOKENS, HEADS, d, device="meta", dtype=dtype)
        self.row = torch.empty(2, TOKENS, HEADS, device="meta")
        self.call = call_of(variant, self.q, (SIDE, SIDE))
        self.needs = Needs(True, True, True, variant.bias, variant.key_bias)

    def scoring(self) -> Scoring:
        return scoring_of(self.call, self.q, self.q)

    def second(self, x: Scoring) -> Second:
        q, row, call = self.q, self.row, self.call
        first = first_of(call, q, q, q, q, row, row)
        given = Cotangents(q, q, q, call.table, call.key_bias)
        return second_of(call, x, first, given, row, row, needs_grad=True, needs=self.needs)


def launches_of(
    kernel: str, d: int, dtype: torch.dtype, variant: Variant, tile: Tile
) -> list[Launch]:
    """The launches of one kernel.

    Raises:
        ValueError: for a kernel that has no entries.
    """
    layer = _Layer(d, dtype, variant)
    q, row, call, x = layer.q, layer.row, layer.call, layer.scoring()
    keys, shift = keys_of(call, q, q), call.key_bias
    if kernel == "forward":
        return [forward_launch(call, x, None, q, q, q, q, row, tile)]
    if kernel == "queries":
        return [queries_launch(call, x, None, queries_of(call, q, q, row, row), keys, q, tile)]
    if kernel == "keys":
        launches = []
        for with_k, with_v in key_passes(layer.needs, head_parts(d), head_parts(d)):
            queries = queries_of(call, q, q, row, row, with_k=with_k, with_v=with_v)
            into = (q if with_k else None, q if with_v else None, shift if with_k else None)
            launches.append(keys_launch(call, x, None, queries, keys, *into, tile))
        return launches
    if kernel == "double_rows":
        return [double_backward.rows_launch(call, x, None, layer.second(x), q, q, tile)]
    if kernel == "double_queries":
        return [double_backward.queries_launch(call, x, None, layer.second(x), q, tile)]
    if kernel == "double_keys":
        return [double_backward.keys_launch(call, x, None, layer.second(x), q, q, shift, tile)]
    if kernel in ("table", "double_table"):
        plan = bias_plan((SIDE, SIDE), x.heads, 2, tile)
        partial = torch.empty(plan.shape, device="meta")
        first = first_of(call, q, q, q, q, row, row)
        given = layer.second(x) if kernel == "double_table" else first
        return [bias_launch(call, x, given, partial, tile)]
    raise ValueError(f'no kernel "{kernel}" has entries in the tile table.')
