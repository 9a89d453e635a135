"""Findings into a result folder: rows, and the page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from visgen_bench.kernels_static.examine import Finding
from visgen_bench.kernels_static.request import Task
from visgen_bench.kernels_static.rows import Recorded, record, record_direction
from visgen_bench.kernels_static.sweep import Sweep
from visgen_bench.measure import environment
from visgen_bench.provenance import kernel_hash
from visgen_bench.recording import record_machine
from visgen_bench.running import only_writer, prepare_output, version
from visgen_results.report.kernels import kernels_report
from visgen_results.store import Store

KIND = "kernel"


@dataclass(frozen=True)
class Written:
    """The page, and the `metrics` rows of this run."""

    page: Path
    rows: list[dict[str, Any]]


def write(root: Path, done: Sweep) -> Written:
    """Commit the rows of a sweep to the folder and write its page anew from all rows there.

    Raises:
        OutputError: if the folder cannot be written to, or another process writes into it.
    """
    prepare_output(root)
    store, rows = Store(root), []
    with only_writer(root):
        for one in _records(done.findings):
            run_id = one.run["run_id"]
            store.append("metrics", one.metrics, kind=KIND, run_id=run_id)
            store.append("runs", [one.run], kind=KIND, run_id=run_id)
            rows += one.metrics
        record_machine(store, environment.machine_row(), KIND)
        page = kernels_report(root, root / "kernels.html")
    return Written(page, rows)


def _records(findings: Sequence[Finding]) -> list[Recorded]:
    common = _common()
    found = []
    for task, members in groupby(findings, key=lambda one: one.task):
        own = list(members)
        found += [record(one, common) for one in own]
        if isinstance(task, Task):
            whole = record_direction(task, own, common)
            found += [] if whole is None else [whole]
    return found


def _common() -> dict[str, Any]:
    """Columns of machine, version and commit."""
    commit = environment.commit()
    return {
        "machine_id": environment.machine_id(),
        "env_id": environment.env_id(),
        "visgen_version": version(),
        "git_commit": commit.sha,
        "git_dirty": commit.dirty,
        "kernel_hash": kernel_hash(),
        "code_hash": kernel_hash(),
    }
