"""Timing: warm-up until steady, three methods that are never mixed, percentiles that are earned.

`wall_sync` synchronises before and after each call and gives latencies. `wall_window` synchronises
at the ends of a window of many calls and gives throughput. `events` brackets each call with a pair
of CUDA events and gives device time. No overhead is subtracted and no sample is dropped: an outlier
is counted (`outlier_fraction`); a percentile that too few samples support is None with a reason.

A `call` takes nothing and does one iteration; `sync` waits for the device (nothing to do on a CPU).
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Call = Callable[[], object]
Sync = Callable[[], object]

PERCENTILE_METHOD = "linear"
PERCENTILES = (90.0, 95.0, 99.0)
WINDOW_BLOCKS = 8
# Below six blocks the bootstrap, like an order-statistic interval, has no 95 % coverage to offer.
SMALLEST_BLOCKS = 6
BOOTSTRAP_RESAMPLES = 2000
_NANO = 1e-9


@dataclass(frozen=True, kw_only=True)
class TimingRules:
    """When warm-up ends and when measuring ends; all durations in seconds.

    Warm-up ends when there were `warmup_min_calls` calls, `warmup_min_s` passed and the median of
    the last five calls lies within `tolerance` of the five before; at `warmup_max_s` it ends
    regardless and the series is marked as not steady. Measuring ends when there are `min_iters`
    samples and `min_duration_s` passed, or at `max_duration_s`.
    """

    warmup_min_calls: int = 3
    warmup_min_s: float = 0.5
    warmup_max_s: float = 30.0
    tolerance: float = 0.02
    min_iters: int = 30
    min_duration_s: float = 2.0
    max_duration_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("warmup_min_calls", "min_iters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it counts calls: use 1 or more.")
        for low, high in (("warmup_min_s", "warmup_max_s"), ("min_duration_s", "max_duration_s")):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                raise ValueError(
                    f"{low}={getattr(self, low)} and {high}={getattr(self, high)}; "
                    f"seconds with 0 <= {low} <= {high} are needed."
                )


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What warm-up took: calls, seconds, the last durations, and whether they had settled."""

    calls: int
    seconds: float
    typical_s: float
    steady: bool


@dataclass(frozen=True, kw_only=True)
class Series:
    """Raw durations of one method in seconds, with each call's start after the first one."""

    method: str
    seconds: tuple[float, ...]
    offsets: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One window on one rank: iterations between two clock readings of this host (nanoseconds)."""

    iterations: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number about a series; `value` is None exactly when `reason` says why."""

    stat: str
    value: float | None
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None


def synchronizer(device: str) -> Sync:
    """The call that waits for `device` ("cpu", "cuda", "cuda:1", ...)."""
    if device.split(":")[0] in ("cpu", "meta"):
        return lambda: None
    import torch

    return lambda: torch.accelerator.synchronize(device)


def timed(call: Call, sync: Sync) -> tuple[float, Any]:
    """Seconds of one synchronised call, and what it returned."""
    sync()
    start = time.perf_counter_ns()
    result = call()
    sync()
    return (time.perf_counter_ns() - start) * _NANO, result


def is_settled(durations: Sequence[float], tolerance: float) -> bool:
    """True if the median of the last five durations is within `tolerance` of the five before."""
    if len(durations) < 10:
        return False
    before, last = percentile(durations[-10:-5], 50), percentile(durations[-5:], 50)
    return abs(last - before) <= tolerance * before


def warm_up(call: Call, sync: Sync, rules: TimingRules) -> WarmUp:
    """Call until the rules are met or `warmup_max_s` is over; a capped warm-up is not steady."""
    durations: list[float] = []
    begin = time.perf_counter_ns()
    while True:
        durations.append(timed(call, sync)[0])
        passed = (time.perf_counter_ns() - begin) * _NANO
        enough = len(durations) >= rules.warmup_min_calls and passed >= rules.warmup_min_s
        steady = is_settled(durations, rules.tolerance)
        if (enough and steady) or passed >= rules.warmup_max_s:
            return WarmUp(
                calls=len(durations),
                seconds=passed,
                typical_s=percentile(durations[-5:], 50),
                steady=enough and steady,
            )


