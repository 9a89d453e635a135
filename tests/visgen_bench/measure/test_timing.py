import math
import time

import numpy as np
import pytest

from visgen_bench.measure.timing import (
    Block,
    TimingRules,
    is_settled,
    iterations_for,
    median_interval,
    outlier_fraction,
    percentile,
    smallest_n,
    summary,
    synchronizer,
    throughput,
    timed,
    wall_sync,
    wall_window,
    warm_up,
    window_plan,
)

NO_SYNC = synchronizer("cpu")
SECOND = 1_000_000_000


def by_stat(values: list[float]) -> dict[str, tuple[float | None, str | None]]:
    return {row.stat: (row.value, row.reason) for row in summary(values)}


def test_a_sleep_of_20_ms_is_measured_within_2_percent_by_both_wall_methods():
    # A sleep on a busy machine may oversleep but never undersleeps: the quartile is the known part.
    rules = TimingRules(min_iters=30, min_duration_s=0.0)
    series = wall_sync(lambda: time.sleep(0.02), NO_SYNC, rules)
    assert len(series.seconds) == 30
    assert min(series.seconds) >= 0.02
    assert percentile(series.seconds, 25) == pytest.approx(0.02, rel=0.02)
    blocks = wall_window(lambda: time.sleep(0.02), NO_SYNC, blocks=10, iterations=3)
    per_call = [(b.end_ns - b.start_ns) / b.iterations / SECOND for b in blocks]
    assert percentile(per_call, 25) == pytest.approx(0.02, rel=0.02)


def test_offsets_are_the_starts_of_the_calls():
    rules = TimingRules(min_iters=5, min_duration_s=0.0)
    series = wall_sync(lambda: time.sleep(0.002), NO_SYNC, rules)
    assert series.offsets[0] == 0.0
    gaps = np.diff(series.offsets)
    assert (gaps >= np.array(series.seconds[:-1])).all()


def test_the_measured_loop_needs_iterations_and_duration_both():
    longer = TimingRules(min_iters=2, min_duration_s=0.05)
    series = wall_sync(lambda: time.sleep(0.005), NO_SYNC, longer)
    assert series.offsets[-1] + series.seconds[-1] >= 0.05
    more = TimingRules(min_iters=12, min_duration_s=0.001)
    assert len(wall_sync(lambda: time.sleep(0.001), NO_SYNC, more).seconds) == 12


def test_the_measured_loop_stops_at_its_longest_duration():
    rules = TimingRules(min_iters=1000, min_duration_s=0.0, max_duration_s=0.05)
    series = wall_sync(lambda: time.sleep(0.01), NO_SYNC, rules)
    assert 1 < len(series.seconds) < 10


def test_warm_up_ends_when_the_calls_have_settled():
    rules = TimingRules(warmup_min_s=0.0, tolerance=0.05)
    result = warm_up(lambda: time.sleep(0.01), NO_SYNC, rules)
    assert result.steady
    assert result.calls >= 10
    assert 0.01 <= result.typical_s < 0.02  # a sleep may last longer, never shorter


def test_warm_up_outlasts_slow_first_calls():
    calls = iter([0.05] * 5 + [0.005] * 1000)
    rules = TimingRules(warmup_min_s=0.0, tolerance=0.1)
    result = warm_up(lambda: time.sleep(next(calls)), NO_SYNC, rules)
    assert result.steady
    assert result.calls >= 13  # three fast calls among each five
    assert 0.005 <= result.typical_s < 0.025  # of the fast calls; a sleep may last longer


def test_a_warm_up_that_never_settles_is_capped_and_marked():
    state = {"seconds": 0.001}

    def slower_each_time() -> None:
        state["seconds"] *= 1.2
        time.sleep(state["seconds"])

    rules = TimingRules(warmup_min_s=0.0, warmup_max_s=0.1)
    result = warm_up(slower_each_time, NO_SYNC, rules)
    assert not result.steady
    assert result.seconds >= 0.1


def test_settled_compares_the_last_five_with_the_five_before():
    assert not is_settled([1.0] * 9, 0.02)
    assert is_settled([9.0] * 20 + [1.0] * 5 + [1.01] * 5, 0.02)
    assert not is_settled([1.0] * 5 + [1.03] * 5, 0.02)
    assert is_settled([1.0] * 5 + [1.0, 1.0, 1.0, 50.0, 50.0], 0.02)


def test_timed_returns_the_result_too():
    seconds, result = timed(lambda: time.sleep(0.005) or "made", NO_SYNC)
    assert result == "made"
    assert seconds >= 0.005


@pytest.mark.parametrize(("percent", "n"), [(50, 5), (90, 29), (95, 59), (99, 299), (99.9, 2995)])
def test_smallest_sample_counts_are_those_of_the_95_percent_bound(percent: float, n: int):
    assert smallest_n(percent) == n
    q = percent / 100
    assert 1 - q**n >= 0.95 > 1 - q ** (n - 1)


def test_percentiles_equal_numpys_linear_method():
    values = np.random.default_rng(0).exponential(size=101).tolist()
    for percent in (0, 1, 25, 50, 90, 95, 99.9, 100):
        assert percentile(values, percent) == pytest.approx(
            np.percentile(values, percent, method="linear"), rel=1e-12
        )


