"""Frechet distance between two Gaussians fitted to features (arXiv:1706.08500, eq. 6).

    FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With S1 = L L' (L of full column rank r) the last trace is the sum of the singular values of L' X2c
/ sqrt(n2 - ddof), or the sum of the square roots of the eigenvalues of L' S2 L. So the reference
is factored once, and each further model costs one small decomposition; no matrix square root is
formed and no imaginary part can appear.

Large sums of singular values are taken from the eigenvalues of a Gram matrix, which cost less than
half; that squares the condition, so the error is bounded afterwards from the spectrum found, and
where the bound passes `GRAM_TOLERANCE` the singular values are computed after all.

Lower is better. FD is biased upward, by about 1/n: compare at equal n only. Published FID uses
50,000 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import FrechetError, NotFiniteError, StateError, TooFewSamples
from visgen_bench.metrics.moments import Array, Moments, check_ddof, float64_features, same_width

Solver = Literal["svd", "gram", "eigh"]

# A distance of near-identical sets may come out negative by rounding; beyond this share of the
# traces it is an error.
NEGATIVE_TOLERANCE = 1e-6

# The Gram route: from this many rows on (below, an SVD takes milliseconds); the share of the traces
# that its error may reach if every eigenvalue errs by its most and in one direction; and that most,
# in units of eps times the largest (at most 5 were seen, for 200 to 2,000 rows and spectra that
# fall as i^-0.5 to i^-3; real errors of the sum are some thousand times below the bound).
GRAM_ROWS = 512
GRAM_TOLERANCE = 1e-9
GRAM_EIGENVALUE_ERROR = 16.0
GRAM_RANGE = 1e-200, 1e200  # of the Gram's trace; beyond, squares may under- or overflow


@dataclass(frozen=True)
class FrechetResult:
    """A distance and what it is made of.

    Attributes:
        value: The distance, rounding below zero clamped to 0.
        raw: Before the clamp.
        mean_term: |mu1 - mu2|^2.
        trace: tr S1 + tr S2, the scale that rounding errors are measured against.
        solver: "svd" or "gram" (features), or "eigh" (moments).
    """

    value: float
    raw: float
    mean_term: float
    trace: float
    solver: Solver


@dataclass(frozen=True)
class FrechetReference:
    """One side of the distance, factored once.

    Attributes:
        n: Samples it was fitted to.
        mean: float64 (d,).
        factor: float64 (d, r) with S = factor factor', r the rank.
        trace: tr S.
        ddof: 1 or 0, used for both sides.
        triangular: Whether the factor is lower triangular (Cholesky).
    """

    n: int
    mean: Array
    factor: Array
    trace: float
    ddof: int = 1
    triangular: bool = False

    @classmethod
    def from_moments(cls, moments: Moments, ddof: int = 1) -> Self:
        """Factor S: by Cholesky at full rank, else by a truncated eigendecomposition."""
        covariance = moments.covariance(ddof)
        trace = float(np.trace(covariance))
        factor = _cholesky(covariance) if moments.n > moments.width else None
        if factor is not None:
            return cls(moments.n, moments.mean, factor, trace, ddof, triangular=True)
        values, vectors = np.linalg.eigh(covariance)
        kept = _kept(values, moments.n, moments.width)
        factor = vectors[:, kept] * np.sqrt(values[kept])
        return cls(moments.n, moments.mean, factor, trace, ddof)

    @classmethod
    def from_features(cls, features: Tensor | NDArray[Any], ddof: int = 1) -> Self:
        """Factor S from features (n, d); exact, and cheap where n <= d."""
        array = _at_least_two(features)
        n, width = array.shape
        if n > width:
            return cls.from_moments(Moments.of(array), ddof)
        check_ddof(ddof)
        mean = array.mean(axis=0)
        scaled = (array - mean) / np.sqrt(n - ddof)
        _, singular, rows = np.linalg.svd(scaled, full_matrices=False)
        kept = _kept(singular**2, n, width)
        trace = float(np.square(scaled).sum())
        return cls(n, mean, rows[kept].T * singular[kept], trace, ddof)

    @property
    def width(self) -> int:
        """Features per row, d."""
        return self.mean.shape[0]

    def to_moments(self, other: Moments) -> FrechetResult:
        """Distance to a side of which only the moments are known: one eigvalsh of (r, r)."""
        same_width(self.width, other.width)
        covariance = other.covariance(self.ddof)
        if self.triangular:
            inner = _lower_congruence(self.factor, covariance)  # (d, d), lower half
        else:
            inner = self.factor.T @ covariance @ self.factor  # (r, r)
        values = np.linalg.eigvalsh(inner) if inner.size else np.zeros(0)
        # Clipped, not truncated: the product's spectrum falls twice as fast as S's, and its tail
        # is not noise. Only n - 1 values can differ from zero.
        largest = np.sort(values)[::-1][: other.n - 1]
        cross = float(np.sqrt(np.clip(largest, 0.0, None)).sum())
        return self._result(other.mean, float(np.trace(covariance)), cross, "eigh")

    def to_features(self, features: Tensor | NDArray[Any]) -> FrechetResult:
        """Distance to features (n, d) by the singular values of (n, r): exact where n or r <= d."""
        array = _at_least_two(features)
        same_width(self.width, array.shape[1])
        mean, centred, trace = _centred(array, self.ddof)
        scale = np.sqrt(len(array) - self.ddof)
        product = centred @ self.factor  # (n, r)
        limit = 0.5 * GRAM_TOLERANCE * (self.trace + trace) * scale
        cross, solver = _nuclear_norm(product, rank=len(array) - 1, limit=limit)
        return self._result(mean, trace, cross / scale, solver)

    def _result(self, mean: Array, trace: float, cross: float, solver: Solver) -> FrechetResult:
        mean_term = float(np.square(self.mean - mean).sum())
        return _finish(mean_term, self.trace + trace, cross, solver)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state as named arrays."""
        return {
            "n": np.array(self.n, dtype=np.int64),
            "ddof": np.array(self.ddof, dtype=np.int64),
            "mean": self.mean,
            "factor": self.factor,
            "trace": np.array(self.trace),
            "triangular": np.array(self.triangular),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""
        try:
            return cls(
                int(arrays["n"]),
                arrays["mean"],
                arrays["factor"],
                float(arrays["trace"]),
                int(arrays["ddof"]),
                bool(arrays["triangular"]),
            )
        except KeyError as missing:
            raise StateError(f"a Frechet reference lacks the array {missing}.") from None


def frechet_distance(a: Moments, b: Moments, ddof: int = 1) -> float:
    """FD of two sets of moments, by factoring one side's covariance.

    Args:
        a: Moments of one side, d features, n >= 2.
        b: Moments of the other.
        ddof: 1 divides by n - 1 (TTUR, pytorch-fid), 0 by n (StyleGAN).

    Raises:
        TooFewSamples: if a side has fewer than 2 samples.
        FeatureShapeError: if the widths differ.
        NotFiniteError: if a moment is NaN or infinite.
        FrechetError: if the result is negative beyond rounding.
    """
    for side in (a, b):
        if not (np.isfinite(side.mean).all() and np.isfinite(side.m2).all()):
            raise NotFiniteError(
                "moments hold NaN or infinity; look at the features they came from."
            )
    same_width(a.width, b.width)
    first, second = (
        (a, b) if a.n <= b.n else (b, a)
    )  # the side of lower rank gives the smaller factor
    return FrechetReference.from_moments(first, ddof).to_moments(second).value


def frechet_distance_of_features(
    a: Tensor | NDArray[Any], b: Tensor | NDArray[Any], ddof: int = 1
) -> FrechetResult:
    """FD of two feature sets (n1, d) and (n2, d).

    With min(n1, n2) <= d the trace is the nuclear norm of X1c X2c' / sqrt((n1 - ddof)(n2 - ddof))
    (the idea of arXiv:2009.14075), which forms no (d, d) matrix; otherwise moments and
    `FrechetReference.from_moments`.
    """
    first, second = _at_least_two(a), _at_least_two(b)
    same_width(first.shape[1], second.shape[1])
    check_ddof(ddof)
    if min(len(first), len(second)) > first.shape[1]:
        return FrechetReference.from_moments(Moments.of(first), ddof).to_moments(Moments.of(second))
    mean_a, centred_a, trace_a = _centred(first, ddof)
    mean_b, centred_b, trace_b = _centred(second, ddof)
    trace, scale = trace_a + trace_b, np.sqrt((len(first) - ddof) * (len(second) - ddof))
    cross, solver = _nuclear_norm(
        centred_a @ centred_b.T,
        rank=min(len(first), len(second)) - 1,
        limit=0.5 * GRAM_TOLERANCE * trace * scale,
    )
    return _finish(float(np.square(mean_a - mean_b).sum()), trace, cross / scale, solver)


def _centred(array: Array, ddof: int) -> tuple[Array, Array, float]:
    """The mean (d,), the rows less their mean (n, d), and the trace of the covariance.

    Centred rows are one new array: dividing them as well would write another, and a scalar of the
    norm does the same.
    """
    mean = array.mean(axis=0)
    centred = array - mean
    squares = np.einsum("ij,ij->i", centred, centred)  # (n,)
    return mean, centred, float(squares.sum()) / (len(array) - ddof)


def _at_least_two(features: Tensor | NDArray[Any]) -> Array:
    array = float64_features(features)
    if len(array) < 2:
        raise TooFewSamples(
            f"a Frechet distance needs at least 2 samples a side, got {len(array)}."
        )
    return array


def _cholesky(covariance: Array) -> Array | None:
    """The lower factor, a tenth of an eigendecomposition's time, or None if the rank is not full.

    A feature that never varies is enough for that; near-singular matrices are fine, since the
    factor's product is the matrix to rounding either way.
    """
    factor, failed = torch.linalg.cholesky_ex(
        torch.from_numpy(covariance)
    )  # numpy's takes 1.6 times
    return None if int(failed) else np.asarray(factor.numpy(), dtype=np.float64)


def _lower_congruence(factor: Array, covariance: Array, block: int = 256) -> Array:
    """The lower half of L' S L for lower triangular L, without the products with zeros.

    A third of the dense arithmetic. Blocks above the diagonal stay zero: eigvalsh reads the lower
    half only. The result is column-major, which eigvalsh copies faster.
    """
    width = len(factor)
    inner = np.zeros_like(covariance)
    for first in range(0, width, block):
        columns = slice(first, first + block)
        half = covariance[first:, first:] @ factor[first:, columns]  # (d - first, block)
        for start in range(first, width, block):
            rows = slice(start, start + block)
            inner[columns, rows] = half[start - first :].T @ factor[start:, rows]
    return inner.T


def _kept(values: Array, n: int, width: int) -> NDArray[np.int64]:
    """Which eigenvalues are not a rounded zero: above max * d * eps, at most the n - 1 largest.

    A rounding eigenvalue of 1e-17 would enter the sum with its root, 3e-9, times d.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(values)[::-1][: n - 1]
    floor = max(float(values.max()), 0.0) * width * np.finfo(np.float64).eps
    return order[values[order] > floor]


def _nuclear_norm(matrix: Array, rank: int, limit: float) -> tuple[float, Solver]:
    """Sum of the singular values of a matrix whose rank is at most `rank`, and the route taken.

    The route is "gram" where that surely errs by at most `limit`, else "svd".
    """
    if min(matrix.shape) == 0:
        return 0.0, "svd"
    if min(matrix.shape) >= GRAM_ROWS:
        norm, error = _nuclear_norm_of_gram(matrix, rank)
        if error <= limit:
            return norm, "gram"
    return float(np.linalg.svd(matrix, compute_uv=False).sum()), "svd"


def _nuclear_norm_of_gram(matrix: Array, rank: int) -> tuple[float, float]:
    """The sum of singular values as roots of the Gram matrix's eigenvalues, and its error's bound.

    A symmetric product and a reduction to tridiagonal form take less than half as long as the
    reduction to bidiagonal form. By Weyl every eigenvalue is off by at most the backward error,
    e = 16 eps times the largest; its root s is then off by at most e / (s + sqrt(s^2 - e)), and by
    sqrt(e) where s^2 < e. The bound is the sum of these; infinite where squares left the range.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with np.errstate(over="ignore", invalid="ignore"):
        gram = wide @ wide.T  # one operand twice: half the products
    least, most = GRAM_RANGE
    if not least < float(np.trace(gram)) < most:
        return 0.0, float("inf")
    values = np.clip(np.linalg.eigvalsh(gram)[::-1][:rank], 0.0, None)
    roots = np.sqrt(values)
    e = GRAM_EIGENVALUE_ERROR * float(np.finfo(np.float64).eps) * float(values[0])
    errors = np.full_like(roots, np.sqrt(e))
    clear = values >= e
    errors[clear] = e / (roots[clear] + np.sqrt(values[clear] - e))
    return float(roots.sum()), float(errors.sum())


def _finish(mean_term: float, trace: float, cross: float, solver: Solver) -> FrechetResult:
    raw = mean_term + trace - 2.0 * cross
    if not np.isfinite(raw):
        raise NotFiniteError(f"the Frechet distance came out as {raw}; the features are too large.")
    if raw < -NEGATIVE_TOLERANCE * trace:
        raise FrechetError(
            f"the Frechet distance came out as {raw:.3g} against traces of {trace:.3g}; "
            f"rounding allows -{NEGATIVE_TOLERANCE:g} of them. The two sides' statistics do not "
            "belong together."
        )
    return FrechetResult(max(raw, 0.0), raw, mean_term, trace, solver)
