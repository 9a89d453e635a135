"""Least work and memory, from shapes alone."""

import dataclasses

import pytest

from visgen_bench.kernels_bench.executed import executed, of_launches
from visgen_bench.kernels_bench.request import Group
from visgen_bench.kernels_bench.work import (
    dense_flops,
    least_work,
    needed_bytes,
    reference_bytes,
    too_large,
)
from visgen_kernels import attention_flops
from visgen_kernels.roofline import attention_work
from visgen_kernels.shapes import SHAPES, Shape


@pytest.mark.parametrize("id", sorted(id for id, s in SHAPES.items() if s.kind == "attention"))
def test_work_is_that_of_the_roofline_and_of_the_flop_formulas(id: str) -> None:
    shape = SHAPES[id]
    sizes = (shape.score_matrices, shape.n_q, shape.n_k, shape.d, shape.d_v, shape.pairs)
    for direction in ("forward", "backward"):
        least = least_work(shape, direction, "bf16")
        listed = attention_work(*sizes, direction=direction)
        assert least.flops == pytest.approx(listed.flops)
        assert least.exponentials == pytest.approx(listed.exponentials)
    assert least_work(shape, "forward", "bf16").bytes == pytest.approx(attention_work(*sizes).bytes)
    inputs = shape.inputs()
    shapes = (inputs.q.shape, inputs.k.shape, inputs.v.shape)
    common = {"layout": shape.layout, "mask": shape.made_mask}
    for direction in ("forward", "backward", "double_backward"):
        counted = attention_flops(*shapes, direction=direction, **common)  # type: ignore[arg-type]
        assert least_work(shape, direction, "fp32").flops == pytest.approx(counted)
        dense = attention_flops(*shapes, direction=direction, dense=True, **common)  # type: ignore[arg-type]
        assert dense_flops(shape, direction) == pytest.approx(dense)


def test_bytes_double_with_the_number_and_rows_do_not() -> None:
    shape = SHAPES["T1"]
    rows = 4 * shape.score_matrices * shape.n_q
    half = least_work(shape, "forward", "bf16").bytes
    assert least_work(shape, "forward", "fp32").bytes - rows == pytest.approx(2 * (half - rows))


def test_a_codebook_moves_vectors_codes_and_indices() -> None:
    least = least_work(SHAPES["Q1"], "forward", "bf16")
    assert least.flops == 2 * 32768 * 2048 * 256
    assert least.bytes == 2 * (32768 + 2048) * 256 + 8 * 32768
    assert least.exponentials == 0


def test_all_arrays_of_d2_do_not_fit_where_a_fused_kernel_does() -> None:
    shape, gib = SHAPES["D2"], 2**30
    # 64 score matrices of 4096 x 4096 in float32 are 4 GiB each time.
    assert needed_bytes("eager", shape, "forward", "fp32") > 12 * gib
    assert needed_bytes("chunked", shape, "double_backward", "fp32") < 3 * gib
    reason = too_large("eager", shape, "forward", "fp32", free=8 * gib)
    assert reason is not None
    assert "needs about 12." in reason
    assert "6.4 GiB" in reason
    one = dataclasses.replace(shape, batch=1)
    assert too_large("eager", one, "forward", "fp32", free=8 * gib) is None


def test_the_reference_takes_one_sample() -> None:
    shape = SHAPES["D2"]
    few = dataclasses.replace(shape, batch=1)
    assert reference_bytes(shape, "forward") == reference_bytes(few, "forward")
    assert reference_bytes(shape, "forward") >= 3 * 4 * 4096**2 * 8


def test_dense_sides_execute_every_pair(layers: dict[str, Shape]) -> None:
    shape = layers["causal"]
    group = Group(shape="-", direction="forward", backends=(), device="cpu", dtype="fp32")
    # 2 FLOPs, samples, heads, pairs, d + d_v
    assert executed("eager", shape, group).flops == 2 * 2 * 2 * 36 * 8
    found = executed("chunked", shape, group)
    assert found.flops is None
    assert "does not say" in (found.reason or "")


@pytest.mark.parametrize("id", ["W1", "D2", "T1", "P1", "I2", "X1", "Q1", "G3"])
def test_our_kernels_execute_at_least_what_is_needed(id: str) -> None:
    shape = SHAPES[id]
    least = least_work(shape, "forward", "bf16").flops
    found = of_launches(shape, "forward", "bf16", target="sm_90")
    assert found.kernels
    assert found.flops is None or found.flops >= least
    assert found.flops is not None or found.reason


def test_a_whole_square_of_full_tiles_wastes_nothing_but_the_last_ones() -> None:
    found = of_launches(SHAPES["G3"], "forward", "bf16", target="sm_90")
    (kernel,) = found.kernels
    tile = kernel["tile"]
    assert 1024 % tile["block_m"] == 1024 % tile["block_n"] == 0
    assert found.flops == least_work(SHAPES["G3"], "forward", "bf16").flops


def test_a_backward_pass_in_two_kernels_computes_seven_products() -> None:
    shape = SHAPES["D2"]  # head dimension 48 in two parts, without padding
    found = of_launches(shape, "backward", "bf16", target="sm_90")
    assert found.flops is not None
    assert found.flops / least_work(shape, "backward", "bf16").flops == pytest.approx(7 / 5)
