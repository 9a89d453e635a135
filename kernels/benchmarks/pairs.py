"""Ways to the same result, timed in turns within one process: how many times faster is ours?

With one thread the clock is the process's own CPU time, which other work on the machine disturbs
least; with more it would count waiting at barriers too, so it is the wall clock then.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

OURS = "ours"


@dataclass(frozen=True)
class Times:
    """Seconds of every round by way."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, way: str) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds[way])

    def faster(self, way: str) -> tuple[float, float, float]:
        """Their time over ours: the median over rounds and its 95 % bootstrap interval."""
        pairs = zip(self.seconds[way], self.seconds[OURS], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        draw = random.Random(1)
        medians = sorted(
            statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000)
        )
        return statistics.median(ratios), medians[25], medians[975]


def timed(ways: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """All ways in every round, in changing order, without autograd; a round of warm-up before."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    order, seconds = random.Random(0), {way: list[float]() for way in ways}
    with torch.no_grad():
        for number in range(rounds + 1):
            for way in order.sample(list(ways), len(ways)):
                start = clock()
                ways[way]()
                if number:
                    seconds[way].append(clock() - start)
    return Times(seconds)


def report(what: str, times: Times) -> None:
    """A line for every way."""
    for way in times.seconds:
        line = f"{what:34} {way:26} {1000 * times.median(way):10.3f} ms"
        if way != OURS:
            line += "   ours is {:.2f} [{:.2f}, {:.2f}] times faster".format(*times.faster(way))
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
