"""Small-sample statistics for leaderboards and A/B comparisons; numpy only, seeded.

Three questions: which percentiles do these raw times carry, do two interleaved series of blocks
differ, and which ranks may a model hold given its per-seed values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Smallest n that gives a percentile a distribution-free one-sided 95 % upper bound:
# n >= ln 0.05 / ln q. Below it the percentile is null, not the maximum.
SMALLEST_N = {50.0: 5, 90.0: 29, 95.0: 59, 99.0: 299, 99.9: 2995}
PERCENTILE_METHOD = "linear"

SMALLEST_BLOCKS = 6  # one-sided p of complete separation: 1/C(12,6) = 0.0011 < 0.002
MANN_WHITNEY_ALPHA = 0.002
SMALLEST_SEEDS = 3


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and the method that made it."""

    value: float
    low: float
    high: float
    method: str


def smallest_n(percentile: float) -> int:
    """Samples that a percentile in (0, 100) needs to carry a 95 % upper bound."""
    if not 0 < percentile < 100:
        raise ValueError(f"percentile={percentile} is outside (0, 100)")
    known = SMALLEST_N.get(float(percentile))
    return known or math.ceil(math.log(0.05) / math.log(percentile / 100))


def percentile(samples: ArrayLike, percent: float) -> float | None:
    """Linear-interpolation percentile, or None where there are too few samples to carry it."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < smallest_n(percent):
        return None
    return float(np.percentile(values, percent, method=PERCENTILE_METHOD))


def percentile_reason(n: int, percent: float) -> str | None:
    """Why `percentile` gives None for n samples; None where it gives a number."""
    need = smallest_n(percent)
    return None if n >= need else f"p{percent:g} needs {need} samples, {n} were taken"


def block_ratio(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """median(A) / median(B) over blocks with a 95 % bootstrap interval.

    Block i of A and block i of B were taken side by side, so a resample draws pairs of blocks.
    Each block counts by its median. Raises `ValueError` for unequal counts or empty blocks.
    """
    first, second = _block_medians(a), _block_medians(b)
    if first.size != second.size:
        raise ValueError(f"{first.size} blocks against {second.size}; interleave A and B in pairs")
    drawn = np.random.default_rng(seed).integers(first.size, size=(resamples, first.size))
    ratios = np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(np.median(first) / np.median(second))
    method = f"bootstrap of {first.size} block pairs, {resamples} resamples, seed {seed}"
    return Interval(value, float(low), float(high), method)


def _block_medians(blocks: Sequence[ArrayLike]) -> NDArray[np.float64]:
    values = [np.asarray(block, dtype=np.float64) for block in blocks]
    if not values or any(block.size == 0 for block in values):
        raise ValueError("every block needs at least one sample, and there must be a block")
    return np.array([np.median(block) for block in values])


def mann_whitney(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of the Mann-Whitney U test: exact up to 400 pairs without ties, else normal.

    The normal form corrects for ties and continuity (Mann & Whitney 1947; Lehmann 1975, 1.5).
    """
    first, second = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if not first.size or not second.size:
        raise ValueError("both sides need at least one value")
    n, m = first.size, second.size
    difference = first[:, None] - second[None, :]
    u = float((difference > 0).sum() + 0.5 * (difference == 0).sum())
    _, ties = np.unique(np.concatenate([first, second]), return_counts=True)
    if n * m <= 400 and ties.max() == 1:
        counts = _u_counts(n, m)
        tail = counts[: int(min(u, n * m - u)) + 1].sum() / counts.sum()
        return float(min(1.0, 2 * tail))
    total = n + m
    spread = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if spread <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(spread)
    return min(1.0, 2 * NormalDist().cdf(-z))


def _u_counts(n: int, m: int) -> NDArray[np.float64]:
    """How many arrangements of n and m values give each U: the Gaussian binomial's coefficients."""
    counts = np.zeros(n * m + 1)
    counts[0] = 1
    for i in range(1, m + 1):
        for j in range(n * m, n + i - 1, -1):  # times (1 - x^(n+i))
            counts[j] -= counts[j - n - i]
        for j in range(i, n * m + 1):  # over (1 - x^i)
            counts[j] += counts[j - i]
    return counts


@dataclass(frozen=True)
class Verdict:
    """Whether two series of blocks differ; `reason` says why not, where they do not."""

    different: bool
    ratio: Interval
    p: float
    reason: str


