"""How often a program goes through its main loop: the tiles that a mask lets it meet.

A tile of one side meets those tiles of the other side with a visible pair in them. Where all pairs
are visible the loop without mask code runs, else the one that masks score by score.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional
from torch import Tensor

from visgen_kernels.attention.tile_lists import block_major
from visgen_kernels.masks import BlockList, Blocks2d, Mask, SameGroup
from visgen_kernels.shapes import Shape


@dataclass(frozen=True)
class Passes:
    """Of one sequence and head.

    Attributes:
        programs: Tiles of the side that programs own.
        whole: Passes of a program over tiles without a hidden pair, on average.
        masked: Passes over pieces of tiles that are masked, on average.
    """

    programs: int
    whole: float
    masked: float


@functools.cache
def passes(
    shape: Shape, block_m: int, block_n: int, *, of_keys: bool = False, piece: int | None = None
) -> Passes:
    """Passes of a kernel whose tiles hold block_m queries and block_n keys.

    of_keys: programs own keys and walk over queries. piece: masked tiles are taken in pieces of so
    many tokens of the other side. Key lengths are taken to be full.
    """
    mask = shape.made_mask
    if isinstance(mask, Blocks2d):
        i = j = block_major(mask)
    else:
        i, j = torch.arange(shape.n_q), torch.arange(shape.n_k)
        i = i + (shape.n_k - shape.n_q)
    own, others = (j, i) if of_keys else (i, j)
    own_block, other_block = (block_n, block_m) if of_keys else (block_m, block_n)
    piece = min(piece or other_block, other_block)
    if isinstance(mask, SameGroup):  # which pairs are hidden differs between windows
        return Passes(-(-len(own) // own_block), 0.0, float(-(-len(others) // piece)))
    listed = isinstance(mask, Blocks2d | BlockList)  # then all pieces of a tile are taken
    whole = masked = 0
    tiles = own.split(own_block)
    padded = torch.nn.functional.pad(others, (0, -len(others) % other_block), value=-1)
    for tile in tiles:
        seen = _visible(mask, tile, padded, of_keys)
        pieces = seen.unflatten(1, (-1, other_block // piece, piece))
        every, some = pieces.all(3).all(2).all(0), pieces.any(3).any(0)
        if listed:
            some = some.any(1, keepdim=True).expand_as(some)
        whole += int(every.sum())
        masked += int((some & ~every[:, None]).sum())
    return Passes(len(tiles), whole / len(tiles), masked / len(tiles))


def _visible(mask: Mask, own: Tensor, others: Tensor, of_keys: bool) -> Tensor:
    """(own, others) bool; a position of -1 is no token and sees nothing."""
    tile, rest = own.clamp(min=0)[:, None], others.clamp(min=0)[None]
    seen = mask.visible(rest, tile) if of_keys else mask.visible(tile, rest)
    # A row of its own that is no token is no reason to mask.
    return (seen & (others >= 0)) | (own < 0)[:, None] & (others >= 0)
