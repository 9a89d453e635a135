"""Tables of timed kernels and of their worth to models, from rows."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from visgen_results.kernel_tables import Table, kernel_tables, to_markdown, to_text
from visgen_results.reading import read_results
from visgen_results.store import Store, new_run_id

Row = dict[str, Any]
RUN: Row = {
    "kind": "kernel", "model": "attention", "family": "kernel", "task": "kernel",
    "variant": "forward full", "dataset": "D4", "device_type": "cpu", "device_name": "a CPU",
    "dtype": "fp32", "batch_size": 2, "threads": 1, "status": "ok", "machine_id": "m",
    "env_id": "e",
}  # fmt: skip


def number(metric: str, value: float | None, **columns: Any) -> Row:
    row = {"metric": metric, "value": value, "stat": "value", "phase": "total", "rank": -1}
    if value is None:
        row["reason"] = "not here"
    return row | columns


def time(seconds: float, method: str = "cpu_time", l2: str = "warm", **columns: Any) -> Row:
    shared = {"stat": "p50", "timing_method": method, "l2": l2, "n": 9}
    return number("latency", seconds, **shared, **columns)


class Folder:
    """A result folder under construction."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)

    def run(self, attention: str, *numbers: Row, **columns: Any) -> str:
        run_id = new_run_id()
        facts = {"cell_key": f"{attention}{columns}", "attention": attention, **columns}
        run = {**RUN, **facts, "run_id": run_id}
        kind = run["kind"]
        if numbers:
            rows = [{**run, **row} for row in numbers]
            known = {name for name in run if name in _METRIC_COLUMNS}
            rows = [{k: v for k, v in r.items() if k in known or k not in run} for r in rows]
            self.store.append("metrics", rows, kind=kind, run_id=run_id)
        self.store.append("runs", [run], kind=kind, run_id=run_id)
        return run_id

    def tables(self, **options: Any) -> list[Table]:
        return kernel_tables(read_results(self.store.root), **options)


