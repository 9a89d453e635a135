"""`sdpa` gives what the definition gives, once differentiated, and refuses a second derivative."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from visgen_kernels import (
    Axis,
    BlockList,
    Blocks1d,
    Causal,
    Full,
    RelativePosition2d,
    SlidingWindow,
    Windows,
    attention,
)
from visgen_kernels.masks import Mask


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 12, 3, 2, 4), {}),
        ((2, 12, 3, 2, 4), {"mask": Causal()}),
        ((2, 12, 3, 2, 4), {"mask": Causal(3)}),
        ((2, 12, 3, 2, 4), {"mask": SlidingWindow(2, 1), "key_lengths": torch.tensor([12, 4])}),
        ((2, 12, 3, 2, 4), {"mask": Blocks1d(4), "key_bias": draw(2, 12, 2, seed=3)}),
        ((2, 16, 3, 2, 4), {"mask": BlockList.strided(2, 2, 4, block=4)}),
        ((2, 12, 3, 2, 4), {"bias": RelativePosition2d(draw(35, 2, seed=4), (4, 3))}),
        ((2, 12, 3, 2, 4), {"key_lengths": torch.tensor([3, 12]), "scale": 0.9}),
        ((2, 4, 6, 3, 2, 4), {"layout": Windows(2, 3)}),
        ((2, 4, 6, 3, 2, 4), {"layout": Axis(1), "mask": Causal()}),
    ],
)
def test_sdpa_equals_the_definition_with_its_first_derivative(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    results = []
    for implementation in ("reference", "sdpa"):
        qkv = draw(*shape).requires_grad_()
        out = attention(qkv, **options, implementation=implementation)
        results.append((out.detach(), *torch.autograd.grad(out.sin().sum(), qkv)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_short_queries_under_a_causal_mask_align_at_the_end() -> None:
    q, k = draw(1, 3, 1, 4), draw(1, 7, 1, 4, seed=1)
    expected = attention(q, k, k, mask=Causal(), implementation="reference")
    torch.testing.assert_close(attention(q, k, k, mask=Causal(), implementation="sdpa"), expected)


@pytest.mark.parametrize("mask", [Full(), Causal()])
def test_second_derivative_is_refused_where_it_is_asked_for(mask: Mask) -> None:
    qkv = draw(1, 6, 3, 2, 4).requires_grad_()
    out = attention(qkv, mask=mask, implementation="sdpa")
    with pytest.raises(NotImplementedError, match='use implementation="chunked"'):
        torch.autograd.grad(out.sum(), qkv, create_graph=True)


def test_math_backend_alone_has_a_second_derivative() -> None:
    results = []
    for implementation in ("reference", "sdpa"):
        qkv = draw(1, 6, 3, 2, 4).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            out = attention(qkv, implementation=implementation)
            (first,) = torch.autograd.grad(out.sin().sum(), qkv, create_graph=True)
            results.append(torch.autograd.grad(first.cos().sum(), qkv)[0])
    torch.testing.assert_close(results[1], results[0])
