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
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

Index = slice | Tensor  # rows or keys of a tile: a contiguous run, or positions (int64)


@dataclass(frozen=True, eq=False)
class Tile:
    """Query rows, and the keys that at least one of them may see.

    `whole` is true where every row sees every one of the keys, so that no mask has to be applied.
    Rows are row numbers (0 .. n_q), not positions.
    """

    rows: Index
    keys: Index
    whole: bool


def positions(index: Index) -> Tensor:
    """The integers an index stands for, int64."""
    if isinstance(index, slice):
        return torch.arange(index.start, index.stop)
    return index


def _row_slices(n_q: int, rows: int) -> Iterator[slice]:
    for start in range(0, n_q, rows):
        yield slice(start, min(start + rows, n_q))


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
        for piece in _row_slices(n_q, rows):
            yield Tile(piece, slice(0, n_k), whole=True)

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
        for piece in _row_slices(n_q, rows):
            first, last = piece.start + n_k - n_q, piece.stop - 1 + n_k - n_q
            end = self._end(last, n_k)
            yield Tile(piece, slice(0, end), whole=self._end(first, n_k) == end)

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
        # Rows much wider than the window would compute mostly hidden scores.
        for piece in _row_slices(n_q, max(1, min(rows, max(32, 2 * self.radius)))):
            start = self._span(piece.start + n_k - n_q, n_k)[0]
            stop = max(start, self._span(piece.stop - 1 + n_k - n_q, n_k)[1])
            if start <= head:
                keys: Index = slice(0, max(stop, head))
            else:
                keys = torch.cat([torch.arange(head), torch.arange(start, stop)])
            yield Tile(piece, keys if head else slice(start, stop), whole=False)

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
        for piece in _row_slices(n_q, min(rows, self.block)):
            start = self._span(piece.start + n_k - n_q, n_k)[0]
            stop = self._span(piece.stop - 1 + n_k - n_q, n_k)[1]
            yield Tile(piece, slice(start, max(start, stop)), whole=False)

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
            for piece in _row_slices(len(block), rows):
                keys = torch.cat([*strips, block[: piece.stop]])
                yield Tile(block[piece], keys.sort().values, whole=False)

    def encode(self) -> list[int]:
        return [4, *self.map, *self.query, *self.flange]


@dataclass(frozen=True, eq=False)
class BlockList:
    """Key blocks listed per query block, causal on top.

    offsets (query blocks + 1,) and columns (listed,) are int32 in CSR form: query block r sees key
    blocks columns[offsets[r] : offsets[r + 1]], in increasing order, and in them keys j <= i.
    """

    offsets: Tensor
    columns: Tensor
    block: int = 32
    _lists: tuple[tuple[int, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts, columns = self.offsets.tolist(), self.columns.tolist()
        if self.block < 1 or not starts or starts[0] != 0 or starts[-1] != len(columns):
            raise ValueError(
                f"BlockList: offsets run from 0 to {len(columns)} (the number of columns), block "
                f"is at least 1; got offsets {starts[:1]}..{starts[-1:]}, block {self.block}."
            )
        lists = tuple(tuple(columns[a:b]) for a, b in pairwise(starts))
        for row, listed in enumerate(lists):
            if list(listed) != sorted(set(listed)) or (listed and listed[0] < 0):
                raise ValueError(
                    f"BlockList: the key blocks of query block {row} are {listed}; list each "
                    "once, in increasing order, from 0."
                )
        object.__setattr__(self, "_lists", lists)

    @staticmethod
    def strided(t: int, h: int, w: int, block: int = 32) -> BlockList:
        """VideoGPT's strided layout for t x h x w latent tokens (arXiv:2104.10157).

        A query block sees itself, the four blocks before it, and for every axis of the grid of
        blocks but the last all earlier blocks whose other coordinates are equal. The grid of
        blocks folds axes from the last until they hold more than one block: 4 x 32 x 32 tokens
        are a grid of 4 x 32 blocks.
        """
        tokens = t * h * w
        if tokens % block:
            raise ValueError(
                f"BlockList.strided: {t} x {h} x {w} = {tokens} tokens are not a multiple of "
                f"the block of {block}."
            )
        lists = _strided_lists(_block_grid((t, h, w), block))
        offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0).to(torch.int32)
        columns = torch.tensor([c for listed in lists for c in listed], dtype=torch.int32)
        return BlockList(offsets, columns, block)

    def check(self, n_q: int, n_k: int) -> None:
        tokens = len(self._lists) * self.block
        if (n_q, n_k) != (tokens, tokens):
            raise ValueError(
                f"BlockList lists {len(self._lists)} blocks of {self.block} queries, that is "
                f"{tokens} tokens; got {n_q} queries and {n_k} keys."
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        blocks = len(self._lists)
        listed = torch.zeros(blocks, blocks, dtype=torch.bool)
        for row, columns in enumerate(self._lists):
            listed[row, [c for c in columns if c < blocks]] = True
        return listed[_floor(i, self.block), _floor(j, self.block)] & (j <= i)

    def pairs(self, n_q: int, n_k: int) -> int:
        before = sum(c < row for row, columns in enumerate(self._lists) for c in columns)
        own = sum(row in columns for row, columns in enumerate(self._lists))
        return before * self.block**2 + own * self.block * (self.block + 1) // 2

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        within = torch.arange(self.block)
        for row, columns in enumerate(self._lists):
            starts = torch.tensor([c for c in columns if c <= row], dtype=torch.int64)
            keys = (starts[:, None] * self.block + within).reshape(-1)
            yield Tile(slice(row * self.block, (row + 1) * self.block), keys, whole=False)

    def encode(self) -> list[int]:
        # The count travels too: on the meta device offsets and columns have no content.
        return [5, self.block, self.pairs(0, 0)]


Mask = Full | Causal | SlidingWindow | Blocks1d | Blocks2d | BlockList


def decode(code: Sequence[int], offsets: Tensor | None, columns: Tensor | None) -> Mask:
    """The mask that `encode` wrote as integers; BlockList's tensors travel beside them."""
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
    if offsets is None or columns is None:
        raise ValueError("a BlockList needs its offsets and columns.")
    return BlockList(offsets, columns, code[1])


def visible_pairs(code: Sequence[int], n_q: int, n_k: int) -> int:
    """Visible pairs of an encoded mask."""
    return code[2] if code[0] == 5 else decode(code, None, None).pairs(n_q, n_k)


def _floor(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")


def _block_grid(sizes: tuple[int, ...], block: int) -> tuple[int, ...]:
    """The grid of blocks: fold axes from the last until they hold more than one block."""
    inner, axis = 1, len(sizes)
    while inner <= block and axis:
        axis -= 1
        inner *= sizes[axis]
    if inner % block:
        raise ValueError(f"a block of {block} tokens does not divide the last axes of {sizes}.")
    return (*sizes[:axis], inner // block)


def _strided_lists(grid: tuple[int, ...]) -> list[list[int]]:
    """Key blocks of every query block, increasing, own block last."""
    total = 1
    for size in grid:
        total *= size
    lists = []
    for row in range(total):
        listed = set(range(max(0, row - 4), row + 1))
        stride = total
        for size in grid[:-1]:
            stride //= size
            coordinate = row // stride % size
            listed.update(row - step * stride for step in range(1, coordinate + 1))
        lists.append(sorted(listed))
    return lists
