"""Attention seen inside a step: which calls, how much of the time and of the memory."""

import time

import torch

from visgen_bench.kernels_bench.attention_calls import (
    Allocation,
    attention_seconds,
    held_bytes,
    peak_of,
    profile_step,
    record_calls,
    replay,
)
from visgen_bench.kernels_bench.calls import prepare
from visgen_kernels import Causal, RelativePosition2d, attention

MIB = 2**20


def qkv(n: int = 4, *, grad: bool = False) -> torch.Tensor:
    return torch.randn(2, n, 3, 2, 8, requires_grad=grad)


def penalised(x: torch.Tensor) -> None:
    """Forward, a gradient that is differentiated, and its backward pass."""
    out = attention(x, implementation="chunked")
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    gradient.square().sum().backward()


def test_calls_are_counted_by_what_they_are() -> None:
    x, y = qkv(grad=True), qkv(6)

    def step() -> None:
        penalised(x)
        attention(y, mask=Causal(), implementation="chunked")
        attention(y, mask=Causal(), implementation="chunked")

    found = record_calls(step)
    by_length = {(key.q[1], way): count for (key, way), count in found.counts.items()}
    assert by_length[4, "recorded_forward"] == 1
    assert by_length[4, "double_backward"] == 1
    assert by_length[6, "forward"] == 2
    assert (6, "backward") not in by_length
    assert found.total == sum(by_length.values())


def test_a_step_without_attention_has_no_calls() -> None:
    assert record_calls(lambda: torch.ones(3) + 1).total == 0


def test_a_recorded_call_can_be_repeated_with_any_implementation() -> None:
    table = torch.zeros(9, 2, requires_grad=True)
    x = qkv(grad=True)

    def step() -> None:
        attention(x, bias=RelativePosition2d(table, (2, 2)), implementation="chunked")

    recorded = record_calls(step)
    ((signature, direction),) = recorded.counts
    assert direction == "recorded_forward"
    ours, theirs = (replay(signature, recorded, name) for name in ("chunked", "reference"))
    assert set(ours.leaves) == {"qkv", "table"}
    for way in ("forward", "backward", "double_backward"):
        mine, right = prepare(ours, way).results(), prepare(theirs, way).results()
        for name in mine:
            torch.testing.assert_close(mine[name], right[name], rtol=1e-4, atol=1e-4)


def test_only_the_operators_are_timed() -> None:
    x = qkv()

    def step() -> None:
        attention(x, implementation="chunked")
        time.sleep(0.05)

    start = time.perf_counter()
    found = attention_seconds(step, time.perf_counter)
    assert 0 < found < time.perf_counter() - start - 0.05
    assert attention_seconds(lambda: time.sleep(0.01), time.perf_counter) == 0.0


def test_the_peak_is_where_most_is_live_and_knows_whose_it_is() -> None:
    def event(moment: int, address: int, size: int, inside: bool = False) -> Allocation:
        return Allocation(moment, address, size, "cpu", inside)

    events = [
        event(1, 10, 100),
        event(2, 20, 50, True),
        event(3, 30, 25, True),
        event(4, 20, -50),
        event(5, 99, -7),  # was there before
        event(6, 40, 60),
    ]
    assert peak_of(events, "cpu") == (185, 25)
    assert peak_of(events[:5], "cpu") == (175, 75)
    assert peak_of(events, "cuda") == (0, 0)


def test_allocations_of_a_step_are_seen_to_the_byte() -> None:
    def step() -> torch.Tensor:
        kept = torch.empty(3 * MIB, dtype=torch.uint8)
        gone = torch.empty(5 * MIB, dtype=torch.uint8)
        del gone
        return kept

    found = profile_step(step, "cpu", memory=True)
    assert found.allocated == 8 * MIB
    assert found.attention_bytes == 0


def test_attentions_own_allocations_are_told_apart() -> None:
    x = torch.randn(1, 64, 3, 2, 512)

    def step() -> torch.Tensor:
        around = torch.empty(MIB, dtype=torch.uint8)
        return attention(x, implementation="chunked").sum() + around[0]

    found = profile_step(step, "cpu", memory=True)
    output = 64 * 2 * 512 * 4
    assert found.allocated >= MIB + output
    assert output <= found.attention_bytes <= found.allocated - MIB


def test_tensors_that_are_held_count_once() -> None:
    before = held_bytes("cpu")
    weight = torch.nn.Parameter(torch.empty(MIB // 4))
    weight.grad = torch.zeros_like(weight)
    view = weight.detach()[1:]
    assert held_bytes("cpu") - before == 2 * MIB
    del view
