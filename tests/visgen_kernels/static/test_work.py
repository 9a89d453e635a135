"""Work of kernels: it adds up to what the directions need."""

import pytest

from visgen_kernels.attention.flops import attention_flops
from visgen_kernels.roofline import attention_work
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.work import MATHS, direction_work, kernel_work, tile_flops

CROSS = Shape(
    id="x", what="", batch=2, grid=(48,), key_grid=(32,), heads=3, d=16, value_d=8, separate=True
)


def flops(*kernels: str) -> float:
    return sum(kernel_work(kernel, CROSS).flops for kernel in kernels)


def test_a_forward_kernel_does_what_the_roofline_says() -> None:
    for shape in (CROSS, SHAPES["P1"], SHAPES["I2"]):
        heads, n_q, n_k = shape.score_matrices, shape.n_q, shape.n_k
        expected = attention_work(heads, n_q, n_k, shape.d, shape.d_v, shape.pairs)
        assert kernel_work("forward", shape) == expected
        assert kernel_work("short_forward", shape) == expected


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_direction_needs_what_the_roofline_says(direction: str) -> None:
    for shape in (CROSS, SHAPES["P1"], SHAPES["C2"]):
        heads, n_q, n_k = shape.score_matrices, shape.n_q, shape.n_k
        sizes = (heads, n_q, n_k, shape.d, shape.d_v, shape.pairs)
        assert direction_work(direction, shape) == attention_work(*sizes, direction=direction)


def test_a_second_backward_needs_twelve_products() -> None:
    q, k, v = (2, 48, 3, 16), (2, 32, 3, 16), (2, 32, 3, 8)
    once = attention_flops(q, k, v, direction="double_backward")
    assert direction_work("double_backward", CROSS).flops == once


def test_products_of_the_first_backward() -> None:
    q, k, v = (2, 48, 3, 16), (2, 32, 3, 16), (2, 32, 3, 8)
    once = attention_flops(q, k, v, direction="backward")
    assert flops("short_backward") == once
    # Two kernels both compute the scores and dP again: seven products, not five.
    again = attention_flops(q, k, v)
    assert flops("backward_queries", "backward_keys", "delta") == once + again


def test_products_of_the_second_backward_are_22() -> None:
    kernels = ["double_rows", "double_queries", "double_keys"]
    assert sum(MATHS[name].with_d + MATHS[name].with_d_v for name in kernels) == 22
    assert flops(*kernels) == 2 * 2 * 3 * 48 * 32 * (13 * 16 + 9 * 8)


def test_two_launches_for_the_keys_compute_the_weights_twice() -> None:
    apart = flops("backward_keys_dk", "backward_keys_dv")
    assert apart == flops("backward_keys") + 2 * 6 * 48 * 32 * 16


def test_bytes_by_hand() -> None:
    q, k, v, o = 48 * 16, 32 * 16, 32 * 8, 48 * 8
    work = kernel_work("backward_keys", CROSS)
    # q, k, v, dO read, dk, dv written in 16 bits; log-sum-exp and delta in 32.
    assert work.bytes == 6 * (2 * (q + 2 * k + 2 * v + o) + 4 * 2 * 48)
    delta = kernel_work("delta", CROSS)
    assert delta.bytes == 6 * (2 * 2 * o + 3 * 4 * 48)
    assert (delta.flops, delta.exponentials) == (0, 0)


def test_a_tile_at_padded_head_dimensions() -> None:
    assert tile_flops("forward", 64 * 64, 64, 64) == 2 * 64 * 64 * 128
    assert tile_flops("backward_keys", 10, 144, 64) == 2 * 10 * (2 * 144 + 2 * 64)


def test_a_kernel_without_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError):
        kernel_work("sideways", CROSS)
