"""Running groups one after the other, and their records as rows: one run for every backend."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgen_bench.cell import canonical_json, content_key
from visgen_bench.kernels_bench.names import COMPILED, OURS
from visgen_bench.kernels_bench.processes import Ended, run_child
from visgen_bench.kernels_bench.request import Group
from visgen_bench.measure import environment
from visgen_bench.recording import append_once, log_name, record_machine
from visgen_bench.running import only_writer, prepare_output, version
from visgen_kernels.shapes import SHAPES, Shape
from visgen_results import schema
from visgen_results.store import Store, new_run_id

OPERATIONS = {
    "attention": "attention",
    "decode": "attention_decode",
    "codebook": "nearest_code",
}

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(kw_only=True)
class Written:
    """Rows as they were written, newest last."""

    runs: list[Row] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        """Runs of ours that gave no numbers; a peer that fails is a row and no failure of ours."""
        bad = ("error", "oom", "crash", "timeout", "invalid")
        return [run for run in self.runs if run["attention"] in OURS and run["status"] in bad]


def run_groups(
    asked: Sequence[Group], out: Path, say: Say, *, timeout_s: float | None = None
) -> Written:
    """Measure groups and write their rows below `out`.

    Raises:
        OutputError: if the folder cannot be written to, before anything is started.
    """
    prepare_output(out)
    store, written = Store(out), Written()
    with only_writer(out):
        for number, group in enumerate(asked, start=1):
            started = _now()
            log = log_name(new_run_id())
            (out / log).parent.mkdir(parents=True, exist_ok=True)
            ended = run_child(
                "bench",
                group.to_json(),
                log=out / log,
                timeout_s=timeout_s,
                threads=group.threads,
            )
            commit_group(store, group, ended, started, log, written)
            label = f"[{number}/{len(asked)}] {group.name}"
            for line in said(written.runs[-len(group.backends) :], written.metrics):
                say(f"{label}: {line}")
    return written


def commit_group(
    store: Store, group: Group, ended: Ended, started: datetime.datetime, log: str, into: Written
) -> None:
    """Write a run for every backend of a group, with all its numbers or the reason it has none."""
    shape = SHAPES[group.shape]
    record_machine(store, environment.machine_row(), "kernel")
    for backend in group.backends:
        own = [record for record in ended.records if record.get("backend") == backend]
        status, reason = outcome(own, ended)
        run = {
            **machine_columns(),
            **columns_of(group, backend, shape, _device_name(group, ended)),
            **ending(status, reason, started, log),
        }
        metrics = [record["row"] for record in own if "row" in record]
        if not any(row["metric"] == "latency" for row in metrics):
            metrics.append(absent("latency", reason or status))
        write_run(store, run, metrics, own, into)


def write_run(
    store: Store, run: Row, metrics: Iterable[Row], records: Iterable[Row], into: Written
) -> None:
    """Commit one run: its metrics, its raw times, then the run itself, which makes it visible."""
    copied = {**schema.copies(run), "cell_key": run["cell_key"]}
    rows = [{**copied, **row} for row in metrics]
    raw = [one for record in records if "series" in record for one in _long(record)]
    for table, content in (("metrics", rows), ("measurements", raw), ("runs", [run])):
        append_once(store, table, content, kind=run["kind"], run_id=run["run_id"])
    into.runs.append(run)
    into.metrics += rows


def _long(record: Row) -> list[Row]:
    """One row a value; the round is the block."""
    return [
        {**record["series"], "iter": number, "value": value}
        for number, value in enumerate(record["values"])
    ]


def outcome(own: Sequence[Row], ended: Ended) -> tuple[str, str | None]:
    """(status, reason) of a backend, also where its process died or never got to it."""
    end = next((record for record in own if record.get("event") == "end"), None)
    if end is not None:
        return end["status"], end["reason"]
    status = ended.status or "crash"
    reason = ended.reason or "the measuring process said nothing of this backend"
    finished = {r["backend"] for r in ended.records if r.get("event") == "end"}
    begun = [r["backend"] for r in ended.records if r.get("event") == "begin"]
    at_work = next((name for name in reversed(begun) if name not in finished), None)
    return status, reason if at_work is None else f"{reason} (while {at_work} was measured)"


def ending(status: str, reason: str | None, started: datetime.datetime, log: str) -> Row:
    """Columns of the `runs` row that say when and how it ended."""
    ended = _now()
    return {
        "run_id": new_run_id(),
        "attempt": 1,
        "status": status,
        "invalid_reason": reason if status == "skipped" else None,
        "error_msg": reason if status not in ("ok", "skipped") else None,
        "started_at": started,
        "ended_at": ended,
        "duration_s": (ended - started).total_seconds(),
        "log_path": log,
    }


def absent(metric: str, reason: str) -> Row:
    """A null median, with its reason."""
    return {
        "metric": metric, "value": None, "stat": "p50", "phase": "total", "rank": -1,
        "reason": reason,
    }  # fmt: skip


def columns_of(group: Group, backend: str, shape: Shape, device_name: str) -> Row:
    """Columns of the `runs` row that follow from what was asked for."""
    batch = group.batch or shape.batch
    op = OPERATIONS[shape.kind]
    content = {
        "op": op, "shape": group.shape, "direction": group.direction, "backend": backend,
        "dtype": group.dtype, "batch": batch, "device": group.device_type, "seed": group.seed,
        "grid": shape.grid, "key_grid": shape.key_grid, "heads": shape.heads, "d": shape.d,
        "d_v": shape.d_v, "extras": shape.extras, "layout": repr(shape.layout),
        "stored_heads": shape.stored_heads, "separate": shape.separate,
    }  # fmt: skip
    machine = machine_facts(group.device_type, group.threads, device_name)
    return {
        "kind": "kernel",
        "model": op,
        "family": "kernel",
        "task": "kernel",
        "variant": f"{group.direction} {shape.extras}",
        "dataset": group.shape,
        "device_type": group.device_type,
        "device_name": device_name,
        "dtype": group.dtype,
        "compile_mode": "default" if backend in COMPILED else "none",
        "attention": backend,
        "batch_size": batch,
        "n_devices": 1,
        "n_nodes": 1,
        "world_size": 1,
        "seed": group.seed,
        "threads": group.threads,
        "spec_key": content_key(content),
        "cell_key": content_key({**content, "machine": machine}),
        "config_json": canonical_json(content),
    }


def machine_facts(device_type: str, threads: int, device_name: str | None) -> Row:
    """What decides speed beside what was asked for; part of the cell's key."""
    driver = environment.gpu_facts().get("driver") if device_type == "cuda" else None
    return {
        "device_name": device_name or environment.device_name(device_type),
        "threads": threads,
        "torch": environment.version("torch"),
        "triton": environment.version("triton"),
        "driver": driver,
    }


