"""A group measured in this process, on a CPU: every backend ends, every number has its reason."""

import math
from typing import Any

import pytest
import torch

from visgen_bench.context import Records
from visgen_bench.kernels_bench.group import measure_group
from visgen_bench.kernels_bench.request import Group

Rows = list[dict[str, Any]]


def measured(shape: str, direction: str, *backends: str, batch: int = 1) -> Records:
    sink = Records()
    group = Group(
        shape=shape, direction=direction, backends=backends, device="cpu", dtype="fp32",
        batch=batch, seconds=5.0, fewest=6, most=6,
    )  # fmt: skip
    threads = torch.get_num_threads()
    try:
        measure_group(group, sink)
    finally:
        torch.set_num_threads(threads)
    return sink


def rows(sink: Records, backend: str, metric: str) -> Rows:
    own = [r["row"] for r in sink.records if r.get("backend") == backend and "row" in r]
    return [row for row in own if row["metric"] == metric]


def value(sink: Records, backend: str, metric: str) -> float:
    (row,) = rows(sink, backend, metric)
    return row["value"]


def ends(sink: Records) -> dict[str, tuple[str, str | None]]:
    return {
        r["backend"]: (r["status"], r["reason"]) for r in sink.records if r.get("event") == "end"
    }


@pytest.fixture(scope="module")
def temporal() -> Records:
    return measured("T1", "backward", "chunked", "eager", "sdpa-kernel", "triton")


def test_every_backend_ends_once(temporal: Records) -> None:
    found = ends(temporal)
    assert {name for name, (status, _) in found.items() if status == "ok"} == {
        "chunked", "eager", "sdpa-kernel",
    }  # fmt: skip
    assert found["triton"][0] == "skipped"
    assert "CUDA or ROCm" in (found["triton"][1] or "")


def test_calls_are_timed_by_two_clocks_and_kept(temporal: Records) -> None:
    for backend in ("chunked", "eager", "sdpa-kernel"):
        medians = {
            row["timing_method"]: row
            for row in rows(temporal, backend, "latency")
            if row["stat"] == "p50" and row["value"] is not None
        }
        assert set(medians) == {"wall_sync", "cpu_time"}
        assert all(
            row["l2"] == "warm" and row["ci_low"] <= row["value"] for row in medians.values()
        )
        kept = [r for r in temporal.records if r.get("backend") == backend and "series" in r]
        walls = [r for r in kept if r["series"]["metric"] == "latency_wall_sync_warm"]
        assert sum(len(r["values"]) for r in walls) == medians["wall_sync"]["n"]
        assert [r["series"]["block"] for r in walls] == list(range(len(walls)))


def test_what_needs_a_gpu_is_null_with_its_reason(temporal: Records) -> None:
    missing = {
        row["timing_method"]: row["reason"]
        for row in rows(temporal, "chunked", "latency")
        if row["value"] is None and row["stat"] == "p50"
    }
    assert set(missing) == {"events", "graph", "profiler"}
    assert all("ran on a CPU" in reason for reason in missing.values())
    for metric in ("ceiling_share", "floor_time"):
        (row,) = rows(temporal, "chunked", metric)
        assert row["value"] is None
        assert "CPU" in row["reason"]
    assert "nothing is compiled" in rows(temporal, "chunked", "compile_time")[0]["reason"]


def test_ours_has_a_speed_up_over_every_peer_and_no_peer_has_one(temporal: Records) -> None:
    found = rows(temporal, "chunked", "speedup")
    assert {row["phase"] for row in found} == {"eager", "sdpa-kernel"}
    assert all(row["n"] >= 6 and row["ci_low"] <= row["value"] <= row["ci_high"] for row in found)
    assert not rows(temporal, "eager", "speedup")


def test_errors_work_and_determinism_are_there(temporal: Records) -> None:
    (ratio,) = rows(temporal, "chunked", "error_ratio")
    assert ratio["phase"] == "d qkv"
    assert 0 < ratio["value"] < 3
    assert 0 < value(temporal, "chunked", "error_frobenius") < 1e-5
    assert "tensors of its own" in rows(temporal, "sdpa-kernel", "error_max")[0]["reason"]
    assert value(temporal, "chunked", "deterministic") == 1.0
    assert value(temporal, "chunked", "flops") == 2 * 12 * 17 * 17 * 5 * 64
    assert value(temporal, "eager", "flops_executed") == 2 * 12 * 17 * 17 * 4 * 64
    assert value(temporal, "chunked", "mem_extra_peak") >= 0
    rate = value(temporal, "chunked", "flop_rate")
    assert math.isfinite(rate)
    assert rate > 0


def test_a_call_that_torch_has_no_kernel_for_is_skipped_with_torchs_words() -> None:
    sink = measured("C2", "forward", "sdpa-flash")  # head dimensions of q and v differ
    status, reason = ends(sink)["sdpa-flash"]
    assert status == "skipped"
    assert "torch has no such kernel" in (reason or "")


def test_a_shape_that_does_not_fit_is_skipped_with_what_it_would_need() -> None:
    sink = measured("D2", "forward", "chunked", "eager", batch=10**7)
    for status, reason in ends(sink).values():
        assert status == "skipped"
        assert "GiB at batch 10000000" in (reason or "")


def test_a_decoding_step_is_timed_through_its_own_operator() -> None:
    sink = measured("X1", "forward", "chunked", "sdpa")
    assert {status for status, _ in ends(sink).values()} == {"ok"}
    assert rows(sink, "chunked", "error_ratio")[0]["value"] < 3
