"""Pieces of the scores: query rows with the keys they touch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Index = slice | Tensor  # rows or keys of a tile: a contiguous run, or positions (int64)


@dataclass(frozen=True, eq=False)
class Tile:
    """Query rows, and the keys that at least one of them may see.

    `whole` is true where every row sees every one of the keys, so that no mask has to be applied.
    Rows are row numbers (0 .. n_q), not positions. Tiles of one mask with equal patterns hide equal
    cells, so that what is hidden has to be worked out once.
    """

    rows: Index
    keys: Index
    whole: bool
    pattern: tuple[int, ...] | None = None


def positions(index: Index) -> Tensor:
    """The integers an index stands for, int64."""
    if isinstance(index, slice):
        return torch.arange(index.start, index.stop)
    return index


def row_slices(n_q: int, rows: int) -> Iterator[slice]:
    """Cut 0 .. n_q into runs of `rows`, the last one shorter."""
    for start in range(0, n_q, rows):
        yield slice(start, min(start + rows, n_q))
