"""The three operators as PyTorch sees them: schema, fakes, autograd, compile, meta."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    RelativePosition2d,
    SameGroup,
    SlidingWindow,
    attention,
)
from visgen_kernels.masks import Mask

OPERATORS = torch.ops.visgen
ENTRY = importlib.import_module("visgen_kernels.attention.entry")


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


def varied(inputs: tuple[Any, ...], requires_grad: bool, strided: bool) -> tuple[Any, ...]:
    """The same arguments with q, k, v further apart in memory, with or without gradients."""
    changed = []
    for number, x in enumerate(inputs):
        if isinstance(x, Tensor) and x.is_floating_point():
            leaf = x.detach()
            if strided and number < 3:
                leaf = torch.cat([leaf, leaf], dim=-1)[..., : leaf.shape[-1]]
            x = leaf.requires_grad_(requires_grad and x.requires_grad)
        changed.append(x)
    return tuple(changed)


# PyTorch's own check looks at the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_opcheck_of_the_three_operators(name: str, requires_grad: bool, strided: bool) -> None:
    inputs = varied(INPUTS[name], requires_grad, strided)
    torch.library.opcheck(OPERATORS.attention.default, inputs)
    with torch.no_grad():
        out, lse, kept = OPERATORS.attention.default(*inputs)
    wanted = [x is not None and x.requires_grad for x in INPUTS[name][:5]]
    grad = draw(*out.shape, seed=4)
    second = (grad.requires_grad_(requires_grad), out, lse, kept, *inputs, wanted)
    torch.library.opcheck(OPERATORS.attention_backward.default, second)
    with torch.no_grad():
        first = OPERATORS.attention_backward.default(*second)
    cotangents = [draw(*x.shape, seed=5) for x in first]
    third = (cotangents, *detached(second[:-1]), wanted, wanted, [True, *wanted])
    third = (*third[:-3], *third[-2:])
    torch.library.opcheck(OPERATORS.attention_double_backward.default, third)


GROUPS = SameGroup(torch.tensor([0, 1, 0, 0], dtype=torch.int32))
CHECKED: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"mask": Causal()},
    "frames": {"mask": Causal(2)},
    "window": {"mask": SlidingWindow(1, 1)},
    "blocks1d": {"mask": Blocks1d(2)},
    "blocks2d": {"mask": Blocks2d((2, 2), (1, 2), (1, 1))},
    "list": {"mask": BlockList.strided(1, 2, 2, block=2)},
    "groups": {"mask": GROUPS},
    "lengths": {"mask": SlidingWindow(1, 1), "key_lengths": torch.tensor([3])},
    "dropout": {"dropout": 0.4, "seed": torch.tensor([3])},
}


def check_derivatives(options: dict[str, Any], biases: tuple[str, ...]) -> None:
    leaves = {"qkv": draw(1, 4, 3, 1, 2)}
    if "table" in biases:
        leaves["table"] = draw(9, 1, seed=1)
    if "key_bias" in biases:
        leaves["key_bias"] = draw(1, 4, 1, seed=2)

    def call(*tensors: Tensor) -> Tensor:
        named = dict(zip(leaves, tensors, strict=True))
        table = named.get("table")
        bias = None if table is None else RelativePosition2d(table, (2, 2))
        return attention(named["qkv"], bias=bias, key_bias=named.get("key_bias"), **options)

    tensors = tuple(x.requires_grad_() for x in leaves.values())
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("biases", [(), ("table",), ("key_bias",), ("table", "key_bias")])
def test_gradcheck_and_gradgradcheck(name: str, biases: tuple[str, ...]) -> None:
    check_derivatives(CHECKED[name], biases)


@pytest.mark.parametrize("name", ["full", "causal", "window", "groups"])
def test_gradcheck_and_gradgradcheck_of_the_fused_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ENTRY, "keeps_weights", lambda *_, **__: False)
    check_derivatives(CHECKED[name], ())


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
