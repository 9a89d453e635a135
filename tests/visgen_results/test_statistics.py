import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from visgen_results.statistics import (
    SMALLEST_N,
    Entry,
    block_ratio,
    difference_interval,
    difference_p,
    different,
    holm,
    mann_whitney,
    mean_interval,
    percentile,
    percentile_reason,
    rank_intervals,
    smallest_n,
    student_quantile,
    student_t,
)


def blocks(seed: int, scale: float = 1.0, count: int = 8) -> list[NDArray[np.float64]]:
    """Times with 5 % spread within a block and 1 % drift between blocks."""
    generator = np.random.default_rng(seed)
    drift = np.exp(generator.normal(0, 0.01, size=(count, 1)))
    return list(scale * drift * np.exp(generator.normal(0, 0.05, size=(count, 20))))


@pytest.mark.parametrize(("percent", "n"), SMALLEST_N.items())
def test_smallest_n_is_where_the_largest_sample_bounds_the_percentile(
    percent: float, n: int
) -> None:
    assert 1 - (percent / 100) ** n >= 0.95 > 1 - (percent / 100) ** (n - 1)
    assert smallest_n(percent) == n


def test_smallest_n_follows_the_rule_for_other_percentiles() -> None:
    assert smallest_n(97) == 99
    with pytest.raises(ValueError, match="outside"):
        smallest_n(100)


def test_percentiles_are_linear_or_none() -> None:
    values = np.random.default_rng(0).random(59)
    assert percentile(values, 95) == np.percentile(values, 95)
    assert percentile(values[1:], 95) is None
    assert percentile_reason(58, 95) == "p95 needs 59 samples, 58 were taken"
    assert percentile_reason(59, 95) is None


@pytest.mark.parametrize("freedom", [1, 2, 4, 9.5, 60])
def test_student_t_equals_scipys(freedom: float) -> None:
    for t in (0.0, 0.1, 1.0, 3.0, 40.0):
        assert student_t(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-10)
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (8, 8), (20, 20), (15, 26)])
def test_mann_whitney_is_scipys_exact_test_without_ties(n: int, m: int) -> None:
    generator = np.random.default_rng(n * m)
    a, b = generator.normal(size=n), generator.normal(0.5, size=m)
    expected = stats.mannwhitneyu(a, b, method="exact").pvalue
    assert mann_whitney(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "ties"), [(40, 30, False), (12, 9, True), (6, 6, True)])
def test_mann_whitney_is_scipys_normal_test_else(n: int, m: int, ties: bool) -> None:
    generator = np.random.default_rng(7)
    a, b = generator.normal(size=n), generator.normal(0.5, size=m)
    if ties:
        a, b = a.round(), b.round()
    expected = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert mann_whitney(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "p"), [(5, 0.0040), (6, 0.0011), (8, 7.8e-5)])
def test_smallest_reachable_p_needs_six_blocks(n: int, p: float) -> None:
    least = mann_whitney(range(n), range(n, 2 * n)) / 2
    assert least == pytest.approx(1 / math.comb(2 * n, n)) == pytest.approx(p, rel=0.02)