def _device_name(group: Group, ended: Ended) -> str:
    """As the measuring process read it; the processor's for a CPU."""
    said = (r["device_name"] for r in ended.records if r.get("event") == "device")
    return next(said, None) or environment.device_name(group.device_type)


@functools.cache
def machine_columns() -> Row:
    """Columns that are the same for every run of this process."""
    from visgen_bench.provenance import code_hash, kernel_hash

    commit = environment.commit()
    folder = Path(__file__).parent
    files = sorted([*folder.glob("*.py"), *(folder.parent / "measure").glob("*.py")])
    return {
        "machine_id": environment.machine_id(),
        "env_id": environment.env_id(),
        "visgen_version": version(),
        "git_commit": commit.sha,
        "git_dirty": commit.dirty,
        "kernel_hash": kernel_hash(),
        "code_hash": code_hash(files),
        "suite": None,
    }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def said(runs: Sequence[Row], metrics: Sequence[Row]) -> list[str]:
    """One line a backend."""
    medians = {
        row["run_id"]: row["value"]
        for row in metrics
        if row["metric"] == "latency" and row["stat"] == "p50" and row["value"] is not None
        and row.get("timing_method") in ("wall_sync", "events")
    }  # fmt: skip
    lines = []
    for run in runs:
        seconds = medians.get(run["run_id"])
        text = run["invalid_reason"] or (run["error_msg"] or "").partition("\n")[0]
        shown = f"{1e6 * seconds:.1f} us" if run["status"] == "ok" and seconds else run["status"]
        lines.append(f"{run['attention']}: {shown}{f' ({text})' if text else ''}")
    return lines
