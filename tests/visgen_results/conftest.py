"""A builder of result folders through the real store, for the tests of its readers."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visgen_results import schema
from visgen_results.store import Store, new_run_id

START = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
MACHINE: dict[str, Any] = {"machine_id": "m" * 32, "env_id": "e" * 32}


class Folder:
    """Writes runs as the harness does; every run ends one second after the one before."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.root = root
        self.count = 0

    def machine(self, **columns: Any) -> None:
        facts = {
            "cpu_model": "Example CPU 3.0 GHz", "cores": 2, "ram_bytes": 8 * 2**30,
            "torch": "2.14.1", "python": "3.11.7", "os": "Linux", "collected_at": START,
        }  # fmt: skip
        row = MACHINE | facts | columns
        self.store.append("machines", [row], kind="quality", run_id=new_run_id())

    def run(
        self,
        metrics: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        kind: str = "quality",
        status: str = "ok",
        series: dict[str, list[float]] | None = None,
        series_phase: str = "total",
        common: dict[str, Any] | None = None,
        **columns: Any,
    ) -> str:
        """One run; `metrics` is {name: value} or full rows, `common` goes into each of them."""
        self.count += 1
        run_id = new_run_id()
        row = {
            "cell_key": f"cell-{self.count}", "status": status, "model": "transgan-tiny",
            "family": "transgan", "task": "image-generation", "seed": 0, "dtype": "fp32",
            "attention": "chunked", "device_type": "cpu", "device_name": "Example CPU 3.0 GHz",
            "started_at": START + datetime.timedelta(seconds=self.count),
            "ended_at": START + datetime.timedelta(seconds=self.count + 1),
            **MACHINE,
        }  # fmt: skip
        if kind == "quality":
            row |= {"dataset": "digits:8", "split": "test", "weights": "zoo:tiny"}
        row |= columns
        if isinstance(metrics, dict):
            metrics = [{"metric": name, "value": value} for name, value in metrics.items()]
        copied = schema.copies(row)
        rows = [
            {"cell_key": row["cell_key"], "stat": "value", "phase": "total", "rank": -1}
            | copied | (common or {}) | one
            for one in metrics or []
        ]  # fmt: skip
        if rows:
            self.store.append("metrics", rows, kind=kind, run_id=run_id)
        curves = [
            {"metric": name, "phase": series_phase, "rank": -1, "block": 0, "iter": i, "value": v}
            for name, values in (series or {}).items()
            for i, v in enumerate(values)
        ]
        if curves:
            self.store.append("measurements", curves, kind=kind, run_id=run_id)
        self.store.append("runs", [row], kind=kind, run_id=run_id)
        return run_id


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results")


@pytest.fixture
def folder_at() -> Callable[[Path], Folder]:
    return Folder
