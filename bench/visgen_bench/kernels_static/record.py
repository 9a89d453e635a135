"""Findings into a result folder: rows, and the page that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visgen_bench.kernels_static.examine import Finding
from visgen_bench.kernels_static.request import Task
from visgen_bench.kernels_static.rows import Recorded, record, record_direction
from visgen_bench.measure import environment
from visgen_bench.provenance import kernel_hash
from visgen_bench.recording import record_machine
from visgen_bench.running import only_writer, prepare_output, version
from visgen_results.report.kernels import kernels_report
from visgen_results.store import Store

KIND = "kernel"


class Recorder:
    """A result folder that takes findings as they come; the page is written at the end.

    So a sweep that is stopped has lost nothing that was compiled.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._common = _common()
        self.rows: list[dict[str, Any]] = []

    def add(self, findings: Sequence[Finding]) -> None:
        """Commit the rows of one task."""
        for one in self._records(findings):
            run_id = one.run["run_id"]
            self._store.append("metrics", one.metrics, kind=KIND, run_id=run_id)
            self._store.append("runs", [one.run], kind=KIND, run_id=run_id)
            self.rows += one.metrics

    def finish(self) -> Path:
        """Write the page anew from all rows of the folder, and return its path."""
        root = self._store.root
        return kernels_report(root, root / "kernels.html")

    def _records(self, findings: Sequence[Finding]) -> list[Recorded]:
        found = [record(one, self._common) for one in findings]
        task = findings[0].task if findings else None
        if isinstance(task, Task):
            whole = record_direction(task, findings, self._common)
            found += [] if whole is None else [whole]
        return found


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """A recorder that alone writes into the folder.

    Raises:
        OutputError: if the folder cannot be written to, or another process writes into it.
    """
    prepare_output(root)
    store = Store(root)
    with only_writer(root):
        record_machine(store, environment.machine_row(), KIND)
        yield Recorder(store)


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
