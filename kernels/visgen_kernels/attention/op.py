"""The operators `visgen::attention`, `::attention_backward` and `::attention_double_backward`.

Layout, mask and bias travel as integers, their tensors beside them, so that the operators are
visible to FlopCounterMode, to torch.compile and to the meta device. The derivative of the first
operator is the second, whose derivative is the third. There is no third derivative; asking for it
raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgen_kernels import layouts, masks
from visgen_kernels.attention import chunked, chunked_double
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.problem import Call, Geometry

# Arguments shared by the three operators, in the schema's order. What may have a gradient is first.
_INPUTS = (
    "Tensor q, Tensor? k, Tensor? v, Tensor? table, Tensor? key_bias, Tensor? key_lengths, "
    "Tensor? mask_offsets, Tensor? mask_entries, Tensor? seed, SymInt[] layout, SymInt[] mask, "
    "SymInt[] bias, float scale, float dropout, bool with_lse, bool keep, str implementation"
)
_COUNT = 17
_DIFFERENTIABLE = 5  # q, k, v, table, key_bias

_Inputs = tuple[Any, ...]  # the seventeen arguments above


def _call(inputs: _Inputs) -> tuple[Call, Tensor, Tensor, Tensor, bool]:
    """The operator's arguments -> Call, q, k, v, and whether q came packed."""
    q, k, v, table, key_bias, key_lengths, offsets, entries, seed, layout, mask, bias = inputs[:12]
    call = Call(
        layout=layouts.decode(layout),
        mask=masks.decode(mask, offsets, entries),
        table=table,
        size=None if table is None else (bias[0], bias[1]),
        key_bias=key_bias,
        key_lengths=key_lengths,
        seed=seed,
        scale=inputs[12],
        dropout=inputs[13],
    )
    if k is None or v is None:
        q, k, v = q.unbind(-3)
        return call, q, k, v, True
    return call, q, k, v, False


def _unpack(wanted: Sequence[bool], packed: bool) -> list[bool]:
    """Five flags in the schema's order; a packed q stands for k and v too."""
    return [wanted[0]] * 3 + list(wanted[3:]) if packed else list(wanted)


