"""Kernel distance (KID, arXiv:1801.01401): the unbiased squared MMD with a cubic kernel.

    k(x, y) = (x.y / d + 1)^3
    MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n-1)) + sum_{i != j} k(y_i, y_j) / (m (m-1)) - 2 mean
    k(x_i, y_j)

Lower is better; it is unbiased, so it may be negative and is never clamped. Everything runs in
float64: float32 errs by 4e-4 of a typical value. Papers often print 1000 times this number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import TooFewSamples
from visgen_bench.metrics.moments import Array, float64_features, same_width

Rows = NDArray[Any]  # (n, d), float32 or float64; arithmetic is float64

_BLOCK = 2048
_DRAW_SEED = 2020  # torch-fidelity's, so that its subsets are ours


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        value: Squared MMD; the mean over subsets where subsets were drawn.
        subset_std: Standard deviation over the random subsets (ddof 0), as papers print it. The
            subsets overlap, so it is no standard error. None for the full statistic.
    """

    value: float
    subset_std: float | None = None


def squared_mmd(x: Rows, y: Rows, block: int = _BLOCK) -> float:
    """The full U-statistic in row blocks: O(block * n) memory, no subset noise.

    Args:
        x: (n, d) of any float dtype, n >= 2.
        y: (m, d), m >= 2.
        block: Rows held at once; the result does not depend on it beyond rounding.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise TooFewSamples(f"a kernel distance needs at least 2 samples a side, got {n} and {m}.")
    within_x = _kernel_sum(x, x, block) - _diagonal_sum(x)
    within_y = _kernel_sum(y, y, block) - _diagonal_sum(y)
    across = _kernel_sum(x, y, block)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2.0 * across / (n * m)


def kid_full(
    x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], block: int = _BLOCK
) -> KernelDistance:
    """Kernel distance over all samples (n, d) and (m, d)."""
    first, second = _pair(x, y)
    return KernelDistance(squared_mmd(first, second, block))


def kernel_distance(
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = _DRAW_SEED,
) -> KernelDistance:
    """Kernel distance as published: the mean over random subsets of both sides.

    Args:
        x: Features of generated samples (n, d).
        y: Features of real samples (m, d).
        subsets: Subsets drawn, without replacement inside each.
        subset_size: Samples of a subset.
        seed: Of numpy's RandomState; the draws are those of torch-fidelity.

    Raises:
        TooFewSamples: if a side has fewer samples than `subset_size`; it is never shrunk in
            silence.
    """
    first, second = _pair(x, y)
    if min(len(first), len(second)) < subset_size:
        raise TooFewSamples(
            f"subsets of {subset_size} cannot be drawn from {len(first)} and {len(second)} "
            "samples; "
            "give more samples, or ask for kid_full, or for subset_size <= "
            f"{min(len(first), len(second))}."
        )
    draw = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows = draw.choice(len(first), subset_size, replace=False)
        columns = draw.choice(len(second), subset_size, replace=False)
        values[i] = squared_mmd(first[rows], second[columns])
    return KernelDistance(float(values.mean()), float(values.std()))


def block_standard_error(
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    *,
    max_block: int = 1000,
    min_blocks: int = 10,
    max_blocks: int = 50,
    seed: int = _DRAW_SEED,
) -> tuple[float, int]:
    """Standard error of the kernel distance from disjoint blocks, and how many there were.

    Both sides are shuffled with a seed and cut into disjoint blocks, whose distances are
    independent, so the deviation of their mean is estimated without bias. That mean varies no less
    than the full statistic: the error is conservative for it.

    Raises:
        TooFewSamples: if blocks of 2 do not fit `min_blocks` times.
    """
    first, second = _pair(x, y)
    smaller = min(len(first), len(second))
    if smaller < 2 * min_blocks:
        raise TooFewSamples(
            f"{min_blocks} disjoint blocks need {2 * min_blocks} samples a side, got {smaller}."
        )
    blocks = max(min_blocks, min(max_blocks, smaller // max_block))
    draw = np.random.RandomState(seed)
    # Equal blocks of at most max_block samples a side; what does not fill a block is left out.
    rows, columns = (
        draw.permutation(len(side))[: blocks * min(max_block, len(side) // blocks)].reshape(
            blocks, -1
        )
        for side in (first, second)
    )
    values = [squared_mmd(first[i], second[j]) for i, j in zip(rows, columns, strict=True)]
    return float(np.std(values, ddof=1) / np.sqrt(blocks)), blocks


def _pair(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any]) -> tuple[Rows, Rows]:
    """Both sides as they are stored: a memory-mapped file is read block by block, never whole."""
    sides: list[Rows] = []
    for side in (x, y):
        rows = side.detach().cpu().numpy() if isinstance(side, Tensor) else side
        for block in _blocks(rows, _BLOCK) if rows.ndim == 2 else (rows,):
            float64_features(block)  # refuses NaN and flattened buffers
        sides.append(rows)
    same_width(sides[0].shape[1], sides[1].shape[1])
    return sides[0], sides[1]


def _blocks(rows: Rows, block: int) -> Iterator[Array]:
    for start in range(0, len(rows), block):
        yield np.asarray(rows[start : start + block], dtype=np.float64)


def _kernel_sum(x: Rows, y: Rows, block: int) -> float:
    total = 0.0
    for rows in _blocks(x, block):
        for columns in _blocks(y, block):
            base = rows @ columns.T
            base /= x.shape[1]
            base += 1.0
            total += float((base * base * base).sum())
    return total


def _diagonal_sum(x: Rows) -> float:
    norms = [np.square(block).sum(axis=1) for block in _blocks(x, _BLOCK)]
    return float(((np.concatenate(norms) / x.shape[1] + 1.0) ** 3).sum())