def different(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, min_effect: float = 0.02, seed: int = 0
) -> Verdict:
    """A against B by interleaved blocks: different only if three tests agree.

    The bootstrap interval of the ratio excludes 1, |ratio - 1| exceeds `min_effect`, and
    one-sided Mann-Whitney on the block medians gives p < 0.002. Fewer than 6 blocks a side cannot.
    """
    ratio = block_ratio(a, b, seed=seed)
    first, second = _block_medians(a), _block_medians(b)
    p = mann_whitney(first, second) / 2  # one-sided, towards the side it lies on
    if first.size < SMALLEST_BLOCKS:
        reason = f"{first.size} blocks a side; {SMALLEST_BLOCKS} are needed"
    elif ratio.low <= 1 <= ratio.high:
        reason = "the interval of the ratio contains 1"
    elif abs(ratio.value - 1) <= min_effect:
        reason = f"the effect is within {min_effect:.0%}"
    elif p >= MANN_WHITNEY_ALPHA:
        reason = f"Mann-Whitney p = {p:.2g}, not below {MANN_WHITNEY_ALPHA}"
    else:
        return Verdict(True, ratio, p, "")
    return Verdict(False, ratio, p, reason)


def student_t(t: float, freedom: float) -> float:
    """Two-sided p of Student's t: the regularised incomplete beta I_x(v/2, 1/2), x = v/(v+t^2)."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def student_quantile(freedom: float, confidence: float = 0.95) -> float:
    """The t with two-sided p = 1 - confidence, by bisection to 1e-12 relative."""
    low, high = 0.0, 1.0
    while student_t(high, freedom) > 1 - confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_t(middle, freedom) > 1 - confidence else (low, middle)
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(500):
        k = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        else:
            term = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        d = 1 / (1 + term * d or 1e-300)
        c = 1 + term / c or 1e-300
        fraction *= c * d
        if abs(1 - c * d) < 1e-15 and step > 0:
            break
    return front * (fraction - 1) / a


@dataclass(frozen=True)
class Entry:
    """One row to be ranked: its mean, its value per seed, and a standard error if it has one."""

    value: float
    by_seed: dict[int, float]
    stderr: float | None = None


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % t interval of the mean over seeds; None below 3 values."""
    if len(values) < SMALLEST_SEEDS:
        return None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = student_quantile(len(values) - 1) * sd / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach, f"t over {len(values)} seeds")


def difference_interval(a: Entry, b: Entry) -> Interval | None:
    """The difference a - b with its 95 % interval; None where the data carries none.

    At least 3 seeds in common: t interval of the paired differences. Else, if both have a standard
    error: normal interval of independent values.
    """
    seeds = sorted(a.by_seed.keys() & b.by_seed.keys())
    if len(seeds) >= SMALLEST_SEEDS:
        found = mean_interval([a.by_seed[s] - b.by_seed[s] for s in seeds])
        if found is not None:
            method = f"t over {len(seeds)} paired seeds"
            return Interval(found.value, found.low, found.high, method)
    if a.stderr is not None and b.stderr is not None:
        spread = math.hypot(a.stderr, b.stderr)
        reach = NormalDist().inv_cdf(0.975) * spread
        value = a.value - b.value
        return Interval(value, value - reach, value + reach, "normal, independent standard errors")
    return None


def difference_p(a: Entry, b: Entry) -> float | None:
    """Two-sided p of a = b by the rule of `difference_interval`; None where the data has none."""
    seeds = sorted(a.by_seed.keys() & b.by_seed.keys())
    if len(seeds) >= SMALLEST_SEEDS:
        differences = np.array([a.by_seed[s] - b.by_seed[s] for s in seeds])
        sd = float(np.std(differences, ddof=1))
        mean = float(differences.mean())
        if sd == 0:
            return 1.0 if mean == 0 else 0.0
        return student_t(mean / (sd / math.sqrt(len(seeds))), len(seeds) - 1)
    if a.stderr is not None and b.stderr is not None:
        spread = math.hypot(a.stderr, b.stderr)
        if spread == 0:
            return 1.0 if a.value == b.value else 0.0
        return 2 * NormalDist().cdf(-abs(a.value - b.value) / spread)
    return None


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, running = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = running
    return adjusted


def rank_intervals(
    entries: Sequence[Entry], *, higher_is_better: bool, alpha: float = 0.05
) -> list[tuple[int, int]]:
    """(best, worst) rank that each entry may hold, 1 = first.

    An entry is behind another only if their difference is significant after Holm's correction over
    all pairs of the table; pairs without uncertainty (no common seeds, no standard errors) count as
    undecided. One entry alone has rank (1, 1).
    """
    pairs = [(i, j) for i in range(len(entries)) for j in range(i)]
    tested = [(pair, difference_p(entries[pair[0]], entries[pair[1]])) for pair in pairs]
    known = [(pair, p) for pair, p in tested if p is not None and not math.isnan(p)]
    # the family is every pair of the table, also those that could not be tested
    padded = holm([p for _, p in known] + [1.0] * (len(pairs) - len(known)))
    ahead, behind = [0] * len(entries), [0] * len(entries)
    for ((i, j), _), p in zip(known, padded, strict=False):
        if p < alpha:
            i_wins = (entries[i].value > entries[j].value) == higher_is_better
            winner, loser = (i, j) if i_wins else (j, i)
            behind[winner] += 1
            ahead[loser] += 1
    total = len(entries)
    return [(1 + ahead[i], total - behind[i]) for i in range(total)]