def _attention(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    call, q, k, v, _ = _call(inputs)
    if inputs[16] == "triton":
        from visgen_kernels.attention import launch  # imports Triton, which a CPU has no use for

        return *launch.forward(call, q, k, v), q.new_empty(0, dtype=torch.float32)
    return chunked.forward(call, q, k, v, with_lse=inputs[14], keep=inputs[15])


def _attention_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = inputs[:3]
    if k is None or v is None:
        shape = k_shape = (*q.shape[:-3], *q.shape[-2:])
        out = q.new_empty(shape)
    else:
        shape, k_shape = q.shape, k.shape
        out = q.new_empty((*shape[:-1], v.shape[-1]))
    dtype = _compute_dtype(q)
    with_lse = inputs[14] or inputs[16] == "triton"  # whose backward passes read it
    lse = q.new_empty(out.shape[:-1] if with_lse else (0,), dtype=dtype)
    sizes = Geometry(layouts.decode(inputs[9]), shape, k_shape, out.shape[-1])
    return out, lse, q.new_empty(sizes.scores if inputs[15] else (0,), dtype=dtype)


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _backward(grad: Tensor, out: Tensor, lse: Tensor, kept: Tensor, *rest: Any) -> list[Tensor]:
    *inputs, wanted = rest
    call, q, k, v, packed = _call(tuple(inputs))
    needs = Needs(*_unpack(wanted, packed))
    if inputs[16] == "triton":
        from visgen_kernels.attention import launch

        return launch.backward(call, grad, out, lse, q, k, v, needs=needs, packed=packed)
    return chunked.backward(call, grad, out, lse, kept, q, k, v, needs=needs, packed=packed)


def _backward_fake(
    grad: Tensor, out: Tensor, lse: Tensor, kept: Tensor, *rest: Any
) -> list[Tensor]:
    *inputs, wanted = rest
    return _like(inputs[:_DIFFERENTIABLE], wanted)


def _like(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, needed in zip(tensors, wanted, strict=True)
        if needed and x is not None
    ]


def _double_backward(
    cotangents: list[Tensor], grad: Tensor, out: Tensor, lse: Tensor, kept: Tensor, *rest: Any
) -> list[Tensor]:
    *inputs, given, wanted = rest
    call, q, k, v, packed = _call(tuple(inputs))
    pieces = iter(cotangents)
    parts = [next(pieces) if flag else None for flag in given]
    if packed and parts[0] is not None:
        parts[:3] = parts[0].unbind(-3)
    given_parts, needs = Cotangents(*parts), Needs(*_unpack(wanted[1:], packed))
    if inputs[16] == "triton":
        from visgen_kernels.attention import double_launch

        return double_launch.double_backward_of(
            call,
            given_parts,
            grad,
            out,
            lse,
            q,
            k,
            v,
            needs_grad=wanted[0],
            needs=needs,
            packed=packed,
        )
    return chunked_double.double_backward(
        call,
        given_parts,
        grad,
        out,
        kept,
        q,
        k,
        v,
        needs_grad=wanted[0],
        needs=needs,
        packed=packed,
    )


def _double_backward_fake(
    cotangents: list[Tensor], grad: Tensor, out: Tensor, lse: Tensor, kept: Tensor, *rest: Any
) -> list[Tensor]:
    *inputs, _, wanted = rest
    return _like([grad, *inputs[:_DIFFERENTIABLE]], wanted)


def _save(ctx: Any, inputs: _Inputs, *more: Tensor) -> None:
    tensors = inputs[:9]
    ctx.present = [x is not None for x in tensors]
    ctx.save_for_backward(*more, *(x for x in tensors if x is not None))
    ctx.rest = inputs[9:]
    # The second backward reaches the first operator's node too, with no gradient for it: zeros
    # would cost a whole backward pass.
    ctx.set_materialize_grads(False)


def _load(ctx: Any, more: int) -> tuple[tuple[Tensor, ...], _Inputs]:
    saved = iter(ctx.saved_tensors)
    first = tuple(next(saved) for _ in range(more))
    tensors = tuple(next(saved) if present else None for present in ctx.present)
    return first, (*tensors, *ctx.rest)


def _spread(results: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """One entry per flag: the next result where it is set, else None."""
    pieces = iter(results)
    return [next(pieces) if flag else None for flag in wanted]


class _Attention(torch.autograd.Function):
    """Its derivative is the second operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with _BelowAutograd():
            outputs = attention_op(*inputs)
        _save(ctx, inputs, *outputs)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:_DIFFERENTIABLE])
        if grads[0] is None or not any(wanted):
            return (None,) * _COUNT
        (out, lse, kept), inputs = _load(ctx, 3)
        gradients = _backward_autograd(grads[0], out, lse, kept, *inputs, wanted)
        return (*_spread(gradients, wanted), *(None,) * (_COUNT - _DIFFERENTIABLE))


class _AttentionBackward(torch.autograd.Function):
    """The derivative of the derivative is the third operator."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with _BelowAutograd():
            results = _backward_op(*arguments)
        grad, out, lse, kept, *inputs, ctx.wanted = arguments
        _save(ctx, tuple(inputs), grad, out, lse, kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        # Of grad, q, k, v, table, key_bias; out, lse and kept count as functions of the inputs.
        wanted = [needed[0], *needed[4 : 4 + _DIFFERENTIABLE]]
        parts = iter(cotangents)
        given = [flag and next(parts) is not None for flag in ctx.wanted]
        present = [x for x in cotangents if x is not None]
        gradients: list[Tensor | None] = [None] * len(wanted)
        if present and any(wanted):
            (grad, out, lse, kept), inputs = _load(ctx, 4)
            results = _double_backward_autograd(
                present, grad, out, lse, kept, *inputs, given, wanted
            )
            gradients = _spread(results, wanted)
        others = (None,) * (_COUNT - _DIFFERENTIABLE + 1)
        return (gradients[0], None, None, None, *gradients[1:], *others)


class _AttentionDoubleBackward(torch.autograd.Function):
    """There is no third derivative."""

    @staticmethod
    def forward(ctx: Any, count: int, *arguments: Any) -> tuple[Tensor, ...]:
        with _BelowAutograd():
            return tuple(_double_backward_op(list(arguments[:count]), *arguments[count:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        raise NotImplementedError(
            "visgen_kernels.attention has first and second derivatives, a third was asked for; "
            'implementation="reference" can be differentiated as often as wanted.'
        )


def call_attention(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first operator. Eager calls enter below its own dispatch, which saves 15 us."""
    if torch.compiler.is_compiling():
        return attention_op(*inputs)
    return _attention_autograd(*inputs)


def _recorded(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in arguments
    )


def _attention_autograd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    if _recorded(inputs):
        return _Attention.apply(*inputs)
    with _BelowAutograd():
        return attention_op(*inputs)


def _backward_autograd(*arguments: Any) -> list[Tensor]:
    if _recorded(arguments):
        return list(_AttentionBackward.apply(*arguments))
    with _BelowAutograd():
        return _backward_op(*arguments)


def _double_backward_autograd(cotangents: list[Tensor], *arguments: Any) -> list[Tensor]:
    if _recorded(cotangents) or _recorded(arguments):
        count = len(cotangents)
        return list(_AttentionDoubleBackward.apply(count, *cotangents, *arguments))
    with _BelowAutograd():
        return _double_backward_op(cotangents, *arguments)


_BelowAutograd = torch._C._AutoDispatchBelowAutograd

_LIBRARY = torch.library.Library("visgen", "FRAGMENT")
_LIBRARY.define(f"attention({_INPUTS}) -> (Tensor out, Tensor lse, Tensor kept)")
_LIBRARY.define(
    "attention_backward(Tensor grad, Tensor out, Tensor lse, Tensor kept, "
    f"{_INPUTS}, bool[] wanted) -> Tensor[]"
)
_LIBRARY.define(
    "attention_double_backward(Tensor[] cotangents, Tensor grad, Tensor out, Tensor lse, "
    f"Tensor kept, {_INPUTS}, bool[] given, bool[] wanted) -> Tensor[]"
)
# The Autograd kernels are written out because torch.library.register_autograd flattens every
# argument through pytrees: measured 0.9 ms instead of 0.1 ms a backward call with these schemas.
for _name, _kernel, _autograd, _fake in (
    ("attention", _attention, _attention_autograd, _attention_fake),
    ("attention_backward", _backward, _backward_autograd, _backward_fake),
    (
        "attention_double_backward",
        _double_backward,
        _double_backward_autograd,
        _double_backward_fake,
    ),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _autograd, "Autograd")
    torch.library.register_fake(f"visgen::{_name}", _fake, lib=_LIBRARY)

attention_op = torch.ops.visgen.attention.default
_backward_op = torch.ops.visgen.attention_backward.default
_double_backward_op = torch.ops.visgen.attention_double_backward.default
