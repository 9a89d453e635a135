"""Reference shapes: how their tensors lie in memory, and that every call of them is legal."""

import pytest
import torch

from visgen_kernels.attention.addressing import tokens_of
from visgen_kernels.shapes import SHAPES, Shape, find_shape

ATTENTION = [shape for shape in SHAPES.values() if shape.kind == "attention"]


@pytest.mark.parametrize("shape", ATTENTION, ids=lambda shape: shape.id)
def test_layout_mask_and_bias_fit_the_tensors(shape: Shape) -> None:
    inputs = shape.inputs()
    assert inputs.q.is_meta
    call = shape.call(inputs)
    grids = [x.shape[1:-2] for x in (inputs.q, inputs.k)]
    for grid in grids:
        call.layout.check(grid)
    call.mask.check(shape.n_q, shape.n_k)
    if call.table is not None and call.size is not None:
        assert call.size[0] * call.size[1] == shape.n_q == shape.n_k
        assert call.table.shape == ((2 * call.size[0] - 1) * (2 * call.size[1] - 1), shape.heads)
    places = [tokens_of(call.layout, x) for x in (inputs.q, inputs.k, inputs.v)]
    assert [p.length for p in places] == [shape.n_q, shape.n_k, shape.n_k]
    assert {p.sequences for p in places} == {shape.sequences}


def test_one_projection_is_not_taken_apart_in_memory() -> None:
    shape = SHAPES["W3"]
    inputs = shape.inputs()
    assert inputs.q.stride() == (16 * 196 * 3 * 768, 196 * 3 * 768, 3 * 768, 64, 1)
    assert not inputs.q.is_contiguous()
    assert SHAPES["C1"].inputs().q.is_contiguous()


def test_half_of_the_heads_lies_among_all_of_them() -> None:
    half, whole = SHAPES["W4"].inputs().q, SHAPES["W3"].inputs().q
    assert half.shape[-2:] == (6, 64)
    assert half.stride() == whole.stride()


@pytest.mark.parametrize(("id", "side", "window", "shift"), [("S1", 56, 7, 3), ("S3", 64, 16, 8)])
def test_shifted_windows_hide_what_came_around_the_edge(
    id: str, side: int, window: int, shift: int
) -> None:
    # Along one axis the last window holds window - shift own rows and shift foreign ones.
    whole = side // window
    share = (whole - 1 + ((window - shift) ** 2 + shift**2) / window**2) / whole
    assert SHAPES[id].pairs == pytest.approx((share * window) ** 2 * window**2)


def test_the_tensors_take_dtype_and_device() -> None:
    small = Shape(id="x", what="", batch=1, grid=(4,), heads=1, d=8, key_bias=True)
    inputs = small.inputs(device="cpu", dtype=torch.float32)
    assert inputs.q.device.type == "cpu"
    assert inputs.v.dtype == torch.float32
    bias = small.call(inputs).key_bias
    assert bias is not None
    assert bias.shape == (1, 4, 1)


def test_an_unknown_shape_names_the_nearest() -> None:
    assert find_shape("STL3").grid == (2304,)
    with pytest.raises(ValueError, match=r'unknown shape "g3"; nearest: "G3"'):
        find_shape("g3")


def test_every_layer_that_is_reported_on_is_there() -> None:
    wanted = "G1 G2 G3 G3b G4 G5 G6 G7 STL1 STL2 STL3 D1 D2 D3 D4 D5 V1 V2 I1 I2 T1 T2 W1 W2 W3 W4"
    wanted += " P1 P2 P3 P4 P5 C1 C2 X1 S1 S2 S3 Q1"
    assert set(SHAPES) == set(wanted.split())
    twice = {shape.id for shape in SHAPES.values() if shape.second_derivative}
    assert twice == {"D1", "D2", "D3", "D4", "D5", "V1", "V2"}
