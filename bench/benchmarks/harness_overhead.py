"""The harness's own share: what a cell costs beside its work, and what the command line costs.

    python bench/benchmarks/harness_overhead.py [--cells 8] [--json]

Cells that do next to nothing (eight samples of a fitted Gaussian, one metric on raw pixels) are run
one after the other by the local executor. From the request to the committed rows, all of a cell's
time is then the harness's, imports of the worker included. The share is that of a cell of 60 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from visgen_bench.executors.local import LocalExecutor
from visgen_bench.plan import Options, plan
from visgen_bench.running import run
from visgen_bench.suite import from_text
from visgen_results.store import Store, new_run_id

SUITE = """
[[cell]]
kind = "quality"
model = "pca20-gaussian"
data = "digits:8"
samples = 8
metrics = ["copy_share"]
seed = {seeds}
"""


def cells(count: int) -> dict[str, float]:
    """Seconds of starting the server once, of a worker's start, and of a whole empty cell."""
    with tempfile.TemporaryDirectory() as folder, LocalExecutor() as executor:
        options = Options(out=Path(folder))
        first = plan(from_text(SUITE.format(seeds=[10_000]), "first"), options)
        start = time.perf_counter()
        run(first, executor=executor)
        server = time.perf_counter() - start
        made = plan(from_text(SUITE.format(seeds=list(range(count))), "cells"), options)
        start = time.perf_counter()
        summary = run(made, executor=executor)
        spent = time.perf_counter() - start
    recorded = [one.recorded for one in summary.finished if one.recorded is not None]
    starts = [
        row["value"] for one in recorded for row in one.metrics if row["metric"] == "process_start"
    ]
    return {
        "server and first cell": server,
        "process_start, median": statistics.median(starts),
        "whole empty cell": spent / count,
        "share of a 60 s cell": spent / count / 60,
    }


def commits(count: int) -> dict[str, float]:
    """Seconds of committing one row of `runs`, and 20 rows of `metrics`, flushed to disk."""
    spent: dict[str, list[float]] = {"runs": [], "metrics": []}
    number = {"cell_key": "c", "metric": "fid", "stat": "value", "value": 1.0}
    rows = {"runs": [{"cell_key": "c", "status": "ok", "model": "m"}], "metrics": [number] * 20}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for _ in range(count):
            for table, content in rows.items():
                start = time.perf_counter()
                store.append(table, content, kind="quality", run_id=new_run_id())
                spent[table].append(time.perf_counter() - start)
    return {f"commit to {table}, median": statistics.median(s) for table, s in spent.items()}


def command_line(repeats: int = 5) -> dict[str, float]:
    """Seconds of `visgen-bench --help` as a whole process: the fastest and the median."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-m", "visgen_bench.cli", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - start)
    return {"--help, fastest": min(spent), "--help, median": statistics.median(spent)}


def main() -> None:
    """Measure, then print one line a figure."""
    parser = argparse.ArgumentParser(description="The harness's own share of a cell.")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {**command_line(), **commits(40), **cells(options.cells)}
    if options.json:
        sys.stdout.write(json.dumps({"machine": platform.processor(), **found}, indent=1) + "\n")
        return
    for name, value in found.items():
        text = f"{value:.2%}" if name.startswith("share") else f"{value * 1e3:9.1f} ms"
        sys.stdout.write(f"{name:28} {text}\n")


if __name__ == "__main__":
    main()
