"""Precision, recall, density and coverage (arXiv:1904.06991, arXiv:2002.09797).

A sample's radius r_k is the Euclidean distance to its k-th other neighbour on its own side; its
ball is open, d < r_k.

    precision = share of fakes inside some real ball
    recall    = share of reals inside some fake ball
    density   = mean number of real balls around a fake, divided by k
    coverage  = share of real balls that hold a fake

Higher is better; density may exceed 1. Distances are float64 in row blocks, so memory is O(block *
n). The form |x|^2 + |y|^2 - 2 x.y rounds, so any comparison within rounding of equality is decided
by the difference itself: identical samples are at distance 0 and ties stay ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import TooFewSamples
from visgen_bench.metrics.moments import Array, float64_features, same_width

# Relative error of the squared-distance form, with a margin: 1e-16 times the terms of a sum of d
# products.
_DOUBT = 1e-11


@dataclass(frozen=True)
class Prdc:
    """The four shares, and the standard deviation of a fake's ball count (for density's error).

    `density_std` is of count / k over fakes, ddof 1 (0 for a single fake).
    """

    precision: float
    recall: float
    density: float
    coverage: float
    density_std: float


def radii(features: Tensor | NDArray[Any], k: int = 5, block: int = 1024) -> Array:
    """Distance of each row (n, d) to its k-th other row: float64 (n,).

    Raises:
        TooFewSamples: if there are no k other rows.
    """
    x = float64_features(features)
    n = len(x)
    if n <= k:
        raise TooFewSamples(f"a {k}-th neighbour needs at least {k + 1} samples, got {n}.")
    # Two more than needed, so that rounding near the k-th cannot push the true one out unless it
    # is a tie.
    depth = min(k + 3, n)
    out = np.empty(n)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        squared = _squared(x[rows], x)
        near = np.argpartition(squared, depth - 1, axis=1)[:, :depth]
        exact = np.square(x[rows][:, None, :] - x[near]).sum(axis=2)  # (b, depth)
        itself = near == np.arange(rows.start, rows.stop)[:, None]
        exact[itself] = -1.0  # drops out first, whatever its rounding
        out[rows] = np.sqrt(np.sort(exact, axis=1)[:, k])
    return out


def prdc(
    real: Tensor | NDArray[Any],
    fake: Tensor | NDArray[Any],
    k: int = 5,
    *,
    real_radii: Array | None = None,
    block: int = 1024,
) -> Prdc:
    """All four of real features (m, d) and generated features (n, d).

    Args:
        real: Features of real samples, any float dtype.
        fake: Features of generated samples.
        k: Neighbours of the radius.
        real_radii: `radii(real, k)` if already known.
        block: Fakes compared at once.

    Raises:
        TooFewSamples: if a side has k samples or fewer.
    """
    x, y = float64_features(real), float64_features(fake)
    same_width(x.shape[1], y.shape[1])
    radius_x = radii(x, k, block) if real_radii is None else real_radii
    radius_y = radii(y, k, block)
    around = np.empty(len(y))  # real balls that hold each fake
    recalled = np.zeros(len(x), dtype=bool)
    covered = np.zeros(len(x), dtype=bool)
    for start in range(0, len(y), block):
        rows = slice(start, min(start + block, len(y)))
        squared = _squared(y[rows], x)  # (b, m)
        in_real = _inside(squared, y[rows], x, radius_x[None, :])
        in_fake = _inside(squared, y[rows], x, radius_y[rows, None])
        around[rows] = in_real.sum(axis=1)
        covered |= in_real.any(axis=0)
        recalled |= in_fake.any(axis=0)
    return Prdc(
        precision=float((around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(around.mean() / k),
        coverage=float(covered.mean()),
        density_std=float(around.std(ddof=1) / k) if len(y) > 1 else 0.0,
    )


def _squared(x: Array, y: Array) -> Array:
    squared = x @ y.T
    squared *= -2.0
    squared += np.square(x).sum(axis=1)[:, None]
    squared += np.square(y).sum(axis=1)[None, :]
    return squared


def _inside(squared: Array, x: Array, y: Array, radius: Array) -> NDArray[np.bool_]:
    """Whether |x - y| < radius, (b, m), decided exactly where the squared form is in doubt."""
    limit = np.square(radius)
    inside = (squared < limit) & (limit > 0)  # an empty ball holds nothing, and many may be empty
    scale = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :]
    i, j = np.nonzero((np.abs(squared - limit) <= _DOUBT * scale) & (limit > 0))
    radius = np.broadcast_to(radius, squared.shape)
    for start in range(0, len(i), 4096):
        a, b = i[start : start + 4096], j[start : start + 4096]
        inside[a, b] = np.sqrt(np.square(x[a] - y[b]).sum(axis=1)) < radius[a, b]
    return inside
