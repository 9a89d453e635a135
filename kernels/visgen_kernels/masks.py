"""What a query may see.

`visible(i, j)` is the definition of every mask: may query i see key j? Positions count along the
attended axis. With n_q queries and n_k keys, query row r stands at position i = r + n_k - n_q
(bottom-right aligned), so that a short block of queries at the end of a long memory sees what the
same rows of the full square would see.

`tiles` says the same in pieces: which keys a group of query rows can see at all, so that nothing is
computed for keys that are hidden from the whole group.

| mask | visible(i, j) |
|---|---|
| Full() | always |
| Causal(group) | j // group <= i // group |
| SlidingWindow(radius, global_tokens) | abs(i - j) <= radius or j < global_tokens |
| Blocks1d(block) | j <= i and j >= (i // block - 1) * block   (masked_local_attention_1d) |
| Blocks2d(map, query, flange) | causal inside the query block; all of the strips above and left |
| BlockList(offsets, columns, block) | the key's block is listed for the query's block and j <= i |
| SameGroup(ids) | ids[i] == ids[j], one id per token of a sample (Swin's shifted windows) |

SameGroup alone differs between the sequences of a sample; there i and j count tokens of the
sample's grid in raster order. `visible` below gives every mask by rows and keys of the sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.block_list import BlockList
from visgen_kernels.layouts import Layout
from visgen_kernels.same_group import SameGroup
from visgen_kernels.tiles import Index, Tile, row_slices


@dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    def check(self, n_q: int, n_k: int) -> None:
        """Raise ValueError where the mask does not fit the lengths."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """May query i see key j? Integer tensors that broadcast -> bool."""
        return torch.ones(torch.broadcast_shapes(i.shape, j.shape), dtype=torch.bool)

    def pairs(self, n_q: int, n_k: int) -> int:
        """How many (query, key) pairs are visible."""
        return n_q * n_k

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        """Groups of at most `rows` query rows with the keys they touch; rows are covered once."""
        for piece in row_slices(n_q, rows):
            yield Tile(piece, slice(0, n_k), whole=True)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        """Can a query be left without any visible key, hidden by nothing but the mask?"""
        return False

    def encode(self) -> list[int]:
        """The mask as integers, for the operator's schema."""
        return [0]


