"""Did anybody else use these cores while we measured? From the kernel's counters, around a pass.

A neighbour on one core of two can slow a call with two threads thirtyfold (threads that meet at a
barrier wait for the one that was descheduled), and such times settle as steadily as good ones do.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Below this share of the usable cores' time others are taken for the system's own housekeeping.
NEGLIGIBLE = 0.05
SHORTEST_S = 0.2
_IDLE, _IOWAIT = 3, 4
_USER_TO_STEAL = 8  # later columns (guest) are contained in user


@dataclass(kw_only=True)
class Contention:
    """Share of the usable cores' time that went to others inside a `with` block.

    `share` is None where the kernel does not tell, or for a block too short for its clock ticks.
    """

    share: float | None = None

    def __enter__(self) -> Self:
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._start
        busy = _busy_seconds()
        if busy is None or self._busy is None or seconds < SHORTEST_S:
            return
        others = (busy - self._busy) - (_own_seconds() - self._own)
        self.share = max(0.0, others / (seconds * len(os.sched_getaffinity(0))))

    @property
    def exclusive(self) -> bool | None:
        """True if others took less than 5 %; None if not known."""
        return None if self.share is None else self.share < NEGLIGIBLE


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _busy_seconds() -> float | None:
    """Seconds that the cores of this process's affinity were not idle; stolen time counts."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name in wanted:
            counts = [int(field) for field in fields[:_USER_TO_STEAL]]
            ticks += sum(counts) - counts[_IDLE] - counts[_IOWAIT]
    return ticks / os.sysconf("SC_CLK_TCK")
