"""K1 and K2 in Triton's interpreter against the float64 definition and its autograd."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from visgen_kernels import Axis, Causal, Sequence, SlidingWindow, Windows
from visgen_kernels.attention.addressing import NotStrided, tokens_of
from visgen_kernels.attention.arguments import head_parts, rows_of


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_forward.py` printed."""
    script = Path(__file__).with_name("interpreted_forward.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_outputs_are_within_twice_the_error_of_the_same_dtype(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        allowed = 2 * found["low"] + 2 * found["rounding"] + 2e-6
        assert found["error"] <= allowed, (name, found)
        assert found["contiguous"], name


def test_gradients_are_within_three_times_the_error_of_the_same_dtype(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        for which, one in found["gradients"].items():
            # What is not written stays NaN, and NaN is not at most anything.
            assert one["error"] <= 3 * one["low"] + 2 * one["rounding"] + 4e-6, (name, which, one)


def test_the_log_sum_exp_is_float32_exact(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        # With 16-bit inputs the bias is rounded to 16 bits: at most 2^-8 of its 4 sigma.
        allowed = 2e-2 if name == "bf16, bias" else 1e-6 * (1 + found["largest_lse"])
        assert found["lse_error"] <= allowed, (name, found)
        assert found["empty_rows_agree"], name


def test_what_is_not_finite_reaches_only_rows_that_see_it(interpreted) -> None:
    assert set(interpreted["hurt"]) == {str(m) for m in (Causal(), SlidingWindow(4))} | {
        "Blocks1d(block=8)"
    }
    for mask, found in interpreted["hurt"].items():
        assert found == {"rows_agree": True, "others_equal": True}, mask


@pytest.mark.parametrize("d", range(1, 257))
def test_head_parts_cover_every_dimension_with_powers_of_two(d: int) -> None:
    first, second = head_parts(d)
    assert first >= 16
    assert all(part & (part - 1) == 0 for part in (first, second))
    assert second == 0 or second >= 16
    assert d <= first + second <= max(16, 1 << (d - 1).bit_length())


def test_the_parts_of_the_models_dimensions() -> None:
    expected = {
        4: (16, 0), 24: (32, 0), 48: (32, 16), 60: (64, 0), 72: (64, 16), 84: (64, 32),
        96: (64, 32), 120: (128, 0), 144: (128, 16), 256: (256, 0),
    }  # fmt: skip
    assert {d: head_parts(d) for d in expected} == expected


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Sequence(), (2, 5, 3, 4)),
        (Axis(1), (2, 5, 7, 3, 4)),
        (Axis(2), (2, 5, 7, 3, 4)),
        (Axis(2), (2, 3, 5, 4, 3, 4)),
        (Windows(2, 3), (2, 4, 6, 3, 4)),
    ],
)
def test_six_strides_reach_every_token_of_a_view(layout, shape: tuple[int, ...]) -> None:
    memory = torch.arange(2 * torch.Size(shape).numel())
    x = memory.as_strided(shape, [2 * s for s in torch.empty(shape).stride()])  # not contiguous
    tokens = tokens_of(layout, x)
    split = layout.split(x, x.ndim - 3)  # (sequences, length, heads, d)
    _, z1, z2 = tokens.sizes
    s0, s1, s2, n0, n1, head = tokens.strides
    for z in range(tokens.sequences):
        base = z // (z1 * z2) * s0 + z // z2 % z1 * s1 + z % z2 * s2
        for n in range(tokens.length):
            at = base + n // tokens.inner * n0 + n % tokens.inner * n1
            assert [int(memory[at + h * head]) for h in range(3)] == split[z, n, :, 0].tolist()


def test_the_unit_is_one_that_every_stride_has() -> None:
    assert tokens_of(Sequence(), torch.empty(2, 5, 3, 24)).unit() == 8
    assert tokens_of(Sequence(), torch.empty(2, 5, 3, 60)).unit() == 4
    assert tokens_of(Sequence(), torch.empty(2, 5, 3, 7)).unit() == 1


def test_rows_begin_at_a_multiple_of_16_bytes() -> None:
    whole = torch.arange(2 * 5 * 3 * 3 * 30, dtype=torch.float16).view(2, 5, 3, 3, 30)
    q, k, _ = whole.unbind(2)  # k at 180 bytes
    rows = [rows_of(Sequence(), x) for x in (q, k)]
    assert [row.base.data_ptr() % 16 for row in rows] == [0, 0]
    assert [(row.first.value, row.unit.value) for row in rows] == [(0, 2), (2, 2)]
    assert float(rows[1].base.flatten()[2]) == float(k[0, 0, 0, 0])
    # A unit that strides have, but the first token does not.
    assert rows_of(Sequence(), torch.empty(4, 5, 3, 16)[..., 1:]).unit.value == 1


def test_memory_that_begins_between_multiples_of_16_bytes_is_taken_as_it_is() -> None:
    memory = torch.empty(200, dtype=torch.uint8)
    start = (-memory.data_ptr()) % 16 + 4
    x = torch.frombuffer(memory.numpy(), dtype=torch.float32, count=24, offset=start)
    row = rows_of(Sequence(), x.view(1, 3, 1, 8))
    assert row.base.data_ptr() == x.data_ptr()
    assert (row.first.value, row.unit.value) == (0, 8)


def test_a_grid_with_too_many_axes_is_refused_with_the_fix() -> None:
    with pytest.raises(NotStrided, match="flatten two of them"):
        tokens_of(Axis(1), torch.empty(2, 3, 4, 5, 6, 2, 8))
