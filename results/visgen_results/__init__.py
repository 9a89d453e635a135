"""The result tables: schema, store, queries, leaderboards and reports. Needs no torch.

`visgen_results.query`, `.leaderboard`, `.compare` and `.report` each hold a function of the same
name; they are imported from there, so that a writer of rows pays for none of them.
"""

from visgen_results.reading import load
from visgen_results.store import Store, new_run_id
from visgen_results.upkeep import compact, merge, validate

__all__ = ["Store", "compact", "load", "merge", "new_run_id", "validate"]
