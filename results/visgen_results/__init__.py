"""The result tables: schema, store, queries, leaderboards and reports. Needs no torch."""

from visgen_results.store import Store, new_run_id
from visgen_results.upkeep import compact, merge, validate

__all__ = ["Store", "compact", "merge", "new_run_id", "validate"]
