"""Masks as lists of tiles: which tiles of keys a tile of queries meets, and the reverse.

Where no formula gives a contiguous range of keys (2-D blocks of a map, listed blocks), the kernels
walk such lists. A tile is `whole` where every query of it sees every key of it; the others are
masked score by score. For 2-D blocks tokens are numbered block by block (`block_major`), so that a
tile of queries lies inside one block and meets few keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from visgen_kernels.masks import BlockList, Blocks2d, decode


@dataclass(frozen=True, eq=False)
class TileLists:
    """CSR lists, int32: tile r meets columns[starts[r] : starts[r+1]], whole ones before splits[r].

    `tiles` is how many tiles r there are, the last one filled up with absent tokens.
    """

    tiles: int
    starts: Tensor
    splits: Tensor
    columns: Tensor


def block_major(mask: Blocks2d) -> Tensor:
    """Raster position of every block-major number, int64; -1 where a block leaves the map."""
    (height, width), (rows, cols) = mask.map, mask.query
    down, across = triton.cdiv(height, rows), triton.cdiv(width, cols)
    number = torch.arange(down * across * rows * cols)
    block, inside = number // (rows * cols), number % (rows * cols)
    y = block // across * rows + inside // cols
    x = block % across * cols + inside % cols
    return torch.where((y < height) & (x < width), y * width + x, -1)


def tile_lists(
    mask: Blocks2d | BlockList,
    n_q: int,
    n_k: int,
    rows: int,
    keys: int,
    *,
    of_keys: bool,
    device: torch.device,
) -> TileLists:
    """Lists of the tiles of keys that tiles of `rows` queries meet; of_keys: the reverse."""
    tensors = (mask.offsets, mask.columns) if isinstance(mask, BlockList) else ()
    content = tuple(tuple(x.tolist()) for x in tensors)
    return _cached(tuple(mask.encode()), content, n_q, n_k, rows, keys, of_keys, device)


@lru_cache(maxsize=64)
def _cached(
    code: tuple[int, ...],
    content: tuple[tuple[int, ...], ...],
    n_q: int,
    n_k: int,
    rows: int,
    keys: int,
    of_keys: bool,
    device: torch.device,
) -> TileLists:
    offsets, columns = (torch.tensor(x, dtype=torch.int32) for x in content or ((), ()))
    mask = decode(code, offsets, columns)
    if isinstance(mask, Blocks2d):
        i = j = block_major(mask)
    else:
        i, j = torch.arange(n_q), torch.arange(n_k)
    some, every = _meetings(mask, _padded(i, rows), _padded(j, keys), rows, keys)
    if of_keys:
        some, every = some.T, every.T
    starts, splits, listed = [0], [], []
    for meets, whole in zip(some, every, strict=True):
        found = [*whole.nonzero().flatten(), *(meets & ~whole).nonzero().flatten()]
        splits.append(starts[-1] + int(whole.sum()))
        starts.append(starts[-1] + len(found))
        listed += [int(x) for x in found]
    arrays = (torch.tensor(x or [0], dtype=torch.int32) for x in (starts, splits, listed))
    return TileLists(len(some), *(x.to(device) for x in arrays))


def _padded(positions: Tensor, block: int) -> Tensor:
    return torch.nn.functional.pad(positions, (0, -len(positions) % block), value=-1)


def _meetings(mask: object, i: Tensor, j: Tensor, rows: int, keys: int) -> tuple[Tensor, Tensor]:
    """(query tiles, key tiles) bool: some pair of them is visible, every pair is."""
    some, every = [], []
    for tile in i.split(rows):  # one tile at a time: the whole square may be 2^26 scores
        seen = mask.visible(tile.clamp(min=0)[:, None], j.clamp(min=0)[None])  # type: ignore[attr-defined]
        seen = seen & (tile >= 0)[:, None] & (j >= 0)[None]
        pieces = seen.unflatten(1, (-1, keys))
        some.append(pieces.any(2).any(0))
        every.append(pieces.all(2).all(0))
    return torch.stack(some), torch.stack(every)
