"""What an entry of K4's tile table stands for, and whether it is clean.

An entry is one direction on one target for sequences up to a length and head dimensions up to a
width. Clean means what it means for the other kernels (`entries`), and two blocks on a
multiprocessor up to 64 columns, so that one computes while the other loads.
"""

from __future__ import annotations

import torch

from visgen_kernels.attention.arguments import head_parts, scoring_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short import short_backward_launch, short_forward_launch
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.layouts import Sequence
from visgen_kernels.masks import Causal, SlidingWindow
from visgen_kernels.static.compile import CompileFailed, compile_launch
from visgen_kernels.static.entries import Judgement, Variant
from visgen_kernels.static.report import report
from visgen_kernels.static.targets import TARGETS

# Map of a sequence by its length; four sequences of 4 share a block of 16, two of 8.
MAPS = {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)}
WIDTHS = (16, 32, 64, 96, 128)
VARIANTS = (
    Variant(),
    Variant(Causal(), lengths=True),
    Variant(SlidingWindow(2, 1), key_bias=True),
    Variant(bias=True),
    Variant(dropout=0.1),
)
PRODUCTS = {"short_forward": 2, "short_backward": 5}
EXPONENTIALS = 1.1
_SEQUENCES, _HEADS = 4096, 8


def judge_short(
    kernel: str,
    target: str,
    length: int,
    d: int,
    variant: Variant,
    tile: ShortTile,
) -> Judgement:
    """Compile `short_forward` or `short_backward` for bf16 sequences of `length`, and read it."""
    with recorded(target):
        launch = short_launch(kernel, length, d, variant, tile)
    scores = float(tile.blocks * tile.length**2)
    flops = 2.0 * scores * sum(head_parts(d)) * PRODUCTS[kernel]
    try:
        compiled = compile_launch(launch, TARGETS[target])
    except CompileFailed as error:
        return Judgement(fault=str(error).splitlines()[0][:80])
    found = report(compiled, scores=scores, flops=flops)
    if compiled.stack or compiled.spilled:
        size = max(compiled.stack, 4 * (compiled.spilled or 0))
        return Judgement(fault=f"spills {size} bytes", spilled=size)
    if not compiled.fits or found.occupancy.blocks < (2 if d <= 64 else 1):
        return Judgement(fault=f"{found.occupancy.blocks} blocks ({found.occupancy.limiter})")
    cost = found.interior
    if not cost.counts.matrix:
        return Judgement(fault="no matrix instruction")
    if cost.mma_ratio is not None and cost.mma_ratio > 1.01:
        return Judgement(fault=f"matrix work x {cost.mma_ratio:.2f}")
    if cost.exponentials is not None and cost.exponentials > EXPONENTIALS:
        return Judgement(fault=f"exponentials x {cost.exponentials:.2f}")
    return Judgement(cost.instructions or 0.0, found.occupancy.warps)


def short_launch(kernel: str, length: int, d: int, variant: Variant, tile: ShortTile) -> Launch:
    """The launch of many sequences of `length` on the meta device.

    Raises:
        ValueError: for a kernel that is not K4's.
    """
    shape, side = (_SEQUENCES, length, _HEADS, d), MAPS[length]
    q = torch.empty(*shape, device="meta", dtype=torch.bfloat16)
    row = torch.empty(*shape[:-1], device="meta")
    rows = (2 * side[0] - 1) * (2 * side[1] - 1)
    lengths = torch.empty(_SEQUENCES, device="meta", dtype=torch.int32)
    call = Call(
        Sequence(),
        variant.mask,
        torch.empty(rows, _HEADS, device="meta") if variant.bias else None,
        side if variant.bias else None,
        row if variant.key_bias else None,
        lengths if variant.lengths else None,
        torch.empty(1, device="meta", dtype=torch.int64) if variant.dropout else None,
        0.1,
        variant.dropout,
    )
    x = scoring_of(call, q, q)
    if kernel == "short_forward":
        return short_forward_launch(call, x, q, q, q, q, row, tile)
    if kernel == "short_backward":
        shift = row if variant.key_bias else None
        return short_backward_launch(call, x, q, row, q, q, q, q, q, q, shift, tile)
    raise ValueError(f'no kernel "{kernel}" computes short sequences: {", ".join(PRODUCTS)}.')
