"""From a journal to rows: what an attempt reported, and how it ended, committed to the store.

Every outcome is a row. The order of the tables makes `runs` the last one, so a run that is visible
is complete; a second commit of the same journal finds the files and writes nothing twice.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgen_bench import journal as journals
from visgen_bench.executors import Outcome
from visgen_bench.journal import Job
from visgen_results import schema
from visgen_results.metrics import METRICS
from visgen_results.store import Store, new_run_id, run_day

LOG_TAIL = 2000  # characters of a dead worker's log that go into its row

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One attempt as it was written: its `runs` row and its `metrics` rows."""

    run: Row
    metrics: list[Row]

    @property
    def status(self) -> str:
        return self.run["status"]

    @property
    def reason(self) -> str:
        """Why it is not ok, in one line; empty if it is."""
        parts = [self.run.get("invalid_reason"), self.run.get("error_msg")]
        text = next((part for part in parts if part), "")
        return text.strip().splitlines()[-1] if text.strip() else ""


def commit(store: Store, path: Path, outcome: Outcome | None) -> Recorded | None:
    """Write the rows of a journal and delete it.

    Args:
        store: Where to.
        path: The journal.
        outcome: How the worker ended; None if its parent died and nobody knows.

    Returns:
        What was written; None if the journal holds no job.

    Raises:
        OSError: if the disk does not take it; the journal stays and the next run commits it.
    """
    job = journals.read_job(path)
    if job is None:
        journals.remove(path)
        return None
    records = journals.read_all(path)
    run = {**job.run, **_provenance(records), **_ending(job, records, outcome, store.root)}
    now = datetime.datetime.now(datetime.UTC)
    started = datetime.datetime.fromisoformat(job.run["started_at"])
    run |= {"started_at": started, "ended_at": _last_moment(path, now) if outcome is None else now}
    artifacts = f"artifacts/{job.spec_key}"
    if run.get("artifacts_path") is None and (store.root / artifacts).is_dir():
        run["artifacts_path"] = artifacts
    run["duration_s"] = max(0.0, (run["ended_at"] - started).total_seconds())
    metrics = [*_start_rows(records, outcome), *(r["row"] for r in records if "row" in r)]
    if run["status"] not in ("ok", "skipped"):
        metrics += _unmeasured(job, metrics, run)
    copied = schema.copies(run)
    metrics = [{**copied, "cell_key": job.cell_key, **row} for row in metrics]
    measurements = [one for r in records if "rows" in r for one in _long(r["rows"])]
    _enter_plugins(metrics)
    for table, rows in (("metrics", metrics), ("measurements", measurements), ("runs", [run])):
        append_once(store, table, rows, kind=run["kind"], run_id=job.run_id)
    journals.remove(path)
    return Recorded(run=run, metrics=metrics)


def _enter_plugins(metrics: Sequence[Row]) -> None:
    """What a killed harness left may hold a metric that this plan does not ask for."""
    for name in {row["metric"] for row in metrics} - METRICS.keys():
        from visgen_bench.metrics import plugins

        plugins.find(name)


def append_once(
    store: Store, table: str, rows: Sequence[Row], *, kind: str, run_id: str, writer: str = "0"
) -> None:
    """Append, unless there is nothing to write or an earlier attempt to commit has written it."""
    if rows and not store.path(table, kind, run_id, writer).exists():
        store.append(table, rows, kind=kind, run_id=run_id, writer=writer)


def recover(store: Store) -> list[Recorded]:
    """Commit what killed parents left behind: `crash`, or as it ended if the worker got there."""
    found = [commit(store, path, None) for path in journals.abandoned(store.root)]
    return [one for one in found if one is not None]


def record_skipped(store: Store, job: Job, reason: str, metrics: Sequence[str]) -> Recorded:
    """Write the rows of a cell that cannot run here: one run, one null row a metric."""
    now = datetime.datetime.now(datetime.UTC)
    run = {**job.run, "status": "skipped", "invalid_reason": reason, "duration_s": 0.0}
    run |= {"started_at": now, "ended_at": now}
    copied = schema.copies(run)
    rows = [
        {**copied, "cell_key": job.cell_key, "metric": metric, "stat": "value", "phase": "total"}
        | {"rank": -1, "value": None, "reason": reason}
        for metric in metrics
    ]
    append_once(store, "metrics", rows, kind=run["kind"], run_id=job.run_id)
    append_once(store, "runs", [run], kind=run["kind"], run_id=job.run_id)
    return Recorded(run=run, metrics=rows)


