"""Tokens laid out as a map: row-major, one token a place."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def as_map(tokens: Tensor, side: int) -> Tensor:
    """(b, side * side, d) -> (b, d, side, side), a view."""
    return tokens.mT.unflatten(-1, (side, side))


def as_tokens(feature_map: Tensor) -> Tensor:
    """(b, d, h, w) -> (b, h * w, d), a view."""
    return feature_map.flatten(2).mT


def pixel_shuffle(tokens: Tensor, side: int) -> Tensor:
    """Twice the side at a quarter of the width: (b, side^2, d) -> (b, 4 side^2, d / 4).

    Channel c of a token goes to channel c // 4 of the place (dy, dx) = (c % 4 // 2, c % 2)
    (arXiv:1609.05158).
    """
    return as_tokens(F.pixel_shuffle(as_map(tokens, side), 2))


def average_pool(tokens: Tensor, side: int) -> Tensor:
    """Half the side: means of 2 x 2 tokens, (b, side^2, d) -> (b, side^2 / 4, d)."""
    return as_tokens(F.avg_pool2d(as_map(tokens, side), 2))
