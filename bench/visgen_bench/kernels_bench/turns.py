"""Taking turns: all sides of a comparison in changing order, round after round, in one process.

A ratio is that of medians over rounds, with an interval from resampling rounds; what disturbs the
machine for a while then disturbs both sides. Nothing is dropped as an outlier.

On a CPU each call is timed by two clocks: `wall_sync`, and with one thread `cpu_time`, the time
that the process itself was computing, which neighbours on the cores disturb least. (With more
threads it would count their waiting for each other.)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from visgen_bench.measure import timing

Times = dict[str, list[float]]  # by timing method, the seconds of every call of a turn
Turn = Callable[[str], Times]  # of the side of this name
Rounds = dict[str, list[list[float]]]  # by timing method, the turns of a side

PATIENCE = 6  # times the budget, after which even the fewest rounds are not waited for
SHORT_S = 2e-3  # calls that are shorter fill so much of a turn, by at most ten
MOST_CALLS = 10


def take_turns(
    names: Sequence[str], turn: Turn, *, seconds: float, fewest: int, most: int, seed: int = 0
) -> dict[str, Rounds]:
    """Rounds until `seconds` are over and there are `fewest`, or there are `most`.

    Returns the seconds of every call by side, timing method and round; all sides have as many
    rounds.
    """
    order = random.Random(seed)
    rounds: dict[str, Rounds] = {name: {} for name in names}
    start = time.perf_counter()
    for number in range(most):
        passed = time.perf_counter() - start
        if number >= fewest and passed > seconds:
            break
        if number and passed > PATIENCE * seconds:
            break
        for name in order.sample(names, len(names)):
            for method, times in turn(name).items():
                rounds[name].setdefault(method, []).append(times)
    return rounds


def cpu_turn(
    calls: Mapping[str, timing.Call], typical_s: Mapping[str, float], threads: int
) -> Turn:
    """One call a turn on this process's CPU, several if it is short, by both clocks."""

    def turn(name: str) -> Times:
        call, wall, busy = calls[name], [], []
        for _ in range(calls_in_a_turn(typical_s[name])):
            start, start_busy = time.perf_counter(), time.process_time()
            call()
            end_busy, end = time.process_time(), time.perf_counter()
            wall.append(end - start)
            busy.append(end_busy - start_busy)
        return {"wall_sync": wall, "cpu_time": busy} if threads == 1 else {"wall_sync": wall}

    return turn


def calls_in_a_turn(typical_s: float) -> int:
    """1 for a call of 2 ms and above, more for shorter ones."""
    return max(1, min(MOST_CALLS, int(SHORT_S / max(typical_s, 1e-9))))


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    """All calls of a side, in order."""
    return [seconds for one in rounds for seconds in one]