def test_equal_values_on_both_sides_have_p_one() -> None:
    assert mann_whitney([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_block_ratio_is_seeded_and_contains_the_truth() -> None:
    first = block_ratio(blocks(1, 1.25), blocks(2))
    assert first == block_ratio(blocks(1, 1.25), blocks(2))
    assert first != block_ratio(blocks(1, 1.25), blocks(2), seed=1)
    assert first.low < 1.25 < first.high
    assert first.low < first.value < first.high


def test_paired_drift_cancels_in_the_ratio() -> None:
    drift = np.exp(np.random.default_rng(0).normal(0, 0.5, size=(10, 1)))
    times = drift * np.ones((10, 5))
    interval = block_ratio(list(2 * times), list(times))
    # medians of resampled pairs may come from different blocks, but each ratio is exactly 2
    assert (interval.low, interval.value, interval.high) == pytest.approx((2, 2, 2))


def test_unpaired_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="8 blocks against 7"):
        block_ratio(blocks(0), blocks(1)[:7])
    with pytest.raises(ValueError, match="at least one sample"):
        block_ratio([[1.0], []], [[1.0], [1.0]])


def test_the_same_cell_twice_is_not_different_in_95_of_100_trials() -> None:
    wrong = sum(different(blocks(2 * i), blocks(2 * i + 1)).different for i in range(100))
    assert wrong <= 5


def test_a_slowdown_of_a_tenth_is_found() -> None:
    verdict = different(blocks(1, 1.1), blocks(2))
    assert verdict.different
    assert verdict.ratio.value == pytest.approx(1.1, abs=0.03)


@pytest.mark.parametrize(
    ("scale", "count", "reason"),
    [
        (1.5, 5, "5 blocks a side; 6 are needed"),
        (1.0, 8, "contains 1"),
        (1.01, 200, "within 2%"),
    ],
)
def test_what_is_not_different_says_why(scale: float, count: int, reason: str) -> None:
    verdict = different(blocks(1, scale, count), blocks(2, 1.0, count))
    assert not verdict.different
    assert reason in verdict.reason


def test_mean_interval_is_the_t_interval() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high))
    assert mean_interval(values[:2]) is None


def test_paired_seeds_use_the_paired_t_test() -> None:
    a, b = Entry(2.0, {0: 1.9, 1: 2.0, 2: 2.1}), Entry(1.0, {0: 0.95, 1: 0.99, 2: 1.06, 9: 5.0})
    expected = stats.ttest_rel([1.9, 2.0, 2.1], [0.95, 0.99, 1.06])
    assert difference_p(a, b) == pytest.approx(expected.pvalue)
    interval = difference_interval(a, b)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_standard_errors_serve_where_seeds_are_few() -> None:
    a, b = Entry(1.0, {0: 1.0}, 0.3), Entry(0.0, {0: 0.0}, 0.4)
    assert difference_p(a, b) == pytest.approx(2 * stats.norm.sf(2.0))
    assert difference_p(a, Entry(0.0, {0: 0.0})) is None
    assert difference_interval(a, Entry(0.0, {0: 0.0})) is None


def test_identical_differences_are_certain() -> None:
    a = Entry(2.0, {0: 2.0, 1: 2.0, 2: 2.0})
    assert difference_p(a, a) == 1.0
    assert difference_p(a, Entry(1.0, {0: 1.0, 1: 1.0, 2: 1.0})) == 0.0


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def seeded(mean: float, spread: float = 0.01) -> Entry:
    values = {0: mean - spread, 1: mean + 0.3 * spread, 2: mean + 0.7 * spread}
    return Entry(mean, values)


def test_clear_differences_give_single_ranks() -> None:
    entries = [seeded(3.0, 0.02), seeded(1.0), seeded(2.0, 0.015)]
    assert rank_intervals(entries, higher_is_better=False) == [(3, 3), (1, 1), (2, 2)]
    assert rank_intervals(entries, higher_is_better=True) == [(1, 1), (3, 3), (2, 2)]


def test_ties_share_their_ranks() -> None:
    noisy = Entry(1.05, {0: 0.9, 1: 1.3, 2: 0.95})
    entries = [seeded(1.0), noisy, seeded(9.0)]
    assert rank_intervals(entries, higher_is_better=False) == [(1, 2), (1, 2), (3, 3)]


def test_without_uncertainty_nothing_is_decided() -> None:
    entries = [Entry(1.0, {0: 1.0}), Entry(5.0, {0: 5.0})]
    assert rank_intervals(entries, higher_is_better=False) == [(1, 2), (1, 2)]
    assert rank_intervals(entries[:1], higher_is_better=False) == [(1, 1)]
