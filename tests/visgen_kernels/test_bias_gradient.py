"""K3 in Triton's interpreter against float64 autograd; its cut against the pairs it must meet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visgen_kernels.attention.bias_gradient import bias_plan, cut_of
from visgen_kernels.attention.tiles import Tile


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_bias.py` printed."""
    script = Path(__file__).with_name("interpreted_bias.py")
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


def test_the_tables_gradient_is_within_three_times_the_error_of_the_same_dtype(interpreted) -> None:
    assert len(interpreted) > 20
    for name, one in interpreted.items():
        # What is not written stays NaN, and NaN is not at most anything.
        assert one["error"] <= 3 * one["low"] + 2 * one["rounding"] + 4e-6, (name, one)


def test_two_runs_give_the_same_bits(interpreted) -> None:
    twice = [one["same"] for one in interpreted.values() if one["twice"]]
    assert twice
    assert all(twice)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_offsets_meet_every_pair_of_map_rows_once(
    size: tuple[int, int], block_m: int, block_n: int
) -> None:
    height, cut = size[0], cut_of(size, Tile(block_m, block_n, 4, 1))
    rows_m, rows_n, tiles = cut.rows_m.value, cut.rows_n.value, cut.tiles.value
    met = torch.zeros(height, height, dtype=torch.int64)
    for number in range(cut.offsets.value):
        shift = (number + cut.first.value) * rows_n
        for y in range(0, tiles * rows_m, rows_m):
            first, last = max(0, y + shift), max(0, y + shift + rows_n)
            met[y : y + rows_m, first:last] += 1
    assert bool((met == 1).all())


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([4, 8, 16, 32]), st.sampled_from([4, 8, 16, 32]))
def test_fold_adds_what_programs_wrote_to_the_entries_they_belong_to(
    size: tuple[int, int], block_m: int, block_n: int
) -> None:
    (height, width), tile = size, Tile(block_m, block_n, 4, 1)
    cut, plan = cut_of(size, tile), bias_plan(size, heads=2, sequences=3, tile=tile)
    generator = torch.Generator().manual_seed(0)
    written = torch.randint(-8, 9, plan.shape, generator=generator).double()
    expected = torch.zeros((2 * height - 1) * (2 * width - 1), 2, dtype=torch.float64)
    _, heads, parts_m, parts_n, offsets, _, _ = plan.shape
    for part_m in range(parts_m):
        for part_n in range(parts_n):
            for number in range(offsets):
                shift = (number + cut.first.value) * cut.rows_n.value
                tiles = written[:, :, part_m, part_n, number].sum(0)
                for r in range(block_m):
                    for c in range(block_n):
                        i, j = part_m * block_m + r, part_n * block_n + c
                        dy = i // width - j // width - shift
                        used = i < cut.rows_m.value * width and j < cut.rows_n.value * width
                        if used and abs(dy) < height:
                            dx = i % width - j % width
                            row = (dy + height - 1) * (2 * width - 1) + dx + width - 1
                            expected[row] += tiles[:, r, c]
                        elif used:  # no such difference: programs write zeros there
                            written[:, :, part_m, part_n, number, r, c] = 0.0
    assert heads == 2
    assert torch.equal(plan.fold(written), expected)


def test_what_is_written_is_linear_in_the_number_of_tokens() -> None:
    for width in (12, 24, 48, 64):
        plan = bias_plan((width, width), heads=4, sequences=64, tile=Tile(64, 64, 4, 2))
        splits, *rest = plan.shape
        numbers = torch.Size(rest).numel()
        assert numbers <= 2 * 4 * (width * width + 64) * 128
        assert splits == 1 or splits * torch.Size(rest[:-2]).numel() <= 264
