"""One reading of a result folder for leaderboards, comparisons and reports: rows that count.

Of every cell only the newest ok run counts. Its `metrics` rows get the columns they left out from
its `runs` row, and the versions of torch and driver from `machines`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from visgen_results import schema
from visgen_results.rows import to_rows
from visgen_results.store import Problem, Store, check_holds_results, latest, read_file

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

_SHARED = tuple(name for name in schema.METRICS.names if name in schema.RUNS.names)


@dataclass(frozen=True)
class Results:
    """What a result folder says: numbers that count, and every cell that gave none.

    `numbers` are `metrics` rows of the newest ok run of each cell, with `torch` and `driver` added;
    `failed` are the newest `runs` rows of cells that have no ok run.
    """

    root: Path
    runs: list[Row]
    numbers: list[Row]
    failed: list[Row]
    machines: list[Row]
    problems: tuple[Problem, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.runs or self.failed)


def read_results(root: Path | str, on_problem: Callable[[Problem], None] | None = None) -> Results:
    """Read a result folder; unreadable files are named in `problems` (and given to `on_problem`).

    Raises `ValueError` if the folder does not exist or holds no result table.
    """
    store, problems = Store(root), []
    check_holds_results(store.root)
    runs = store.read("runs", problems.append)
    machines = to_rows(store.read("machines", problems.append))
    counting = to_rows(latest(runs))
    by_run = {run["run_id"]: run for run in counting}
    numbers = [
        row for row in to_rows(store.read("metrics", problems.append)) if row["run_id"] in by_run
    ]
    complete(numbers, by_run, machines)
    found = tuple(dict.fromkeys(problems))
    for problem in found:
        if on_problem is not None:
            on_problem(problem)
    failed = _failed(to_rows(runs), {run["cell_key"] for run in counting})
    return Results(store.root, counting, numbers, failed, _newest_machines(machines), found)


def complete(numbers: Iterable[Row], runs: dict[str, Row], machines: Sequence[Row]) -> None:
    """Fill in place what a metrics row left to its run, and the versions it was taken with."""
    versions = {(m["machine_id"], m["env_id"]): m for m in machines}
    for row in numbers:
        run = runs[row["run_id"]]
        for name in _SHARED:
            if row[name] is None:
                row[name] = run[name]
        facts = versions.get((row["machine_id"], row["env_id"]), {})
        row["torch"], row["driver"] = facts.get("torch"), facts.get("driver")


def _failed(runs: Sequence[Row], fine: set[str]) -> list[Row]:
    newest: dict[str, Row] = {}
    for run in sorted(runs, key=lambda r: r["run_id"]):
        if run["cell_key"] not in fine:
            newest[run["cell_key"]] = run
    return list(newest.values())


def _newest_machines(rows: Sequence[Row]) -> list[Row]:
    """One row per (machine, environment): the newest."""
    newest: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["machine_id"], row["env_id"])
        old = newest.get(key)
        if old is None or _moment(row) >= _moment(old):
            newest[key] = row
    return list(newest.values())


def _moment(row: Row) -> float:
    moment = row["collected_at"]
    return float("-inf") if moment is None else moment.timestamp()


def failure_reason(run: Row) -> str:
    """Why a cell has no number, from its newest run."""
    parts = [run["invalid_reason"], run["error_type"], run["error_msg"]]
    text = ": ".join(part for part in parts if part)
    if not text and run["signal"]:
        text = f"ended by signal {run['signal']}"
    if not text and run["exit_code"] is not None:
        text = f"exit code {run['exit_code']}"
    return text or "no reason was recorded"


def load(path: Path | str, table: str = "metrics", *, only_latest: bool = False) -> "pd.DataFrame":
    """A table as a DataFrame: of a result folder, or of one result file.

    `only_latest` keeps the rows of the newest ok run of each cell (folders only). In pandas null
    and NaN look alike: where `value` was not measured, `reason` is set.
    """
    place = Path(path)
    if place.is_file():
        metadata = pq.read_schema(place).metadata or {}
        table = metadata.get(b"visgen.schema_name", b".").decode().rpartition(".")[2] or table
        return read_file(table, place)[0].to_pandas()
    if not place.is_dir():
        raise ValueError(f"no result folder or file at {place}")
    store = Store(place)
    content = store.read(table)
    if only_latest and "run_id" in content.column_names:
        wanted = set(store.latest().column("run_id").to_pylist())
        keep = [run_id in wanted for run_id in content.column("run_id").to_pylist()]
        content = content.filter(pa.array(keep, type=pa.bool_()))
    return content.to_pandas()
