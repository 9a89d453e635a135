"""FLOPs by formula: visible pairs, dense pairs, the same on CPU and on meta."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from visgen_kernels import (
    DENSE_FLOPS,
    Axis,
    BlockList,
    Causal,
    Full,
    RelativePosition2d,
    Sequence,
    SlidingWindow,
    Windows,
    attention,
    attention_flops,
)
from visgen_kernels.attention.flops import Direction

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "double_backward")


def counted(function: Callable[[], object], **options: Any) -> int:
    with FlopCounterMode(display=False, **options) as counter:
        function()
    return counter.get_total_flops()


def three_counts(tensors: list[Tensor], **options: Any) -> list[int]:
    """FLOPs of forward, backward and double backward as FlopCounterMode sees them."""
    totals = []
    with FlopCounterMode(display=False) as counter:
        out = attention(*tensors, **options)
        totals.append(counter.get_total_flops())
        grad = torch.zeros_like(out).requires_grad_()
        first = torch.autograd.grad(out, tensors, grad, create_graph=True)
        totals.append(counter.get_total_flops())
        torch.autograd.grad(first, [grad, *tensors], [torch.zeros_like(x) for x in first])
        totals.append(counter.get_total_flops())
    return [totals[0], totals[1] - totals[0], totals[2] - totals[1]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(2, 32, 3, 2, 4)], {}),
        ([(2, 32, 3, 2, 4)], {"mask": Causal()}),
        ([(2, 32, 3, 2, 4)], {"mask": SlidingWindow(3, 1)}),
        ([(2, 32, 3, 2, 4)], {"mask": BlockList.strided(2, 4, 4, block=4)}),
        ([(2, 7, 2, 4), (2, 9, 2, 4), (2, 9, 2, 5)], {"mask": Causal()}),
        ([(2, 8, 6, 3, 2, 4)], {"layout": Windows(4, 3)}),
        ([(2, 5, 6, 3, 2, 4)], {"layout": Axis(1), "mask": Causal()}),
    ],
)
def test_counter_sees_the_closed_form_once(
    shapes: list[tuple[int, ...]], options: dict[str, Any], device: str
) -> None:
    tensors = [torch.zeros(shape, device=device).requires_grad_() for shape in shapes]
    expected = [attention_flops(*shapes, **options, direction=d) for d in DIRECTIONS]
    assert three_counts(tensors, **options) == expected


def test_figures_of_a_square_without_mask() -> None:
    # 24 N^2 D a head for the double backward with all twelve products (kernels.md 1.4).
    square = 64 * 64 * 16
    flops = [attention_flops((2, 64, 3, 4, 16), direction=d) for d in DIRECTIONS]
    assert flops == [2 * 4 * square * factor for factor in (4, 10, 24)]


def test_dense_counts_hidden_pairs_too() -> None:
    qkv = torch.zeros(2, 16, 3, 2, 4)
    visible = counted(lambda: attention(qkv, mask=Causal()))
    dense = counted(lambda: attention(qkv, mask=Causal()), custom_mapping=DENSE_FLOPS)
    assert dense == attention_flops(qkv.shape, mask=Causal(), dense=True)
    assert dense == attention_flops(qkv.shape, mask=Full())
    assert visible * 256 == dense * 136


def test_lengths_bias_and_dropout_do_not_change_the_count() -> None:
    qkv, table = torch.zeros(2, 6, 3, 2, 4), torch.zeros(15, 2)
    plain = counted(lambda: attention(qkv))
    cases: list[dict[str, Any]] = [
        {"key_lengths": torch.tensor([1, 2])},
        {"bias": RelativePosition2d(table, (2, 3))},
        {"dropout": 0.5, "seed": torch.tensor([1])},
    ]
    for options in cases:
        assert counted(lambda options=options: attention(qkv, **options)) == plain


def test_gradient_of_the_values_alone_costs_two_products() -> None:
    q, k = torch.zeros(1, 8, 1, 4), torch.zeros(1, 8, 1, 4)
    v = torch.zeros(1, 8, 1, 4).requires_grad_()
    out = attention(q, k, v)
    flops = counted(lambda: torch.autograd.grad(out.sum(), v))
    assert flops == 2 * 8 * 8 * (4 + 4)  # Q K^T and P^T G


def test_backward_is_two_and_a_half_forwards_whether_or_not_weights_are_kept() -> None:
    for n in (16, 2048):
        shape = (1, n, 3, 1, 8)
        (forward, backward, _) = three_counts([torch.zeros(shape, device="meta").requires_grad_()])
        assert backward == 2.5 * forward == attention_flops(shape, direction="backward")


def test_layout_defaults_to_a_sequence() -> None:
    shape = (2, 6, 3, 2, 4)
    assert attention_flops(shape) == attention_flops(shape, layout=Sequence(), mask=Full())
