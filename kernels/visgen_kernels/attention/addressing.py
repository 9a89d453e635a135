"""How the kernels find a token: six strides a tensor, whatever the layout.

Token n of sequence z stands at  z0, z1, z2 (three axes that are not attended over)  and  n = n0 *
inner + n1  (two axes that are; one of them may have length 1). Every layout is a choice of these
axes, so nothing is permuted or copied:

    layout            (z0, z1, z2)                  (n0, n1)
    Sequence          (b, 1, 1)                     (n, 1)
    Axis(dim)         (b, the other grid axes)      (grid[dim], 1)
    Windows(r, c)     (b, y / r, x / c)             (r, c)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visgen_kernels.layouts import Axis, Layout, Sequence, Windows

# tt.divisibility counts elements, and a head stride of 24 or 72 elements has none: the kernels
# multiply strides by this unit themselves, so that loads stay as wide as the memory allows.
_UNITS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of one tensor lie: strides in elements.

    sizes (z0, z1, z2); inner is the length of axis n1; strides (z0, z1, z2, n0, n1, head).
    """

    sizes: tuple[int, int, int]
    length: int
    inner: int
    strides: tuple[int, int, int, int, int, int]

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        z0, z1, z2 = self.sizes
        return z0 * z1 * z2

    def unit(self, first: int = 0) -> int:
        """The largest of 8, 4, 2, 1 that divides every stride of an axis longer than 1.

        And the place of the first element, counted from a multiple of 16 bytes.
        """
        return next(u for u in _UNITS if all(place % u == 0 for place in (first, *self.strides)))


class NotStrided(ValueError):
    """A tensor whose tokens six strides cannot reach."""


def tokens_of(layout: Layout, x: Tensor) -> Tokens:
    """Tokens of x (b, *grid, h, ...), whose last axes are heads and what a head holds.

    Raises:
        NotStrided: if more than two axes beside the batch are left over by the layout.
    """
    grid, strides = x.shape[1:-2], x.stride()
    batch, head = x.shape[0], strides[-2]
    if isinstance(layout, Sequence):
        return _tokens((batch, 1, 1), (strides[0], 0, 0), (grid[0], 1), (strides[1], 0), head)
    if isinstance(layout, Windows):
        rows, cols = layout.rows, layout.cols
        return _tokens(
            (batch, grid[0] // rows, grid[1] // cols),
            (strides[0], strides[1] * rows, strides[2] * cols),
            (rows, cols),
            (strides[1], strides[2]),
            head,
        )
    if not isinstance(layout, Axis):
        raise NotStrided(f"{layout} has no strided form.")
    others = [axis for axis in range(1, len(grid) + 1) if axis != layout.dim]
    if len(others) > 2:
        raise NotStrided(
            f"{layout} of a grid of {len(grid)} axes leaves {len(others)} axes beside the batch, "
            "and the kernels step along two; flatten two of them."
        )
    sizes = [1] * (2 - len(others)) + [x.shape[axis] for axis in others]
    steps = [0] * (2 - len(others)) + [strides[axis] for axis in others]
    return _tokens(
        (batch, sizes[0], sizes[1]),
        (strides[0], steps[0], steps[1]),
        (grid[layout.dim - 1], 1),
        (strides[layout.dim], 0),
        head,
    )


def _tokens(
    sizes: tuple[int, int, int],
    z: tuple[int, int, int],
    lengths: tuple[int, int],
    n: tuple[int, int],
    head: int,
) -> Tokens:
    return Tokens(sizes, lengths[0] * lengths[1], lengths[1], (*z, *n, head))