def wall_sync(call: Call, sync: Sync, rules: TimingRules) -> Series:
    """Latency of each call, the device synchronised on both sides of it."""
    starts: list[int] = []
    ends: list[int] = []
    clock = time.perf_counter_ns
    sync()
    begin = clock()
    while True:
        starts.append(clock())
        call()
        sync()
        ends.append(clock())
        passed = (ends[-1] - begin) * _NANO
        if len(ends) >= rules.min_iters and passed >= rules.min_duration_s:
            break
        if passed >= rules.max_duration_s:
            break
    return Series(
        method="wall_sync",
        seconds=tuple((end - start) * _NANO for start, end in zip(starts, ends, strict=True)),
        offsets=tuple((start - starts[0]) * _NANO for start in starts),
    )


def events(call: Call, device: str, rules: TimingRules, typical_s: float) -> Series:
    """Device time of each call between two CUDA events, one synchronise at the end.

    `typical_s` (from warm-up) sets the number of calls, since nothing is read before the end.
    Raises ValueError on a device without events.
    """
    if device.split(":")[0] != "cuda":
        raise ValueError(
            f'timing method "events" needs a CUDA device, got "{device}"; use wall_sync.'
        )
    import torch

    count = iterations_for(rules, typical_s)
    with torch.cuda.device(device):
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(count)
        ]
        torch.cuda.synchronize()
        for start, end in pairs:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
    first = pairs[0][0]
    return Series(
        method="events",
        seconds=tuple(start.elapsed_time(end) * 1e-3 for start, end in pairs),
        offsets=tuple(first.elapsed_time(start) * 1e-3 for start, _ in pairs),
    )


def iterations_for(rules: TimingRules, typical_s: float) -> int:
    """Calls that fill `min_duration_s` and reach `min_iters`, but stay inside `max_duration_s`."""
    typical_s = max(typical_s, 1e-9)
    wanted = max(rules.min_iters, math.ceil(rules.min_duration_s / typical_s))
    return max(1, min(wanted, int(rules.max_duration_s / typical_s)))


def window_plan(rules: TimingRules, typical_s: float) -> tuple[int, int]:
    """(blocks, iterations per block) of a throughput window of about `min_duration_s`.

    Eight blocks give the interval; calls so long that eight of them pass `max_duration_s` get
    fewer blocks of one call each.
    """
    typical_s = max(typical_s, 1e-9)
    most = max(1, int(rules.max_duration_s / typical_s))
    blocks = min(WINDOW_BLOCKS, most)
    return blocks, max(1, math.ceil(rules.min_duration_s / typical_s / blocks))


def wall_window(
    call: Call,
    sync: Sync,
    *,
    blocks: int,
    iterations: int,
    barrier: Callable[[], object] | None = None,
) -> tuple[Block, ...]:
    """Run `blocks` windows of unsynchronised calls; several ranks meet at `barrier` before each."""
    clock = time.perf_counter_ns
    result = []
    for _ in range(blocks):
        if barrier is not None:
            barrier()
        sync()
        start = clock()
        for _ in range(iterations):
            call()
        sync()
        result.append(Block(iterations=iterations, start_ns=start, end_ns=clock()))
    return tuple(result)


