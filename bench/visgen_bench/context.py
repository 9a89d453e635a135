"""What a cell's runner is given, and the one way by which it reports numbers.

A runner is a function `run(cell, context)`. It writes what it measures at once, row by row, so that
a process that dies has lost nothing but the number it was working on.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Takes one JSON-able record at a time and makes it durable."""

    def write(self, record: dict[str, Any]) -> None: ...


class Records:
    """A sink that keeps records in memory; for work that needs no process of its own."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class Unavailable(Exception):
    """This cell cannot run here (weights, package or device missing): a `skipped` row."""


class Invalid(Exception):
    """The cell ran, but its numbers do not count (a loss that is not finite): an `invalid` row."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """One run of one cell on one rank.

    `root` is the result folder; `artifacts` (pictures, weights; lasts) and `state` (what a resumed
    attempt continues from; removed after success) are this cell's own folders below it. Only rank 0
    writes rows unless a row is of one rank alone.
    """

    root: Path
    spec_key: str
    sink: Sink
    data_root: Path | None = None
    offline: bool = False
    code_hash: str = ""  # of the files that decide the cell's numbers
    limit: int | None = None
    threads: int = 1
    rank: int = 0
    world_size: int = 1
    weights_path: Path | None = None  # of `file:` and `train:` weights
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def artifacts(self) -> Path:
        """`<root>/artifacts/<spec_key>`; made when asked for."""
        return _made(self.root / "artifacts" / self.spec_key)

    @property
    def state(self) -> Path:
        """`<root>/state/<spec_key>`; made when asked for."""
        return _made(self.root / "state" / self.spec_key)

    def metric(
        self,
        metric: str,
        value: float | None,
        *,
        stat: str = "value",
        phase: str = "total",
        rank: int = -1,
        reason: str | None = None,
        **columns: Any,
    ) -> None:
        """Report one number: a row of `metrics`.

        `columns` are further columns of that table (`n`, `unit`, `ci_low`, `timing_method`, ...);
        unit and direction default to the metric's entry in `visgen_results.metrics`, the columns
        that say what ran are filled in by the harness. A dict given for `metric_opts` is written
        as JSON. Raises `ValueError` for a value of None without a reason.
        """
        if value is None and not reason:
            raise ValueError(f"metric {metric}: a missing value needs a reason.")
        row = {"metric": metric, "value": value, "stat": stat, "phase": phase, "rank": rank}
        if reason:
            row["reason"] = reason
        if isinstance(columns.get("metric_opts"), dict):
            columns["metric_opts"] = json.dumps(columns["metric_opts"], sort_keys=True)
        self.sink.write({"table": "metrics", "row": {**row, **columns}})

    def series(
        self,
        metric: str,
        values: Sequence[float],
        *,
        phase: str = "total",
        rank: int = -1,
        block: int = 0,
        iters: Iterable[int] | None = None,
        offsets: Sequence[float] | None = None,
    ) -> None:
        """Report raw numbers: rows of `measurements`, in the metric's unit, numbered from 0."""
        numbers = list(range(len(values)) if iters is None else iters)
        record = {"metric": metric, "phase": phase, "rank": rank, "block": block}
        record |= {"iter": numbers, "value": list(values)}
        if offsets is not None:
            record["t_offset_s"] = list(offsets)
        self.sink.write({"table": "measurements", "rows": record})

    def provenance(self, **columns: Any) -> None:
        """Report columns of this attempt's row in `runs` (`weights_sha256`, `resolution`, ...)."""
        self.sink.write({"event": "provenance", "columns": columns})

    def progress(self, text: str) -> None:
        """Say what is going on; for the log and for whoever reads the journal of a killed run."""
        self.sink.write({"event": "progress", "text": text})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
