"""Learned positions of a grid of tokens, one table an axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AxisPositions(nn.Module):
    """Each axis has its own slice of the channels, and in it a table of its places.

    A grid of n axes has tables size_i x (width / n), drawn from N(0, std), laid side by side on
    the channels in the axes' order (VideoGPT, arXiv:2104.10157).
    """

    def __init__(self, grid: Sequence[int], width: int, std: float = 0.01) -> None:
        """`std` is the paper's by default.

        Raises ValueError if the width does not divide by the number of axes.
        """
        super().__init__()
        if width % len(grid):
            raise ValueError(f"width={width} is not a multiple of the grid's {len(grid)} axes.")
        part = width // len(grid)
        self.tables = nn.ParameterList(torch.randn(size, part) * std for size in grid)

    def forward(self) -> Tensor:
        """(*grid, width)."""
        grid = [len(table) for table in self.tables]
        spread = []
        for axis, table in enumerate(self.tables):
            shape = [1] * len(grid)
            shape[axis] = grid[axis]
            spread.append(table.view(*shape, -1).expand(*grid, -1))
        return torch.cat(spread, dim=-1)
