"""Key blocks listed per query block: sparse attention over long sequences (VideoGPT)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from visgen_kernels.tiles import Tile


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
        # On the CPU also where models are built under torch.device("meta"): lists are content.
        counts = torch.tensor([0, *(len(x) for x in lists)], device="cpu")
        columns = [c for listed in lists for c in listed]
        return BlockList(
            counts.cumsum(0).to(torch.int32),
            torch.tensor(columns, dtype=torch.int32, device="cpu"),
            block,
        )

    def check(self, n_q: int, n_k: int) -> None:
        tokens = len(self._lists) * self.block
        if (n_q, n_k) != (tokens, tokens):
            raise ValueError(
                f"BlockList lists {len(self._lists)} blocks of {self.block} queries, that is "
                f"{tokens} tokens; got {n_q} queries and {n_k} keys."
            )

    def listed(self) -> Tensor:
        """Is key block c listed for query block r? (blocks, blocks) bool, on the CPU."""
        blocks = len(self._lists)
        listed = torch.zeros(blocks, blocks, dtype=torch.bool, device="cpu")
        for row, columns in enumerate(self._lists):
            listed[row, [c for c in columns if c < blocks]] = True
        return listed

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        blocks = (torch.div(x, self.block, rounding_mode="floor") for x in (i, j))
        return self.listed()[tuple(blocks)] & (j <= i)

    def pairs(self, n_q: int, n_k: int) -> int:
        before = sum(c < row for row, columns in enumerate(self._lists) for c in columns)
        own = sum(row in columns for row, columns in enumerate(self._lists))
        return before * self.block**2 + own * self.block * (self.block + 1) // 2

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        within = torch.arange(self.block)
        for row, columns in enumerate(self._lists):
            starts = torch.tensor([c for c in columns if c <= row], dtype=torch.int64)
            keys = (starts[:, None] * self.block + within).reshape(-1)
            piece = slice(row * self.block, (row + 1) * self.block)
            own = row in columns  # then it is the last one, and alone is hidden in part
            yield Tile(piece, keys, whole=not own, pattern=(len(starts), int(own)))

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        # A row sees its own block, or all of an earlier one.
        return not all(any(c <= row for c in listed) for row, listed in enumerate(self._lists))

    def encode(self) -> list[int]:
        # The count travels too: on the meta device offsets and columns have no content.
        return [5, self.block, self.pairs(0, 0)]


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
