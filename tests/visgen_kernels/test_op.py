"""The three operators as PyTorch sees them: schema, fakes, autograd, compile, meta."""

from typing import Any

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    BlockList,
    Causal,
    Full,
    RelativePosition2d,
    SameGroup,
    SlidingWindow,
    attention,
)
from visgen_kernels.masks import Mask

OPERATORS = torch.ops.visgen


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def packed_inputs(*, with_lse: bool, keep: bool) -> tuple[Any, ...]:
    qkv = draw(2, 12, 3, 2, 4).requires_grad_()
    table = draw(35, 2, seed=1).requires_grad_()
    return (
        *(qkv, None, None, table, None, None, None, None, None),
        *([0], [0], [4, 3], 0.5, 0.0, with_lse, keep, "chunked"),
    )


def separate_inputs() -> tuple[Any, ...]:
    q, k, v = draw(2, 12, 2, 4), draw(2, 9, 2, 4, seed=1), draw(2, 9, 2, 5, seed=2)
    key_bias, lengths = draw(2, 9, 2, seed=3).requires_grad_(), torch.tensor([3, 9])
    seed = torch.tensor([7])
    return (
        *(q.requires_grad_(), k, v.requires_grad_(), None, key_bias, lengths, None, None, seed),
        *([0], [1, 1], [0, 0], 0.5, 0.1, False, False, "chunked"),
    )


def axis_inputs() -> tuple[Any, ...]:
    qkv = draw(2, 3, 4, 3, 2, 4).requires_grad_()
    return (
        *(qkv, None, None, None, None, None, None, None, None),
        *([1, 1], [0], [0, 0], 0.5, 0.0, True, False, "chunked"),
    )


def group_inputs() -> tuple[Any, ...]:
    qkv = draw(2, 4, 6, 3, 2, 4).requires_grad_()
    ids = SameGroup.shifted((4, 6), (2, 3), 1).ids
    return (
        *(qkv, None, None, None, None, None, None, ids, None),
        *([2, 2, 3], [6], [0, 0], 0.5, 0.0, False, True, "chunked"),
    )


INPUTS = {
    "packed": packed_inputs(with_lse=False, keep=False),
    "packed, everything kept": packed_inputs(with_lse=True, keep=True),
    "separate": separate_inputs(),
    "along an axis": axis_inputs(),
    "groups": group_inputs(),
}


def detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach() if isinstance(x, Tensor) else x for x in values)


# PyTorch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", INPUTS)
def test_opcheck_of_the_three_operators(name: str) -> None:
    inputs = INPUTS[name]
    torch.library.opcheck(OPERATORS.attention.default, inputs)
    with torch.no_grad():
        out, lse, kept = OPERATORS.attention.default(*inputs)
    wanted = [x is not None and x.requires_grad for x in inputs[:5]]
    grad = draw(*out.shape, seed=4)
    second = (grad.requires_grad_(), out, lse, kept, *inputs, wanted)
    torch.library.opcheck(OPERATORS.attention_backward.default, second)
    with torch.no_grad():
        first = OPERATORS.attention_backward.default(*second)
    cotangents = [draw(*x.shape, seed=5) for x in first]
    third = (cotangents, *detached(second[:-1]), wanted, wanted, [True, *wanted])
    third = (*third[:-3], *third[-2:])
    torch.library.opcheck(OPERATORS.attention_double_backward.default, third)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": Causal()},
        {"mask": SlidingWindow(1, 1), "key_lengths": torch.tensor([3])},
        {"dropout": 0.4, "seed": torch.tensor([3])},
    ],
    ids=["full", "causal", "window", "dropout"],
)
def test_gradcheck_and_gradgradcheck(options: dict[str, Any]) -> None:
    qkv, table = draw(1, 4, 3, 2, 2).requires_grad_(), draw(9, 2, seed=1).requires_grad_()
    key_bias = draw(1, 4, 2, seed=2).requires_grad_()

    def call(qkv: Tensor, table: Tensor, key_bias: Tensor) -> Tensor:
        return attention(qkv, bias=RelativePosition2d(table, (2, 2)), key_bias=key_bias, **options)

    assert torch.autograd.gradcheck(call, (qkv, table, key_bias))
    assert torch.autograd.gradgradcheck(call, (qkv, table, key_bias))


def test_gradient_of_a_packed_tensor_is_one_tensor() -> None:
    qkv = draw(2, 5, 3, 2, 4).requires_grad_()
    out = attention(qkv)
    (gradient,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert gradient.shape == qkv.shape
    assert gradient.is_contiguous()
    assert out.grad_fn is not None
    # The node's input is qkv itself: no unbind or stack stands between them.
    assert [type(f).__name__ for f, _ in out.grad_fn.next_functions if f] == ["AccumulateGrad"]


@pytest.mark.parametrize("leaf", range(5))
def test_only_the_gradients_asked_for_are_computed(leaf: int) -> None:
    tensors = [draw(1, 6, 2, 4, seed=i) for i in range(3)]
    tensors += [draw(15, 2, seed=3), draw(1, 6, 2, seed=4)]

    def call(leaves: list[Tensor]) -> Tensor:
        q, k, v, table, key_bias = leaves
        bias = RelativePosition2d(table, (2, 3))
        return attention(q, k, v, bias=bias, key_bias=key_bias)

    everything = [x.clone().requires_grad_() for x in tensors]
    expected = torch.autograd.grad(call(everything).sin().sum(), everything, create_graph=True)
    second = torch.autograd.grad(expected[leaf].cos().sum(), everything[leaf])
    alone = [x.clone() for x in tensors]
    alone[leaf].requires_grad_()
    (first,) = torch.autograd.grad(call(alone).sin().sum(), alone[leaf], create_graph=True)
    torch.testing.assert_close(first, expected[leaf])
    (again,) = torch.autograd.grad(first.cos().sum(), alone[leaf])
    torch.testing.assert_close(again, second[0])


def test_third_derivative_is_refused_in_words() -> None:
    x = draw(1, 4, 3, 1, 2).requires_grad_()
    (first,) = torch.autograd.grad(attention(x).sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="a third was asked for"):
        torch.autograd.grad(second.sin().sum(), x)


def test_lse_is_not_differentiable() -> None:
    x = draw(1, 4, 3, 1, 2).requires_grad_()
    out, lse = attention(x, return_lse=True)
    assert out.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize(
    "mask", [Full(), Causal(), BlockList.strided(2, 2, 4, block=4)], ids=["full", "causal", "list"]
)
def test_compile_traces_without_a_break(mask: Mask) -> None:
    def call(qkv: Tensor, table: Tensor) -> Tensor:
        return attention(qkv, mask=mask, bias=RelativePosition2d(table, (4, 4))).sin()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = draw(2, 16, 3, 2, 4).requires_grad_(), draw(49, 2, seed=1).requires_grad_()
    results = []
    for function in (call, compiled):
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("implementation", [None, "chunked", "reference", "sdpa"])
def test_meta_gives_shapes_and_gradients(implementation: str | None) -> None:
    qkv = torch.empty(2, 12, 3, 2, 4, device="meta", requires_grad=True)
    table = torch.empty(35, 2, device="meta", requires_grad=True)
    bias = RelativePosition2d(table, (4, 3))
    out = attention(qkv, bias=bias, implementation=implementation)
    gradients = torch.autograd.grad(out.sum(), [qkv, table], create_graph=True)
    second = torch.autograd.grad(gradients[0].sum(), [qkv, table])
    assert out.is_meta
    assert out.shape == (2, 12, 2, 4)
    assert [x.shape for x in gradients] == [x.shape for x in second] == [qkv.shape, table.shape]
