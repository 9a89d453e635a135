"""Times on a GPU; what can be said without one is said here."""

import pytest
import torch

from visgen_bench.kernels_bench.gpu_timing import (
    Captured,
    Flush,
    calls_in_a_turn,
    cold_events,
    proton,
)
from visgen_bench.measure.timing import percentile


@pytest.mark.parametrize(
    ("typical", "calls"), [(1.0, 1), (0.02, 1), (1e-3, 20), (1e-6, 50), (0.0, 50)]
)
def test_a_turn_holds_a_fiftieth_of_a_second(typical: float, calls: int) -> None:
    assert calls_in_a_turn(typical) == calls


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.mark.gpu
def test_all_methods_agree_on_a_long_kernel(gpu: str) -> None:
    a = torch.randn(4096, 4096, device=gpu)
    flush = Flush(gpu)

    def call() -> torch.Tensor:
        return a @ a

    for _ in range(5):
        call()
    events = percentile(cold_events(call, flush, gpu, 20), 50)
    captured = Captured(lambda: call, flush, gpu)
    assert percentile(captured.cold(20), 50) == pytest.approx(events, rel=0.1)
    warm, calls = captured.warm(events, 10)
    assert calls >= 1
    assert percentile(warm, 50) == pytest.approx(events, rel=0.1)
    assert percentile(proton(call), 50) == pytest.approx(events, rel=0.1)


@pytest.mark.gpu
def test_a_flushed_call_reads_from_memory(gpu: str) -> None:
    x = torch.zeros(2**20, device=gpu)  # 4 MB, which every L2 cache holds
    for _ in range(5):
        x.sum()
    cold = percentile(cold_events(x.sum, Flush(gpu), gpu, 50), 50)
    warm = percentile(Captured(lambda: x.sum, Flush(gpu), gpu).warm(1e-5, 20)[0], 50)
    assert warm < cold


@pytest.mark.gpu
def test_a_group_is_measured_with_ceilings_and_graphs(gpu: str) -> None:
    from visgen_bench.context import Records
    from visgen_bench.kernels_bench.group import measure_group
    from visgen_bench.kernels_bench.request import Group

    sink = Records()
    for direction in ("forward", "backward", "double_backward"):
        measure_group(
            Group(
                shape="D4", direction=direction, backends=("triton", "eager", "sdpa-math"),
                device=gpu, dtype="bf16", batch=4, seconds=0.3,
            ),
            sink,
        )  # fmt: skip
    ended = {r["backend"]: r["status"] for r in sink.records if r.get("event") == "end"}
    assert ended == {"triton": "ok", "eager": "ok", "sdpa-math": "ok"}
    methods = {
        r["row"]["timing_method"]
        for r in sink.records
        if r.get("backend") == "triton" and r.get("row", {}).get("metric") == "latency"
        and r["row"]["value"] is not None
    }  # fmt: skip
    assert {"events", "wall_sync", "graph"} <= methods