def throughput(ranks: Sequence[Sequence[Block]], samples_per_call: int) -> Statistic:
    """Samples per second of all ranks together.

    Total samples / sum over blocks of (last rank's end - first rank's start). Ranks
    must share one clock (processes of one host do). Rank throughputs are never averaged.
    The interval is a percentile bootstrap over blocks with a fixed seed; it needs six blocks.
    """
    columns = list(zip(*ranks, strict=True))
    samples = [samples_per_call * sum(block.iterations for block in column) for column in columns]
    spans = [
        (max(block.end_ns for block in column) - min(block.start_ns for block in column)) * _NANO
        for column in columns
    ]
    value = sum(samples) / sum(spans)
    if len(columns) < SMALLEST_BLOCKS:
        method = f"none: {len(columns)} blocks, an interval needs {SMALLEST_BLOCKS}"
        return Statistic(stat="value", value=value, ci_method=method)
    generator = random.Random(0)
    draws = []
    for _ in range(BOOTSTRAP_RESAMPLES):
        chosen = generator.choices(range(len(columns)), k=len(columns))
        draws.append(sum(samples[i] for i in chosen) / sum(spans[i] for i in chosen))
    low, high = percentile(draws, 2.5), percentile(draws, 97.5)
    return Statistic(
        stat="value", value=value, ci_low=low, ci_high=high, ci_method="bootstrap over blocks, 95 %"
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between order statistics (NumPy's default); `percent` in 0..100."""
    if not values:
        raise ValueError("percentile of an empty series; measure at least one sample.")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def smallest_n(percent: float) -> int:
    """Samples from which a percentile has a distribution-free one-sided 95 % upper bound.

    The largest of n samples bounds the q-quantile with confidence 1 - q**n: n >= ln 0.05 / ln q.
    """
    if not 0 < percent < 100:
        raise ValueError(f"percent={percent}; a percentile lies strictly between 0 and 100.")
    return math.ceil(math.log(0.05) / math.log(percent / 100))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Distribution-free 95 % interval of the median from order statistics; None below 6 samples."""
    n = len(values)
    if n < 6:
        return None
    ordered = sorted(values)
    # Largest k with P(Binomial(n, 1/2) <= k) <= 0.025; the interval is [x_(k+1), x_(n-k)], from 1.
    total, k = 0.0, -1
    while True:
        log_term = math.lgamma(n + 1) - math.lgamma(k + 2) - math.lgamma(n - k) - n * math.log(2)
        total += math.exp(log_term)
        if total > 0.025:
            return ordered[k], ordered[n - 1 - k]
        k += 1


def outlier_fraction(values: Sequence[float]) -> float:
    """Share of samples over 1.5 interquartile ranges outside the quartiles (none is dropped)."""
    low, high = percentile(values, 25), percentile(values, 75)
    reach = 1.5 * (high - low)
    return sum(not low - reach <= value <= high + reach for value in values) / len(values)


def summary(values: Sequence[float]) -> list[Statistic]:
    """Median with interval, mean, spread, extremes, and the percentiles that n supports."""
    n = len(values)
    mean = math.fsum(values) / n
    interval = median_interval(values)
    few = f"{n} samples; "
    median = Statistic(
        stat="p50",
        value=percentile(values, 50) if n >= smallest_n(50) else None,
        reason=None if n >= smallest_n(50) else f"{few}p50 needs {smallest_n(50)}",
        ci_low=interval[0] if interval else None,
        ci_high=interval[1] if interval else None,
        ci_method="order statistics, 95 %" if interval else f"none: {few}an interval needs 6",
    )
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    rows = [
        median,
        Statistic(stat="mean", value=mean),
        Statistic(stat="min", value=min(values)),
        Statistic(stat="max", value=max(values)),
        Statistic(stat="iqr", value=percentile(values, 75) - percentile(values, 25)),
        Statistic(
            stat="std", value=deviation, reason=None if n > 1 else f"{few}a deviation needs 2"
        ),
    ]
    for percent in PERCENTILES:
        enough = n >= smallest_n(percent)
        rows.append(
            Statistic(
                stat=f"p{percent:g}",
                value=percentile(values, percent) if enough else None,
                reason=None if enough else f"{few}p{percent:g} needs {smallest_n(percent)}",
            )
        )
    return rows
