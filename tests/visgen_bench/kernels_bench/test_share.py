"""Attention's share of a model, and the law that predicts what it is worth."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from visgen_bench.context import Records
from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.processes import Ended
from visgen_bench.kernels_bench.running import Written
from visgen_bench.kernels_bench.share import amdahl, measure_share
from visgen_bench.kernels_bench.share_request import ShareRequest, share_requests
from visgen_bench.kernels_bench.share_running import commit_share
from visgen_bench.presets import load_presets
from visgen_bench.rerunning import find_row, suite_of_row
from visgen_results.rows import to_rows
from visgen_results.statistics import Interval
from visgen_results.store import Store
from visgen_results.upkeep import validate

Rows = dict[tuple[str, str], dict[str, Any]]


def measured(model: str, phase: str, *implementations: str) -> Records:
    sink = Records()
    request = ShareRequest(
        model=model, phase=phase, implementations=implementations, device="cpu", dtype="fp32",
        batch=1, seconds=5.0, most=6,
    )  # fmt: skip
    threads = torch.get_num_threads()
    try:
        measure_share(request, sink)
    finally:
        torch.set_num_threads(threads)
    return sink


def rows(sink: Records) -> Rows:
    found = [(r["backend"], r["row"]) for r in sink.records if "row" in r]
    return {
        (backend, row["metric"]): row
        for backend, row in found
        if row["metric"] != "latency" or (row["stat"], row["timing_method"]) == ("p50", "cpu_time")
    }


def ends(sink: Records) -> dict[str, tuple[str, str | None]]:
    return {
        r["backend"]: (r["status"], r["reason"]) for r in sink.records if r.get("event") == "end"
    }


def exactly(value: float) -> Interval:
    return Interval(value, value, value, "")


@pytest.mark.parametrize(
    ("share", "kernel", "gain"),
    [(0.5, 2.0, 1.5), (0.0, 9.0, 1.0), (1.0, 3.0, 3.0), (0.25, 0.5, 0.875)],
)
def test_amdahls_law(share: float, kernel: float, gain: float) -> None:
    found = amdahl(exactly(share), exactly(kernel))
    assert (found.value, found.low, found.high) == (gain, gain, gain)


def test_the_predictions_interval_holds_those_of_its_parts() -> None:
    found = amdahl(Interval(0.5, 0.4, 0.6, ""), Interval(2.0, 0.5, 3.0, ""))
    assert found.low == pytest.approx(1 - 0.6 + 0.6 * 0.5)
    assert found.high == pytest.approx(1 - 0.6 + 0.6 * 3.0)


@pytest.fixture(scope="module")
def sampling() -> Records:
    return measured("transgan-digits8-tiny", "sample", "chunked", "reference", "triton")


def test_share_and_gains_of_a_real_model(sampling: Records) -> None:
    found, ended = rows(sampling), ends(sampling)
    assert ended["chunked"][0] == ended["reference"][0] == "ok"
    assert ended["triton"][0] == "skipped"
    assert found["chunked", "attention_calls"]["value"] == 3  # a block in each of three stages
    share = found["chunked", "attention_share"]
    assert 0 < share["value"] < 1
    assert share["n"] == 11
    assert "TorchDispatchMode" in share["metric_opts"]
    memory = found["chunked", "attention_memory_share"]["value"]
    assert 0 < memory < 1
    assert ("reference", "attention_memory_share") not in found
    for metric in ("kernel_speedup", "gain_predicted", "gain_observed"):
        row = found["reference", metric]
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert ("chunked", metric) not in found
    predicted = found["reference", "gain_predicted"]
    assert predicted["predicted"] is True
    expected = 1 + share["value"] * (found["reference", "kernel_speedup"]["value"] - 1)
    assert predicted["value"] == pytest.approx(expected)


def test_peaks_hold_the_weights(sampling: Records) -> None:
    weights = sum(
        p.numel() * 4
        for p in load_presets().find("transgan-digits8-tiny").build().generator.parameters()
    )
    assert rows(sampling)["chunked", "mem_alloc_peak"]["value"] > weights


def test_a_model_without_attention_says_so() -> None:
    found = rows(measured("dcgan-digits8-tiny", "sample", "chunked"))
    row = found["chunked", "attention_share"]
    assert row["value"] is None
    assert row["reason"] == "no attention operator ran in sample"
    assert found["chunked", "attention_calls"]["value"] == 0


def test_sdpa_cannot_take_a_penalised_step() -> None:
    status, reason = ends(measured("transgan-digits8-tiny", "d_step", "sdpa"))["sdpa"]
    assert status == "skipped"
    assert "no second derivative" in (reason or "")


def test_ours_is_always_among_what_is_compared() -> None:
    given: dict[str, Any] = {
        "include": (), "models": None, "phases": None, "device": "cpu", "dtype": None, "batch": 2,
        "threads": 1, "seconds": None,
    }  # fmt: skip
    presets = load_presets()
    asked = share_requests(presets=presets, implementations="sdpa", **given)
    assert {request.implementations for request in asked} == {("chunked", "sdpa")}
    assert {request.phase for request in asked} == {"sample", "d_step"}
    models = {request.model for request in asked}
    assert "transgan-cifar10" in models
    assert not any("dcgan" in model for model in models)
    assert ShareRequest.from_json(asked[0].to_json()) == asked[0]
    every = share_requests(presets=presets, implementations=None, **given)
    assert every[0].implementations == ("chunked", "sdpa", "sdpa-math", "reference")


def committed(sampling: Records, folder: Path) -> Written:
    request = ShareRequest(
        model="transgan-digits8-tiny", phase="sample", implementations=("chunked", "reference"),
        device="cpu", dtype="fp32", batch=1,
    )  # fmt: skip
    ended = Ended(records=sampling.records, status=None, reason=None)
    config = load_presets().find(request.model)
    started, written = datetime.datetime.now(datetime.UTC), Written()
    commit_share(Store(folder), request, config, ended, started, "logs/x.log", written)
    return written


def test_rows_of_a_share_are_those_of_a_model(sampling: Records, tmp_path: Path) -> None:
    committed(sampling, tmp_path)
    runs = to_rows(Store(tmp_path).read("runs"))
    assert {(r["kind"], r["model"], r["resolution"]) for r in runs} == {
        ("performance", "transgan-digits8-tiny", "3x8x8")
    }
    assert {row["phase"] for row in to_rows(Store(tmp_path).read("metrics"))} == {"sample"}
    assert not validate(tmp_path)


def test_a_share_is_measured_again_by_its_own_command(sampling: Records, tmp_path: Path) -> None:
    written = committed(sampling, tmp_path)
    row, _ = find_row(written.runs[0]["run_id"], [tmp_path])
    with pytest.raises(UsageError, match="kernels share --model transgan-digits8-tiny --phase sam"):
        suite_of_row(row)
