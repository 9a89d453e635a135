"""Normalisation of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer", "pixel"]


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + 1e-8), no parameters (arXiv:1710.10196, 4.2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., d) -> the same shape."""
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


def token_norm(kind: Norm, width: int) -> nn.Module:
    """The norm named `kind` over the last axis of width `width`."""
    return nn.LayerNorm(width) if kind == "layer" else PixelNorm()
