"""What is added to the scores.

`RelativePosition2d` is the trainable bias of windows of tokens: it depends on the difference of two
positions only, so a table of (2h-1)(2w-1) rows a head holds it all. No index and no n x n bias is
ever stored. What makes it cheap is the expanded table

    expanded[head, x_i, r, x_j] = table[y_i - y_j, x_i - x_j, head],     r = y_j - y_i + h - 1

of shape (heads, w, 2h-1, w): the bias of the query (y_i, x_i) towards all keys, in raster order, is
one contiguous run of it, `expanded[head, x_i].flatten()[(h-1-y_i) * w :][: h*w]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.tiles import Index, positions


@dataclass(frozen=True, eq=False)
class RelativePosition2d:
    """b[i, j, head] = table[(y_i - y_j + h - 1) * (2w - 1) + x_i - x_j + w - 1, head].

    table: ((2h-1)(2w-1), heads), differentiable twice; size: (h, w), the side lengths of the square
    that is attended over, whose h * w tokens are in raster order.
    """

    table: Tensor
    size: tuple[int, int]

    def check(self, n_q: int, n_k: int, heads: int) -> None:
        """Raise ValueError where table, size and the tensors' sizes do not fit together."""
        height, width = self.size
        if n_q != height * width or n_k != height * width:
            raise ValueError(
                f"RelativePosition2d(size={self.size}) is for {height * width} queries and as many "
                f"keys, got {n_q} and {n_k}; a bias has no meaning for other lengths."
            )
        rows = (2 * height - 1) * (2 * width - 1)
        if tuple(self.table.shape) != (rows, heads):
            raise ValueError(
                f"RelativePosition2d(size={self.size}) with {heads} heads wants a table of shape "
                f"({rows}, {heads}), got {tuple(self.table.shape)}."
            )

    def encode(self) -> list[int]:
        """The bias as integers, for the operator's schema; the table travels as a tensor."""
        return list(self.size)


def relative_index(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The definition of the index, (n, n) int64, n = h * w. For references only: it is n x n."""
    height, width = size
    y = torch.arange(height, device=device).repeat_interleave(width)
    x = torch.arange(width, device=device).repeat(height)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + height - 1) * (2 * width - 1) + dx + width - 1


def expand_table(table: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Table ((2h-1)(2w-1), heads) -> expanded (heads, w, (2h-1) * w), contiguous, in `dtype`."""
    height, width = size
    flipped = table.to(dtype).view(2 * height - 1, 2 * width - 1, -1).flip(0, 1).permute(2, 0, 1)
    # Windows of w entries along the last axis start at w - 1 - x_i; the flip orders them by x_i.
    windows = flipped.unfold(2, width, 1).flip(2)  # (heads, 2h-1, x_i, x_j)
    # Of one row or one column reshape alone would be a view, whose heads are innermost.
    return windows.transpose(1, 2).reshape(table.shape[1], width, -1).contiguous()


def reduce_expanded(expanded: Tensor, size: Sequence[int]) -> Tensor:
    """Adjoint of `expand_table`: (heads, w, (2h-1) * w) -> ((2h-1)(2w-1), heads).

    Sums along the diagonals x_i - x_j in a fixed order, so the result is the same in every run.
    """
    height, width = size
    heads = expanded.shape[0]
    cells = expanded.view(heads, width, 2 * height - 1, width)
    # Rows of length 2w read as rows of length 2w - 1 shift by one each: diagonals become columns.
    padded = expanded.new_zeros(heads, 2 * height - 1, width, 2 * width)
    padded[..., :width] = cells.flip(1).transpose(1, 2)
    skewed = padded.flatten(2)[..., : width * (2 * width - 1)]
    table = skewed.unflatten(2, (width, 2 * width - 1)).sum(dim=2)
    return table.flip(1, 2).permute(1, 2, 0).reshape(-1, heads).contiguous()


def tile_bias(
    expanded: Tensor, size: Sequence[int], rows: Index, keys: Index, out: Tensor | None = None
) -> Tensor:
    """The bias of a tile of queries and keys, (heads, rows, keys), written into `out` if given."""
    if out is None:
        count = [len(positions(index)) for index in (rows, keys)]
        out = expanded.new_empty(expanded.shape[0], *count)
    for piece, x, cells in _runs(size, rows, keys):
        if isinstance(cells, slice):
            out[:, piece].copy_(expanded[:, x, cells])
        else:
            out[:, piece].copy_(expanded[:, x].index_select(-1, cells.to(expanded.device)))
    return out


def reduce_tile_bias(
    gradient: Tensor, expanded: Tensor, size: Sequence[int], rows: Index, keys: Index
) -> None:
    """Adjoint of `tile_bias`: add gradient (heads, rows, keys) into `expanded`."""
    for piece, x, cells in _runs(size, rows, keys):
        # Keys of one tile are distinct, so no entry is written twice.
        expanded[:, x, cells] += gradient[:, piece]


def square_bias(table: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The bias of all queries and keys, (heads, n, n), contiguous, in `dtype`."""
    height, width = size
    n, expanded = height * width, expand_table(table, size, dtype)
    lines = [expanded[:, :, y * width : y * width + n] for y in reversed(range(height))]
    return torch.stack(lines, dim=1).view(-1, n, n)


def reduce_square(gradient: Tensor, size: Sequence[int]) -> Tensor:
    """Adjoint of `square_bias`: (heads, n, n) -> ((2h-1)(2w-1), heads), always the same bits."""
    height, width = size
    heads = gradient.shape[0]
    lines = gradient.view(heads, height, width, height * width).flip(1).transpose(1, 2)
    # Rows of 2h lines read as rows of 2h - 1 lines shift by one line each (see `reduce_expanded`).
    padded = gradient.new_zeros(heads, width, height, 2 * height * width)
    padded[..., : height * width] = lines
    skewed = padded.flatten(2)[..., : height * (2 * height - 1) * width]
    expanded = skewed.unflatten(2, (height, (2 * height - 1) * width)).sum(dim=2)
    return reduce_expanded(expanded, size)


def _runs(size: Sequence[int], rows: Index, keys: Index) -> Iterator[tuple[slice, slice, Index]]:
    """Pieces of the tile's rows that share y_i: rows of the tile, x_i, cells of `expanded`."""
    height, width = size
    count, position = 0, 0
    for start, stop in _stretches(rows):
        position = start
        while position < stop:
            y, x = divmod(position, width)
            length = min(width - x, stop - position)
            base = (height - 1 - y) * width
            cells = _shifted(keys, base)
            yield slice(count, count + length), slice(x, x + length), cells
            position += length
            count += length


def _shifted(index: Index, by: int) -> Index:
    if isinstance(index, slice):
        return slice(index.start + by, index.stop + by)
    return index + by


def _stretches(rows: Index) -> list[tuple[int, int]]:
    """Contiguous stretches [start, stop) of an index, in order."""
    if isinstance(rows, slice):
        return [(rows.start, rows.stop)]
    stretches: list[tuple[int, int]] = []
    for row in rows.tolist():
        if stretches and stretches[-1][1] == row:
            stretches[-1] = (stretches[-1][0], row + 1)
        else:
            stretches.append((row, row + 1))
    return stretches
