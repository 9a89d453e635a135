"""K4 in Triton's interpreter against the float64 definition and its autograd, and its launches."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from visgen_kernels import Axis, Sequence, Windows
from visgen_kernels.attention.arguments import scoring_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short import (
    fits_short,
    short_backward_launch,
    short_forward_launch,
)
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.launch import Launch
from visgen_kernels.masks import Full
from visgen_kernels.shapes import SHAPES


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_short.py` printed."""
    script = Path(__file__).with_name("interpreted_short.py")
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
    assert len(interpreted["errors"]) >= 60
    for name, found in interpreted["errors"].items():
        one = found["out"]
        # What is not written stays NaN, and NaN is not at most anything.
        assert one["error"] <= 2 * one["low"] + 2 * one["rounding"] + 2e-6, (name, one)


def test_gradients_are_within_three_times_the_error_of_the_same_dtype(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        assert set(found["gradients"]) >= {"q", "k", "v"}
        assert ("key bias" in found["gradients"]) == ("key bias" in name)
        for which, one in found["gradients"].items():
            assert one["error"] <= 3 * one["low"] + 2 * one["rounding"] + 4e-6, (name, which, one)


def test_the_log_sum_exp_is_float32_exact(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        # With 16-bit inputs the bias is rounded to 16 bits: at most 2^-8 of its 4 sigma.
        rounded = name in ("bf16, fours, bias", "bf16, long")
        allowed = 2e-2 if rounded else 1e-6 * (1 + found["largest_lse"])
        assert found["lse_error"] <= allowed, (name, found)
        assert found["empty_rows_agree"], name


def test_packing_and_repetition_do_not_change_a_bit(interpreted) -> None:
    assert len(interpreted["packings"]) >= 9
    assert all(interpreted["packings"].values()), interpreted["packings"]


def test_each_gradient_is_the_same_without_the_others(interpreted) -> None:
    assert interpreted["alone"] == dict.fromkeys(("q", "k", "v", "key bias"), True)


def test_what_is_not_finite_reaches_only_rows_that_see_it(interpreted) -> None:
    assert len(interpreted["hurt"]) >= 5
    for name, found in interpreted["hurt"].items():
        expected = {"rows_agree": True, "others_equal": True, "gradients_equal": True}
        assert found == expected, name


@pytest.mark.parametrize(
    ("layout", "q", "k", "d_v", "fits"),
    [
        (Sequence(), (2, 64, 3, 16), (2, 1, 3, 16), 16, True),
        (Sequence(), (2, 65, 3, 16), (2, 1, 3, 16), 16, False),
        (Sequence(), (2, 1, 3, 16), (2, 65, 3, 16), 16, False),
        (Sequence(), (2, 0, 3, 16), (2, 5, 3, 16), 16, False),
        (Axis(1), (2, 32, 900, 3, 256), (2, 32, 900, 3, 256), 256, True),
        (Axis(2), (2, 32, 900, 3, 16), (2, 32, 900, 3, 16), 16, False),
        (Windows(8, 8), (2, 64, 64, 3, 30), (2, 64, 64, 3, 30), 30, True),
        (Sequence(), (2, 8, 3, 257), (2, 8, 3, 257), 16, False),
    ],
)
def test_at_most_64_tokens_fit(layout, q, k, d_v, fits) -> None:
    assert fits_short(layout, q, k, d_v) is fits


def _launches(id: str, tile: ShortTile) -> tuple[Launch, Launch]:
    shape = SHAPES[id]
    given = shape.inputs()
    call, (q, k, v) = shape.call(given), (given.q, given.k, given.v)
    x, out, lse = scoring_of(call, q, k), torch.empty_like(q), q.new_empty(q.shape[:-1])
    dq, dk, dv = (torch.empty_like(y) for y in (q, k, v))
    return (
        short_forward_launch(call, x, q, k, v, out, lse, tile),
        short_backward_launch(call, x, out, lse, q, k, v, dq, dk, dv, None, tile),
    )


def test_one_axis_of_programs_holds_all_items_of_the_reference_shapes() -> None:
    # TransGAN-D has 65,536 windows x heads, one more than a second axis could hold.
    for id, tile, programs in (
        ("D1", ShortTile(16, 4, 2), 16_384),
        ("W3", ShortTile(16, 4, 4), 8 * 196 * 12 // 4),
        ("P5", ShortTile(16, 4, 4), 8 * 1024 * 2 // 16),  # four sequences of 4 frames a block
        ("T1", ShortTile(32, 2, 2), 16 * 12 // 2),
        ("G1", ShortTile(64, 1, 4), 64 * 4),
    ):
        for launch in _launches(id, tile):
            assert launch.programs == programs, id


def test_sequences_of_at_most_eight_tokens_share_a_block() -> None:
    tile = ShortTile(16, 4, 4)
    assert [tile.pack(n) for n in (1, 4, 5, 8, 9, 16)] == [4, 4, 2, 2, 1, 1]
    assert replace(tile, blocks=1).pack(4) == 1  # plain products hold one sequence


def test_neighbours_share_their_place_where_the_sizes_allow_it() -> None:
    # 3: heads of one sequence; 2: sequences side by side; 0: anywhere.
    for shape, blocks, shared in (((2, 16, 9, 8, 24), 4, 3), ((2, 16, 8, 2, 24), 4, 2),
                                  ((2, 16, 9, 2, 24), 4, 0)):  # fmt: skip
        launch = _axis_launch(torch.empty(shape, device="meta"), ShortTile(16, blocks, blocks))
        assert launch.constants["shared"] == shared, shape


def test_heads_that_32_bits_do_not_reach_have_pointers_of_their_own() -> None:
    far = torch.empty_strided((2, 16, 9, 4, 8), (1152, 72, 8, 2**30, 1), device="meta")
    launch = _axis_launch(far, ShortTile(16, 4, 4))
    assert launch.constants["shared"] != 3


def _axis_launch(x: torch.Tensor, tile: ShortTile) -> Launch:
    call = Call(Axis(1), Full(), None, None, None, None, None, 1.0, 0.0)
    lse = torch.empty(x.shape[:-1], device="meta")
    return short_forward_launch(call, scoring_of(call, x, x), x, x, x, x, lse, tile)
