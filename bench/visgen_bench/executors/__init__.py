"""Where a cell's process is started: an executor runs one job and says how its process ended."""

from visgen_bench.executors.outcome import Executor, Outcome

__all__ = ["Executor", "Outcome"]