@dataclass(frozen=True)
class Causal:
    """A query sees its own group of keys and the groups before it.

    group 1 is the usual causal mask; group = tokens per frame is causal over whole frames.
    """

    group: int = 1

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"Causal(group={self.group}): a group holds at least one token.")

    def check(self, n_q: int, n_k: int) -> None: ...

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return _floor(j, self.group) <= _floor(i, self.group)

    def _end(self, i: int, n_k: int) -> int:
        return min(n_k, max(0, (i // self.group + 1) * self.group))

    def pairs(self, n_q: int, n_k: int) -> int:
        return sum(self._end(row + n_k - n_q, n_k) for row in range(n_q))

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        for piece in row_slices(n_q, rows):
            first, last = piece.start + n_k - n_q, piece.stop - 1 + n_k - n_q
            end = self._end(last, n_k)
            yield Tile(piece, slice(0, end), whole=self._end(first, n_k) == end)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        return n_q > n_k  # else every query has a key at its own position

    def encode(self) -> list[int]:
        return [1, self.group]


@dataclass(frozen=True)
class SlidingWindow:
    """A query sees `radius` keys on either side of itself, and the first `global_tokens` keys.

    Longformer's `attention_window` w is radius = w // 2 here. Queries that see everything (a class
    token with its own projections) are a second call with Full().
    """

    radius: int
    global_tokens: int = 0

    def __post_init__(self) -> None:
        if self.radius < 0 or self.global_tokens < 0:
            raise ValueError(
                f"SlidingWindow(radius={self.radius}, global_tokens={self.global_tokens}): "
                "neither may be negative."
            )

    def check(self, n_q: int, n_k: int) -> None: ...

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return ((i - j).abs() <= self.radius) | (j < self.global_tokens)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: with many more than the window most scores would be hidden."""
        return max(64, 2 * self.radius)

    def _span(self, i: int, n_k: int) -> tuple[int, int]:
        return max(0, min(i - self.radius, n_k)), max(0, min(i + self.radius + 1, n_k))

    def pairs(self, n_q: int, n_k: int) -> int:
        total, head = 0, min(self.global_tokens, n_k)
        for row in range(n_q):
            start, stop = self._span(row + n_k - n_q, n_k)
            total += max(0, stop - max(start, head)) + head
        return total

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        head = min(self.global_tokens, n_k)
        for piece in row_slices(n_q, max(1, min(rows, self.tile_rows))):
            start = self._span(piece.start + n_k - n_q, n_k)[0]
            stop = max(start, self._span(piece.stop - 1 + n_k - n_q, n_k)[1])
            if start <= head:
                keys: Index = slice(0, max(stop, head))
            else:
                keys = torch.cat([torch.arange(head), torch.arange(start, stop)])
            apart = piece.start - start
            pattern = (piece.stop - piece.start, stop - start, apart) if start > head else None
            yield Tile(piece, keys if head else slice(start, stop), whole=False, pattern=pattern)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        return n_q > n_k  # else every query has a key at its own position

    def encode(self) -> list[int]:
        return [2, self.radius, self.global_tokens]


@dataclass(frozen=True)
class Blocks1d:
    """Causal, and no further back than the start of the previous block (Image Transformer, 1-D)."""

    block: int

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"Blocks1d(block={self.block}): a block holds at least one token.")

    def check(self, n_q: int, n_k: int) -> None: ...

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (j >= (_floor(i, self.block) - 1) * self.block)

    def _span(self, i: int, n_k: int) -> tuple[int, int]:
        return max(0, (i // self.block - 1) * self.block), max(0, min(i + 1, n_k))

    def pairs(self, n_q: int, n_k: int) -> int:
        spans = (self._span(row + n_k - n_q, n_k) for row in range(n_q))
        return sum(max(0, stop - start) for start, stop in spans)

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        for piece in row_slices(n_q, min(rows, self.block)):
            start = self._span(piece.start + n_k - n_q, n_k)[0]
            stop = max(start, self._span(piece.stop - 1 + n_k - n_q, n_k)[1])
            pattern, (first, last) = None, (piece.start + n_k - n_q, piece.stop - 1 + n_k - n_q)
            if first // self.block == last // self.block:
                # Rows of one block: all of the keys reach back far enough.
                pattern = (piece.stop - piece.start, stop - start, piece.start - start)
            yield Tile(piece, slice(start, stop), whole=False, pattern=pattern)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        return n_q > n_k  # else every query has a key at its own position

    def encode(self) -> list[int]:
        return [3, self.block]


@dataclass(frozen=True)
class Blocks2d:
    """Blocks of a map, causal inside, with a memory above and left (Image Transformer, 2-D).

    All three are (rows, columns); tokens are in raster order of the map. A query in the block whose
    first token is (y0, x0) sees: the block's tokens up to itself in the block's raster order; the
    strip of flange rows above the block, from x0 - flange columns to the block's end + flange
    columns; and the strip of flange columns to the left of the block, over all the block's rows.
    """

    map: tuple[int, int]
    query: tuple[int, int]
    flange: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.map, *self.query) < 1 or min(self.flange) < 0:
            raise ValueError(f"{self}: map and query sides are at least 1, flanges at least 0.")

    def check(self, n_q: int, n_k: int) -> None:
        tokens = self.map[0] * self.map[1]
        if (n_q, n_k) != (tokens, tokens):
            raise ValueError(
                f"Blocks2d has a map of {self.map[0]} x {self.map[1]} = {tokens} tokens, got "
                f"{n_q} queries and {n_k} keys; pass the map's true size."
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        (rows, cols), (above, left) = self.query, self.flange
        iy, ix = _floor(i, self.map[1]), i % self.map[1]
        jy, jx = _floor(j, self.map[1]), j % self.map[1]
        y0, x0 = _floor(iy, rows) * rows, _floor(ix, cols) * cols
        same_rows = (jy >= y0) & (jy < y0 + rows)
        inside = same_rows & (jx >= x0) & (jx < x0 + cols)
        earlier = (jy < iy) | ((jy == iy) & (jx <= ix))
        top = (jy >= y0 - above) & (jy < y0) & (jx >= x0 - left) & (jx < x0 + cols + left)
        side = same_rows & (jx >= x0 - left) & (jx < x0)
        return (inside & earlier) | top | side

    def _blocks(self) -> Iterator[tuple[range, range, range, range, range]]:
        """Rows and columns of each block, of its top strip's rows and columns, its left columns."""
        (height, width), (rows, cols), (above, left) = self.map, self.query, self.flange
        for y in range(0, height, rows):
            for x in range(0, width, cols):
                ys, xs = range(y, min(y + rows, height)), range(x, min(x + cols, width))
                top = range(max(0, y - above), y)
                wide = range(max(0, x - left), min(width, x + cols + left))
                yield ys, xs, top, wide, range(max(0, x - left), x)

    def pairs(self, n_q: int, n_k: int) -> int:
        total = 0
        for ys, xs, top, wide, side in self._blocks():
            tokens = len(ys) * len(xs)
            total += tokens * (tokens + 1) // 2
            total += tokens * (len(top) * len(wide) + len(ys) * len(side))
        return total

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        raster = torch.arange(n_k).view(self.map)
        for ys, xs, top, wide, side in self._blocks():
            block = raster[ys.start : ys.stop, xs.start : xs.stop].reshape(-1)
            strips = (
                raster[top.start : top.stop, wide.start : wide.stop].reshape(-1),
                raster[ys.start : ys.stop, side.start : side.stop].reshape(-1),
            )
            for piece in row_slices(len(block), rows):
                keys = torch.cat([*strips, block[: piece.stop]])
                sizes = (len(ys), len(xs), len(top), len(wide), len(side), piece.start, piece.stop)
                pattern = (*sizes, xs.start - wide.start)
                yield Tile(block[piece], keys.sort().values, whole=False, pattern=pattern)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        return False  # every query sees itself

    def encode(self) -> list[int]:
        return [4, *self.map, *self.query, *self.flange]


Mask = Full | Causal | SlidingWindow | Blocks1d | Blocks2d | BlockList | SameGroup


def visible(mask: Mask, layout: Layout, rows: Tensor, keys: Tensor, shift: int) -> Tensor:
    """May a query row see a key? (1 or sequences of one sample, rows, keys) bool.

    rows, keys: numbers along the sequence, int64; shift = n_k - n_q. One entry stands for all
    sequences alike.
    """
    if isinstance(mask, SameGroup):
        ids = mask.sequences(layout)
        return ids[:, rows.to(ids.device), None] == ids[:, None, keys.to(ids.device)]
    return mask.visible(rows[:, None] + shift, keys[None]).expand(1, len(rows), len(keys))


def one_tile(mask: Mask, n_q: int) -> bool:
    """Does `tiles` take all rows and keys together, if so many rows are wanted?"""
    if isinstance(mask, SlidingWindow):
        return n_q <= mask.tile_rows
    return isinstance(mask, Full | Causal | SameGroup) or (
        isinstance(mask, Blocks1d) and n_q <= mask.block
    )


def reach(mask: Mask, n_k: int) -> int:
    """Most keys of a tile whose rows are as many as `tiles` was asked for."""
    return min(n_k, 2 * mask.block) if isinstance(mask, Blocks1d) else n_k


def tensors(mask: Mask) -> tuple[Tensor | None, Tensor | None]:
    """The mask's tensors, which travel beside its integers: offsets and entries."""
    if isinstance(mask, BlockList):
        return mask.offsets, mask.columns
    return None, mask.ids if isinstance(mask, SameGroup) else None


def decode(code: Sequence[int], offsets: Tensor | None, entries: Tensor | None) -> Mask:
    """The mask that `encode` wrote as integers and `tensors` gave the tensors of."""
    if code[0] == 0:
        return Full()
    if code[0] == 1:
        return Causal(code[1])
    if code[0] == 2:
        return SlidingWindow(code[1], code[2])
    if code[0] == 3:
        return Blocks1d(code[1])
    if code[0] == 4:
        return Blocks2d((code[1], code[2]), (code[3], code[4]), (code[5], code[6]))
    if entries is None or (code[0] == 5 and offsets is None):
        raise ValueError("a BlockList needs its offsets and columns, a SameGroup its ids.")
    if code[0] == 5 and offsets is not None:
        return BlockList(offsets, entries, code[1])
    return SameGroup(entries)


def visible_pairs(
    code: Sequence[int], entries: Tensor | None, layout: Layout, grid: Sequence[int], n_k: int
) -> int:
    """Visible pairs of an encoded mask in all sequences of one sample with the queries' grid.

    Raises ValueError for a SameGroup whose ids have no content.
    """
    if code[0] == 5:
        return layout.sequences(grid) * code[2]
    mask = decode(code, None, entries)
    if isinstance(mask, SameGroup):
        return mask.pairs_under(layout)
    return layout.sequences(grid) * mask.pairs(layout.length(grid), n_k)


def _floor(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")
