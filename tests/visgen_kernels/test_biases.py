"""The relative position bias, tile by tile, is the gathered one, and its gradient the adjoint."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from visgen_kernels import RelativePosition2d
from visgen_kernels.biases import (
    expand_table,
    reduce_expanded,
    reduce_tile_bias,
    relative_index,
    tile_bias,
)
from visgen_kernels.tiles import Index

SIZES = [(1, 1), (2, 2), (3, 5), (5, 3), (1, 7), (7, 1), (8, 8)]


def table(size: tuple[int, int], heads: int = 2) -> Tensor:
    rows = (2 * size[0] - 1) * (2 * size[1] - 1)
    return torch.randn(rows, heads, generator=torch.Generator().manual_seed(0)).double()


def pieces(n: int) -> Iterator[tuple[Index, Index]]:
    """Rows and keys: contiguous, not aligned to lines, and arbitrary."""
    yield slice(0, n), slice(0, n)
    yield slice(n // 3, n // 2 + 1), slice(0, n)
    yield slice(n // 2, n), slice(n // 4, n // 2 + 1)
    yield torch.arange(0, n, 2), slice(0, n)
    yield slice(0, n), torch.arange(n - 1, -1, -2)
    yield torch.tensor([n - 1, 0]).unique(), torch.arange(0, n, 3)


def as_index(piece: Index, n: int) -> Tensor:
    return torch.arange(n)[piece] if isinstance(piece, slice) else piece


def test_index_is_transgans() -> None:
    # Row (y_i - y_j + w - 1)(2w - 1) + (x_i - x_j + w - 1) for tokens in raster order.
    index = relative_index((3, 3))
    for i in range(9):
        for j in range(9):
            dy, dx = i // 3 - j // 3, i % 3 - j % 3
            assert index[i, j] == (dy + 2) * 5 + dx + 2


@pytest.mark.parametrize("size", SIZES)
def test_tile_of_the_expanded_table_is_the_gathered_bias(size: tuple[int, int]) -> None:
    values, n = table(size), size[0] * size[1]
    dense = values[relative_index(size)].permute(2, 0, 1)
    expanded = expand_table(values, size, torch.float64)
    assert expanded.shape == (2, size[1], (2 * size[0] - 1) * size[1])
    assert expanded.is_contiguous()  # the kernels compute addresses in it
    for rows, keys in pieces(n):
        expected = dense[:, as_index(rows, n)][:, :, as_index(keys, n)]
        assert torch.equal(tile_bias(expanded, size, rows, keys), expected)


@pytest.mark.parametrize("size", SIZES)
def test_reduction_is_the_adjoint_of_expansion_and_tiling(size: tuple[int, int]) -> None:
    values, n = table(size), size[0] * size[1]
    expanded = expand_table(values, size, torch.float64)
    generator = torch.Generator().manual_seed(1)
    for rows, keys in pieces(n):
        tile = tile_bias(expanded, size, rows, keys)
        gradient = torch.randn(tile.shape, generator=generator, dtype=torch.float64)
        total = torch.zeros_like(expanded)
        reduce_tile_bias(gradient, total, size, rows, keys)
        back = reduce_expanded(total, size)
        torch.testing.assert_close((tile * gradient).sum(), (values * back).sum())


def test_bias_of_other_lengths_or_tables_is_refused() -> None:
    bias = RelativePosition2d(table((3, 3)), (3, 3))
    with pytest.raises(ValueError, match="9 queries"):
        bias.check(9, 10, 2)
    with pytest.raises(ValueError, match=r"\(25, 4\)"):
        bias.check(9, 9, 4)
