"""What an entry of K4's tile table stands for, and whether it is clean.

An entry is one direction on one target for sequences up to a length and head dimensions up to a
width. Clean means what it means for the other kernels (`entries`), and two blocks on a
multiprocessor up to 64 columns, so that one computes while the other loads.
"""

from __future__ import annotations

import torch

from visgen_kernels.attention.arguments import head_parts, scoring_of
from visgen_kernels.attention.short import short_backward_launch, short_forward_launch
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.masks import Causal, SlidingWindow
from visgen_kernels.static.entries import Judgement, Variant, call_of, judge_code
from visgen_kernels.static.work import tile_flops

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
KERNELS = ("short_forward", "short_backward")
_SEQUENCES, _HEADS = 4096, 8


def judge_short(
    kernel: str, target: str, length: int, d: int, variant: Variant, tile: ShortTile
) -> Judgement:
    """Compile a kernel of `KERNELS` for bf16 sequences of `length`, and read it."""
    with recorded(target):
        launch = short_launch(kernel, length, d, variant, tile)
    scores, width = float(tile.blocks * tile.length**2), sum(head_parts(d))
    flops = tile_flops(kernel, scores, width, width)
    blocks = 2 if d <= 64 else 1
    return judge_code(launch, target, scores, flops, matrix=True, blocks=blocks)


def short_launch(kernel: str, length: int, d: int, variant: Variant, tile: ShortTile) -> Launch:
    """The launch of many sequences of `length` on the meta device.

    Raises:
        ValueError: for a kernel that is not K4's.
    """
    q = torch.empty(_SEQUENCES, length, _HEADS, d, device="meta", dtype=torch.bfloat16)
    row = torch.empty(q.shape[:-1], device="meta")
    call = call_of(variant, q, MAPS[length])
    x = scoring_of(call, q, q)
    if kernel == "short_forward":
        return short_forward_launch(call, x, q, q, q, q, row, tile)
    if kernel == "short_backward":
        return short_backward_launch(call, x, q, row, q, q, q, q, q, q, call.key_bias, tile)
    raise ValueError(f'no kernel "{kernel}" computes short sequences: {", ".join(KERNELS)}.')