@pytest.mark.parametrize(("stat", "n"), [("p50", 5), ("p90", 29), ("p95", 59), ("p99", 299)])
def test_a_percentile_below_its_sample_count_is_null_with_the_reason(stat: str, n: int):
    value, reason = by_stat([1.0 + 0.001 * i for i in range(n - 1)])[stat]
    assert value is None
    assert reason == f"{n - 1} samples; {stat} needs {n}"
    value, reason = by_stat([1.0 + 0.001 * i for i in range(n)])[stat]
    assert value is not None
    assert reason is None


def test_summary_of_one_sample_has_no_deviation_and_says_so():
    rows = by_stat([0.5])
    assert rows["mean"] == (0.5, None)
    assert rows["std"] == (None, "1 samples; a deviation needs 2")


def test_summary_equals_numpy():
    values = np.random.default_rng(1).gamma(2.0, size=300).tolist()
    rows = by_stat(values)
    assert rows["mean"][0] == pytest.approx(np.mean(values))
    assert rows["std"][0] == pytest.approx(np.std(values, ddof=1))
    assert rows["iqr"][0] == pytest.approx(np.subtract(*np.percentile(values, [75, 25])))
    assert (rows["min"][0], rows["max"][0]) == (min(values), max(values))


def test_the_medians_interval_is_the_tables_order_statistics():
    # Tabulated 95 % ranks for the median: n 6 -> 1, 6; n 20 -> 6, 15; n 100 -> 40, 61.
    assert median_interval([1.0] * 5) is None
    for n, low, high in [(6, 1, 6), (20, 6, 15), (100, 40, 61)]:
        assert median_interval([float(i) for i in range(1, n + 1)]) == (low, high)


def test_the_medians_interval_covers_the_median_at_least_95_times_in_100():
    draws = np.random.default_rng(2).exponential(size=(2000, 25))
    intervals = [median_interval(row.tolist()) for row in draws]
    covered = sum(i is not None and i[0] <= math.log(2) <= i[1] for i in intervals)
    assert covered / len(draws) >= 0.95


def test_outliers_are_counted_and_kept():
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98, 1.0, 40.0]
    assert outlier_fraction(values) == pytest.approx(0.1)
    assert by_stat(values)["max"][0] == 40.0
    assert outlier_fraction([2.0] * 10) == 0.0


def test_throughput_of_ranks_runs_from_the_first_start_to_the_last_end():
    fast = Block(iterations=10, start_ns=0, end_ns=1 * SECOND)
    slow = Block(iterations=10, start_ns=SECOND // 2, end_ns=2 * SECOND)
    together = throughput([[fast], [slow]], samples_per_call=4)
    assert together.value == pytest.approx(80 / 2)  # the mean of rank rates would say 66.7 in all
    assert together.ci_low is None
    assert together.ci_method == "none: 1 blocks, an interval needs 6"


def test_throughputs_interval_encloses_it_and_shrinks_to_it_for_equal_blocks():
    equal = [Block(iterations=5, start_ns=0, end_ns=SECOND) for _ in range(6)]
    result = throughput([equal], samples_per_call=2)
    assert (result.ci_low, result.value, result.ci_high) == (10.0, 10.0, 10.0)
    uneven = [Block(iterations=5, start_ns=0, end_ns=SECOND * (1 + i)) for i in range(8)]
    result = throughput([uneven], samples_per_call=2)
    assert result.value == pytest.approx(80 / 36)
    assert None not in (result.ci_low, result.value, result.ci_high)
    assert (result.ci_low or 0) < (result.value or 0) < (result.ci_high or 0)


def test_the_window_is_cut_into_eight_blocks_unless_calls_are_too_long():
    rules = TimingRules(min_duration_s=2.0, max_duration_s=60.0)
    assert window_plan(rules, 0.01) == (8, 25)
    assert window_plan(rules, 1.0) == (8, 1)
    assert window_plan(rules, 20.0) == (3, 1)
    assert window_plan(rules, 200.0) == (1, 1)


def test_the_number_of_event_pairs_follows_the_same_rules():
    rules = TimingRules(min_iters=30, min_duration_s=2.0, max_duration_s=60.0)
    assert iterations_for(rules, 0.01) == 200
    assert iterations_for(rules, 1.0) == 30
    assert iterations_for(rules, 10.0) == 6
    assert iterations_for(rules, 600.0) == 1


def test_a_barrier_is_met_before_every_block():
    met: list[str] = []
    wall_window(
        lambda: met.append("call"),
        NO_SYNC,
        blocks=2,
        iterations=3,
        barrier=lambda: met.append("barrier"),
    )
    assert met == ["barrier", "call", "call", "call"] * 2


def test_rules_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="min_duration_s=9"):
        TimingRules(min_duration_s=9, max_duration_s=3)
    with pytest.raises(ValueError, match="min_iters=0"):
        TimingRules(min_iters=0)


def test_cuda_events_on_a_cpu_are_refused_with_the_alternative():
    from visgen_bench.measure.timing import events

    with pytest.raises(ValueError, match="use wall_sync"):
        events(lambda: None, "cpu", TimingRules(), 0.01)


@pytest.mark.gpu
def test_events_and_wall_sync_agree_on_a_long_kernel():
    import torch

    from visgen_bench.measure.timing import events

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    a = torch.randn(8192, 8192, device="cuda")
    rules = TimingRules(min_iters=20, min_duration_s=0.1)
    for _ in range(5):
        torch.matmul(a, a)
    wall = percentile(wall_sync(lambda: a @ a, synchronizer("cuda"), rules).seconds, 50)
    device = percentile(events(lambda: a @ a, "cuda", rules, wall).seconds, 50)
    assert device == pytest.approx(wall, rel=0.05)