_METRIC_COLUMNS = {
    "kind", "model", "family", "task", "variant", "dataset", "device_type", "device_name",
    "dtype", "batch_size", "threads", "status", "machine_id", "env_id", "cell_key", "attention",
    "run_id",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def cells(table: Table, backend: str) -> dict[str, str]:
    column = table.head.index("backend" if "backend" in table.head else "attention")
    row = next(row for row in table.rows if row[column] == backend)
    return defaultdict(lambda: "-", zip(table.head, row, strict=True))


def test_a_timed_kernel_stands_beside_its_peers(folder: Folder) -> None:
    folder.run(
        "chunked",
        time(2e-3, ci_low=1.5e-3, ci_high=3e-3),
        time(9e-3, "wall_sync"),
        number("speedup", 1.5, phase="eager", timing_method="cpu_time", ci_low=1.25, ci_high=1.75),
        number("error_ratio", 0.5, phase="out"),
        number("error_ratio", 2.0, phase="d qkv"),
        number("deterministic", 1.0),
        number("mem_extra_peak", 3 * 2**20),
        number("flop_rate", 2.5e12),
    )
    folder.run("eager", time(3e-3), number("error_ratio", None))
    (table,) = folder.tables()
    assert table.title == "Attention, forward, fp32"
    assert "no GPU: these are the CPU's implementations" in table.setting
    ours, eager = cells(table, "chunked"), cells(table, "eager")
    assert ours["time"] == "2 ms [1.50 ms, 3 ms]"
    assert ours["timed by"] == "cpu_time, warm"
    assert (ours["error"], ours["extra memory"], ours["FLOP/s"]) == ("2", "3 MiB", "2.50 T")
    assert ours["their time / ours"] == "-"
    assert ours["same bits twice"] == "yes"
    assert eager["their time / ours"] == "1.50x [1.25x, 1.75x]"
    assert eager["time"] == "3 ms (n 9)"
    assert eager["error"] == "-"


def test_graphs_come_before_events_and_cold_before_warm(folder: Folder) -> None:
    folder.run(
        "triton", time(5e-6, "events", "cold"), time(1e-6, "graph"), time(4e-6, "graph", "cold"),
        time(3e-6, "profiler", "cold"), device_type="cuda", device_name="NVIDIA H100 80GB HBM3",
    )  # fmt: skip
    (table,) = folder.tables()
    found = cells(table, "triton")
    assert found["time"].startswith("4 µs")
    assert found["timed by"] == "graph, cold"
    assert "no GPU" not in table.setting


def test_the_share_of_the_binding_ceiling_names_it(folder: Folder) -> None:
    folder.run(
        "triton", time(5e-6, "events", "cold"), number("ceiling_share", 0.62, phase="exp"),
        number("ceiling_share", 0.4, phase="mma"), number("ceiling_share", 0.62, phase="binding"),
        device_type="cuda",
    )  # fmt: skip
    (table,) = folder.tables()
    assert cells(table, "triton")["of its ceiling"] == "62 % (exp)"


def test_what_was_not_measured_is_a_row_with_its_reason(folder: Folder) -> None:
    folder.run("chunked", time(1e-3))
    reason = "needs about 12.8 GiB | at batch 16"
    folder.run("eager", number("latency", None), status="skipped", invalid_reason=reason)
    (table,) = folder.tables()
    lost = cells(table, "eager")
    assert lost["time"] == "-"
    assert lost["why not"] == reason
    assert reason in to_text([table])
    assert reason.replace("|", r"\|") in to_markdown([table])


def test_too_few_rounds_for_a_median_say_so(folder: Folder) -> None:
    few = {"value": None, "reason": "3 samples; p50 needs 5"}
    folder.run(
        "chunked", time(0.0, "wall_sync") | few, time(0.0, "graph") | few | {"reason": "no GPU"},
        number("deterministic", 1.0),
    )  # fmt: skip
    (table,) = folder.tables()
    found = cells(table, "chunked")
    assert found["time"] == "-"
    assert found["why not"] == "3 samples; p50 needs 5"


def test_directions_stand_in_order_and_static_reports_elsewhere(folder: Folder) -> None:
    folder.run("chunked", time(1e-3), variant="double_backward full")
    folder.run("chunked", time(1e-3), variant="forward causal")
    folder.run("triton", number("registers", 128.0), device_type="static")
    titles = [table.title for table in folder.tables()]
    assert titles == ["Attention, forward, fp32", "Attention, double backward, fp32"]


def test_only_some_runs_can_be_shown(folder: Folder) -> None:
    first = folder.run("chunked", time(1e-3))
    folder.run("eager", time(1e-3))
    (table,) = folder.tables(only={first})
    assert [row[2] for row in table.rows] == ["chunked"]


def test_a_model_has_its_share_and_both_gains_side_by_side(folder: Folder) -> None:
    model = {
        "kind": "performance", "model": "transgan-tiny", "family": "transgan",
        "task": "image-generation", "variant": None, "dataset": None,
        "config_json": '{"phase": "d_step"}',
    }  # fmt: skip
    step = {"phase": "d_step"}
    folder.run(
        "chunked",
        time(0.2, **step),
        number(
            "attention_share", 0.25, stat="p50", timing_method="cpu_time", n=11, ci_low=0.2,
            ci_high=0.3, **step,
        ),
        number("attention_memory_share", 0.125, **step),
        number("mem_alloc_peak", 2.0**30, **step),
        **model,
    )  # fmt: skip
    folder.run(
        "reference",
        time(0.3, **step),
        number("kernel_speedup", 2.0, n=8, **step),
        number("gain_predicted", 1.25, predicted=True, n=8, **step),
        number("gain_observed", 1.3, n=8, ci_low=1.2, ci_high=1.4, **step),
        **model,
    )
    folder.run("sdpa", status="skipped", invalid_reason="no second derivative", **model)
    (table,) = folder.tables()
    assert table.title == "From kernel to model"
    ours, theirs, lost = (cells(table, name) for name in ("chunked", "reference", "sdpa"))
    assert ours["share of time"] == "25.0 % [20.0 %, 30.0 %]"
    assert (ours["share of memory"], ours["peak memory"]) == ("12.5 %", "1 GiB")
    assert theirs["gain predicted"] == "1.25x (n 8)"
    assert theirs["gain observed"] == "1.30x [1.20x, 1.40x]"
    assert lost["why not"] == "no second derivative"
    assert [row[3] for row in table.rows] == ["chunked", "reference", "sdpa"]


def test_a_folder_without_kernels_has_no_table(folder: Folder) -> None:
    folder.run(
        "chunked", number("throughput", 5.0, phase="sample"), kind="performance", model="dcgan"
    )
    assert folder.tables() == []
    assert to_text([]) == "No kernel was timed.\n"
    assert to_markdown([]) == ""


def test_text_leaves_out_what_nobody_has(folder: Folder) -> None:
    folder.run("chunked", time(1e-3))
    text = to_text(folder.tables())
    assert "their time / ours" not in text
    assert "chunked" in text
    assert "of its ceiling" not in to_markdown(folder.tables())
