"""From a finding to rows in a store."""

from pathlib import Path

import pytest

from visgen_bench.kernels_static.examine import Finding, examine
from visgen_bench.kernels_static.record import recording
from visgen_bench.kernels_static.request import Task
from visgen_bench.kernels_static.rows import Recorded, record, record_direction
from visgen_bench.kernels_static.text import layer_lines, tile_text
from visgen_kernels.roofline import attention_work, devices, floor
from visgen_kernels.shapes import SHAPES
from visgen_results.reading import read_results
from visgen_results.store import Store

TASK = Task("W2", "forward", "sm_90")


@pytest.fixture(scope="module")
def finding() -> Finding:
    """ViViT's spatial attention on sm_90."""
    (found,) = examine(TASK)
    assert found.analysis is not None, found.error
    return found


@pytest.fixture(scope="module")
def recorded(finding: Finding) -> Recorded:
    return record(finding, {"visgen_version": "1"})


def value(recorded: Recorded, metric: str, phase: str = "total") -> float | None:
    (row,) = [r for r in recorded.metrics if (r["metric"], r["phase"]) == (metric, phase)]
    return row["value"]


def test_the_run_says_kernel_layer_and_target(recorded: Recorded) -> None:
    run = recorded.run
    assert (run["model"], run["dataset"], run["variant"]) == (
        "attention_forward", "W2", "forward full",
    )  # fmt: skip
    assert (run["device_type"], run["device_name"], run["status"]) == ("static", "sm_90", "ok")
    assert (run["kind"], run["dtype"], run["batch_size"]) == ("kernel", "bf16", 8)


def test_figures_of_the_code_are_facts_and_times_are_predictions(recorded: Recorded) -> None:
    predicted = {row["metric"] for row in recorded.metrics if row["predicted"]}
    assert predicted == {"cycles_per_pass", "floor_time", "predicted_time", "waves", "tail"}
    facts = {row["metric"] for row in recorded.metrics if not row["predicted"]}
    assert {"registers", "stack", "occupancy", "instructions_per_score", "flops"} <= facts


def test_floors_are_the_rooflines(recorded: Recorded) -> None:
    shape = SHAPES["W2"]
    work = attention_work(shape.score_matrices, 197, 197, 64, 64, 197 * 197)
    for device in ("h100-sxm", "h200-sxm"):
        least = floor(work, devices()[device])
        assert value(recorded, "floor_time", device) == pytest.approx(least.time)
        assert value(recorded, "floor_time", f"{device}/exp") == least.seconds["exp"]
        seconds = value(recorded, "predicted_time", device)
        assert seconds is not None
        assert seconds >= least.time


def test_pipes_add_up_to_the_loop(recorded: Recorded) -> None:
    total = value(recorded, "instructions_per_score", "interior")
    parts = [
        row["value"]
        for row in recorded.metrics
        if row["metric"] == "instructions_per_score" and row["phase"].startswith("interior/")
    ]
    assert sum(parts) == pytest.approx(total)


def test_wide_loads_are_apart_from_wide_stores(recorded: Recorded) -> None:
    loads, stores = (
        next(r for r in recorded.metrics if (r["metric"], r["phase"]) == ("wide_share", phase))
        for phase in ("code", "code/stores")
    )
    assert loads["value"] == stores["value"] == 1
    assert loads["metric_opts"]["bytes"] == 16
    assert set(loads["metric_opts"]["accesses"]) == {"16"}
    assert stores["metric_opts"]["others"] == {"4": 1}  # the log-sum-exp


def test_a_direction_adds_its_kernels_up(finding: Finding, recorded: Recorded) -> None:
    whole = record_direction(TASK, [finding, finding], {})
    assert whole is not None
    once = value(recorded, "predicted_time", "h100-sxm")
    assert once is not None
    assert value(whole, "predicted_time", "h100-sxm") == pytest.approx(2 * once)
    assert whole.run["model"] == "attention"
    part = Task("W2", "forward", "sm_90", kernels=frozenset({"forward"}))
    assert record_direction(part, [finding], {}) is None


@pytest.mark.parametrize(("shape", "direction"), [("X1", "decode"), ("Q1", "codebook")])
def test_layers_that_are_not_attention_are_recorded_too(
    finding: Finding, shape: str, direction: str
) -> None:
    task = Task(shape, direction, "sm_90")
    whole = record_direction(task, [finding], {})
    if direction == "codebook":  # one kernel, which has rows of its own
        assert whole is None
    else:
        assert whole is not None
        floor_time = value(whole, "floor_time", "h100-sxm")
        assert floor_time == pytest.approx(22.5e-6, rel=0.005)  # the table of reference layers


def test_a_kernel_that_does_not_compile_is_a_row_with_its_reason() -> None:
    failed = record(Finding(TASK, "forward", {}, None, "forward for sm_90: too wide\nmore"), {})
    assert failed.run["status"] == "error"
    assert all(row["value"] is None for row in failed.metrics)
    assert {row["reason"] for row in failed.metrics} == {"forward for sm_90: too wide"}


def test_rows_are_written_read_and_replaced(finding: Finding, tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder.add([finding])
        # What was added is there, whatever becomes of the rest.
        assert len(read_results(tmp_path).runs) == 2
        recorder.add([finding])
        path = recorder.finish()
    assert Store(tmp_path).validate() == []
    results = read_results(tmp_path)
    # The newest run of a kernel counts: one of the kernel, one of the whole direction.
    assert sorted(run["model"] for run in results.runs) == ["attention", "attention_forward"]
    page = path.read_text("utf-8")
    assert "W2 forward" in page
    assert "Nothing on this page was run" in page


def test_a_terminal_shows_a_table_and_what_failed(finding: Finding) -> None:
    failed = Finding(TASK, "delta", {}, None, "no luck\nat all")
    lines = layer_lines([finding, failed])
    assert lines[0] == "sm_90, floors and model of H100 SXM"
    assert lines[1].split()[:4] == ["layer", "kernel", "tile", "regs"]
    assert lines[2].split()[:2] == ["W2", "forward"]
    assert "failed: W2 delta: no luck" in lines


@pytest.mark.parametrize(
    ("tile", "text"),
    [
        ({"block_m": 128, "block_n": 64, "warps": 8, "stages": 2}, "128x64 w8 s2"),
        (
            {"block_m": 64, "block_n": 64, "masked_n": 32, "warps": 4, "stages": 2},
            "64x64/32 w4 s2",
        ),
        ({"blocks": 4, "block": 16, "pack": 2, "warps": 4, "stages": 1}, "4 of 16 w4 s1"),
        (
            {"block_m": 64, "warps": 4, "stages": 1, "matrix_instr_nonkdim": 16},
            "64 w4 s1 n16",
        ),
    ],
)
def test_tiles_are_short(tile: dict[str, int], text: str) -> None:
    assert tile_text(tile) == text