def record_machine(store: Store, row: Row, kind: str) -> None:
    """Write this machine's facts unless the store has them."""
    known = store.read("machines")
    pairs = zip(
        known.column("machine_id").to_pylist(), known.column("env_id").to_pylist(), strict=True
    )
    if (row["machine_id"], row["env_id"]) not in set(pairs):
        run_id = new_run_id()
        store.append("machines", [row], kind=kind, run_id=run_id)


def _provenance(records: Sequence[Row]) -> Row:
    columns: Row = {}
    for record in records:
        if record.get("event") == "provenance":
            columns |= record["columns"]
    return columns


def _ending(job: Job, records: Sequence[Row], outcome: Outcome | None, root: Path) -> Row:
    """Status, exit code, signal and error of the attempt."""
    # A rank that failed knows why; rank 0 only knows that it was stopped.
    ends = [record for record in records if record.get("event") == "end"]
    end = next((e for e in ends if e["status"] not in ("ok", "cancelled")), ends[0] if ends else {})
    columns = {
        key: end[key]
        for key in ("status", "invalid_reason", "error_type", "error_msg")
        if key in end
    }
    if outcome is None:
        columns.setdefault("status", "crash")
        if not end:
            columns["error_msg"] = "the harness was killed while this cell ran"
        return columns
    columns |= {"exit_code": outcome.exit_code, "signal": outcome.signal}
    if outcome.ended != "exit" and columns.get("status") != "ok":
        columns["status"] = outcome.ended
        if outcome.ended == "timeout":
            columns["error_msg"] = f"did not end within {job.options.get('timeout_s')} s"
    elif "status" not in columns:
        columns["status"] = "oom" if outcome.out_of_memory else "crash"
        columns["error_msg"] = _how_it_died(outcome, root / job.log)
    return columns


def _how_it_died(outcome: Outcome, log: Path) -> str:
    if outcome.out_of_memory:
        return "the kernel killed the worker because memory ran out"
    how = f"signal {outcome.signal}" if outcome.signal else f"exit code {outcome.exit_code}"
    try:
        tail = log.read_text("utf-8", errors="replace")[-LOG_TAIL:].strip()
    except OSError:
        tail = ""
    return f"the worker ended with {how} and no word" + (f"; its log ends:\n{tail}" if tail else "")


def _last_moment(path: Path, now: datetime.datetime) -> datetime.datetime:
    """When a journal was last written to or beaten: the nearest thing to the time of death."""
    moment = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return min(moment, now)


def _start_rows(records: Sequence[Row], outcome: Outcome | None) -> list[Row]:
    """Process start is a row of its own, never part of a measurement."""
    for record in records:
        if record.get("event") == "start":
            method = outcome.start_method if outcome is not None else "unknown"
            return [
                {
                    "metric": "process_start",
                    "value": record["process_start_s"],
                    "stat": "value",
                    "phase": "total",
                    "rank": -1,
                    "timing_method": "wall_sync",
                    "metric_opts": json.dumps({"start": method}),
                }
            ]
    return []


def _unmeasured(job: Job, measured: Sequence[Row], run: Row) -> list[Row]:
    """Null rows for the metrics that were asked for and never came."""
    seen = {row["metric"] for row in measured}
    first_line = (run.get("error_msg") or run.get("invalid_reason") or "").partition("\n")[0]
    reason = f"{run['status']}: {first_line}" if first_line else run["status"]
    return [
        {"metric": metric, "value": None, "stat": "value", "phase": "total", "rank": -1}
        | {"reason": reason}
        for metric in job.options.get("metrics", ())
        if metric not in seen
    ]


def _long(record: Row) -> list[Row]:
    """One row a value."""
    common = {key: record[key] for key in ("metric", "phase", "rank", "block")}
    offsets = record.get("t_offset_s") or [None] * len(record["value"])
    return [
        {**common, "iter": number, "value": value, "t_offset_s": offset}
        for number, value, offset in zip(record["iter"], record["value"], offsets, strict=True)
    ]


def log_name(run_id: str) -> str:
    """Where a worker's log lies, relative to the result folder."""
    return f"logs/{run_day(run_id)}/{run_id}.log"
