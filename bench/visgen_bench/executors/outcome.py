"""What every executor offers, and what it says about a process that ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Ended = Literal["exit", "timeout", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a worker's process ended.

    `ended` is what the parent did: waited for its exit, or ended it. `exit_code` is None if a
    signal ended it. `out_of_memory`: the kernel's OOM killer struck on this machine meanwhile.
    """

    ended: Ended
    exit_code: int | None
    signal: int | None
    out_of_memory: bool = False
    start_method: str = "fork"


class Executor(Protocol):
    """Runs jobs, one at a time on a device."""

    def run(self, journal: Path, log: Path, *, fresh: bool, timeout_s: float | None) -> Outcome:
        """Run the job that `journal` begins with to its end."""
        ...

    def listen(self, interrupts: Any) -> None:
        """Stop the running job when these signals arrive; None: listen no longer."""
        ...

    def close(self) -> None:
        """Release what the executor holds."""
        ...
