"""Multi-head self-attention: projections around `visgen_kernels.attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visgen_kernels import RelativePosition2d, attention


class SelfAttention(nn.Module):
    """Every token attends to every token of its sequence.

    The query, key and value projections are one Linear without bias whose outputs are ordered [q |
    k | v], each [head | channel]; the output projection has a bias. A learned relative position
    bias is added to the scores if asked for.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        bias_size: tuple[int, int] | None = None,
        implementation: str | None = None,
    ) -> None:
        """`bias_size` is the token map's (rows, columns) for the bias, or None for no bias."""
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}.")
        self.num_heads = num_heads
        self.bias_size = bias_size
        self.implementation = implementation
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        if bias_size is None:
            self.bias_table = None
        else:
            rows, columns = bias_size
            offsets = (2 * rows - 1) * (2 * columns - 1)
            self.bias_table = nn.Parameter(torch.empty(offsets, num_heads))
            nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (b, n, 3, heads, d / heads)
        bias = None
        if self.bias_table is not None and self.bias_size is not None:
            bias = RelativePosition2d(self.bias_table, self.bias_size)
        mixed = attention(packed, bias=bias, implementation=self.implementation)
        return self.out(mixed.flatten(-2))  # (b, n, d)
