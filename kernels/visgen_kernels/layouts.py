"""Which axis of a tensor is attended over.

A layout turns a tensor of tokens into independent sequences and back. h heads, d head dimension;
the grid is what lies between the batch and the heads.

    Sequence          (b, n, h, d)            -> (b, n, h, d)
    Axis(dim)         (b, *grid, h, d)        -> (b * other axes, grid[dim - 1], h, d)
    Windows(r, c)     (b, y, x, h, d)         -> (b * y/r * x/c, r * c, h, d)

Everything is a chain of views; a copy is made only where the strides cannot express the result.
`unfold` never copies: it keeps the axes apart that `split` merges.
"""

from __future__ import annotations

from collections.abc import Sequence as Sizes
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """Tokens lie along one axis: q (b, n, h, d); k and v may have another n."""

    def check(self, grid: Sizes[int]) -> None:
        """Raise ValueError where the grid's sizes do not fit the layout."""
        if len(grid) != 1:
            raise ValueError(
                f"Sequence() wants tensors (b, n, h, d), got a grid of {tuple(grid)} between batch "
                "and heads; flatten it, or use Axis(dim) or Windows(rows, cols)."
            )

    def length(self, grid: Sizes[int]) -> int:
        """Tokens of one sequence."""
        return grid[0]

    def sequences(self, grid: Sizes[int]) -> int:
        """Independent sequences in one sample of the batch."""
        return 1

    def split(self, x: Tensor, axes: int) -> Tensor:
        """(b, *grid, *rest), grid of `axes` axes -> (sequences, length, *rest)."""
        return x

    def join(self, x: Tensor, batch: int, grid: Sizes[int]) -> Tensor:
        """Inverse of `split`: (sequences, length, *rest) -> (b, *grid, *rest)."""
        return x

    @property
    def length_axes(self) -> int:
        """How many axes of `unfold` make up the length."""
        return 1

    def unfold(self, x: Tensor, axes: int) -> Tensor:
        """(b, *grid, *rest) -> (axes of the sequences, axes of the length, *rest), a view."""
        return x

    def spacing(self, grid: Sizes[int], sequences: int) -> tuple[int, int]:
        """Tokens from one row of a sequence to the next, and sequences in a row of equal spacing.

        Of a contiguous (b, *grid) with so many sequences; 0 and 1 where rows have no equal spacing.
        """
        return 1, sequences

    def encode(self) -> list[int]:
        """The layout as integers, for the operator's schema."""
        return [0]


@dataclass(frozen=True)
class Axis:
    """Attends along grid axis `dim` (from 1) of q (b, *grid, h, d); the other axes are batch.

    Video tokens (b, t, s, h, d): Axis(1) is temporal, Axis(2) is spatial attention.
    """

    dim: int

    def check(self, grid: Sizes[int]) -> None:
        if not 1 <= self.dim <= len(grid):
            raise ValueError(
                f"Axis({self.dim}) of a grid {tuple(grid)}: dim counts the axes between batch and "
                f"heads, 1 to {len(grid)}."
            )

    def length(self, grid: Sizes[int]) -> int:
        return grid[self.dim - 1]

    def sequences(self, grid: Sizes[int]) -> int:
        return prod(size for axis, size in enumerate(grid) if axis != self.dim - 1)

    def split(self, x: Tensor, axes: int) -> Tensor:
        return x.movedim(self.dim, axes).flatten(0, axes - 1)

    def join(self, x: Tensor, batch: int, grid: Sizes[int]) -> Tensor:
        others = [size for axis, size in enumerate(grid) if axis != self.dim - 1]
        return x.unflatten(0, (batch, *others)).movedim(len(grid), self.dim)

    @property
    def length_axes(self) -> int:
        return 1

    def unfold(self, x: Tensor, axes: int) -> Tensor:
        return x.movedim(self.dim, axes)

    def spacing(self, grid: Sizes[int], sequences: int) -> tuple[int, int]:
        between = prod(grid[self.dim :])
        return between, sequences if self.dim == len(grid) else between

    def encode(self) -> list[int]:
        return [1, self.dim]


@dataclass(frozen=True)
class Windows:
    """Attends inside windows of rows x cols tokens of a map: q (b, y, x, h, d).

    Windows do not overlap; tokens inside a window, and windows in the map, are in raster order.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"Windows({self.rows}, {self.cols}): both sides must be at least 1.")

    def check(self, grid: Sizes[int]) -> None:
        if len(grid) != 2:
            raise ValueError(
                f"Windows({self.rows}, {self.cols}) wants tensors (b, y, x, h, d), got a grid of "
                f"{tuple(grid)} between batch and heads."
            )
        if grid[0] % self.rows or grid[1] % self.cols:
            raise ValueError(
                f"a map of {grid[0]} x {grid[1]} tokens cannot be cut into windows of "
                f"{self.rows} x {self.cols}; pad the map or choose windows that divide it."
            )

    def length(self, grid: Sizes[int]) -> int:
        return self.rows * self.cols

    def sequences(self, grid: Sizes[int]) -> int:
        return (grid[0] // self.rows) * (grid[1] // self.cols)

    def split(self, x: Tensor, axes: int) -> Tensor:
        batch, height, width, *rest = x.shape
        tiles = self.unfold(x, axes)
        return tiles.reshape(batch * self.sequences((height, width)), self.length(()), *rest)

    @property
    def length_axes(self) -> int:
        return 2

    def unfold(self, x: Tensor, axes: int) -> Tensor:
        height, width = x.shape[1:3]
        tiles = x.unflatten(2, (width // self.cols, self.cols))
        return tiles.unflatten(1, (height // self.rows, self.rows)).transpose(2, 3)

    def join(self, x: Tensor, batch: int, grid: Sizes[int]) -> Tensor:
        tiles = (batch, grid[0] // self.rows, grid[1] // self.cols, self.rows, self.cols)
        return x.reshape(*tiles, *x.shape[2:]).transpose(2, 3).reshape(batch, *grid, *x.shape[2:])

    def spacing(self, grid: Sizes[int], sequences: int) -> tuple[int, int]:
        return 0, 1

    def encode(self) -> list[int]:
        return [2, self.rows, self.cols]


Layout = Sequence | Axis | Windows


def decode(code: Sizes[int]) -> Layout:
    """The layout that `encode` wrote as integers."""
    if code[0] == 0:
        return Sequence()
    if code[0] == 1:
        return Axis(code[1])
    return Windows(code[1], code[2])
