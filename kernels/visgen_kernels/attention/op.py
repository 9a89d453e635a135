"""The operators `visgen::attention`, `::attention_backward` and `::attention_double_backward`.

Layout, mask and bias travel as integers, their tensors beside them, so that the operators are
visible to FlopCounterMode, to torch.compile and to the meta device. Autograd is registered twice:
the backward of the first operator calls the second, whose backward calls the third. There is no
third derivative; asking for it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgen_kernels import layouts, masks
from visgen_kernels.attention import chunked, chunked_double
from visgen_kernels.attention.chunked import Needs
from visgen_kernels.attention.chunked_double import Cotangents
from visgen_kernels.attention.problem import Call, Geometry

# Arguments shared by the three operators, in the schema's order. What may have a gradient is first.
_INPUTS = (
    "Tensor q, Tensor? k, Tensor? v, Tensor? table, Tensor? key_bias, Tensor? key_lengths, "
    "Tensor? block_offsets, Tensor? block_columns, Tensor? seed, SymInt[] layout, SymInt[] mask, "
    "SymInt[] bias, float scale, float dropout, bool with_lse, bool keep, str implementation"
)
_COUNT = 17
_DIFFERENTIABLE = 5  # q, k, v, table, key_bias

_Inputs = tuple[Any, ...]  # the seventeen arguments above


def _call(inputs: _Inputs) -> tuple[Call, Tensor, Tensor, Tensor, bool]:
    """The operator's arguments -> Call, q, k, v, and whether q came packed."""
    q, k, v, table, key_bias, key_lengths, offsets, columns, seed, layout, mask, bias = inputs[:12]
    call = Call(
        layout=layouts.decode(layout),
        mask=masks.decode(mask, offsets, columns),
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


def _needs(wanted: Sequence[bool]) -> Needs:
    """Five flags in the schema's order; a packed q stands for k and v too."""
    return Needs(*wanted)


def _unpack(wanted: Sequence[bool], packed: bool) -> list[bool]:
    return [wanted[0]] * 3 + list(wanted[3:]) if packed else list(wanted)


def _attention(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    call, q, k, v, _ = _call(inputs)
    with torch.no_grad():
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
    lse = q.new_empty(out.shape[:-1] if inputs[14] else (0,), dtype=dtype)
    scores = Geometry(layouts.decode(inputs[9]), shape, k_shape).scores if inputs[15] else (0,)
    return out, lse, q.new_empty(scores, dtype=dtype)


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _backward(grad: Tensor, out: Tensor, lse: Tensor, kept: Tensor, *rest: Any) -> list[Tensor]:
    *inputs, wanted = rest
    call, q, k, v, packed = _call(tuple(inputs))
    with torch.no_grad():
        return chunked.backward(
            call, grad, kept, q, k, v, needs=_needs(_unpack(wanted, packed)), packed=packed
        )


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
    with torch.no_grad():
        return chunked_double.double_backward(
            call,
            Cotangents(*parts),
            grad,
            out,
            kept,
            q,
            k,
            v,
            needs_grad=wanted[0],
            needs=_needs(_unpack(wanted[1:], packed)),
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


def _load(ctx: Any, more: int) -> tuple[tuple[Tensor, ...], _Inputs]:
    saved = iter(ctx.saved_tensors)
    first = tuple(next(saved) for _ in range(more))
    tensors = tuple(next(saved) if present else None for present in ctx.present)
    return first, (*tensors, *ctx.rest)


def _setup_attention(ctx: Any, inputs: _Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _save(ctx, inputs, *output)
    ctx.mark_non_differentiable(*output[1:])
    # The second backward reaches this node too, with no gradient: zeros would cost a whole pass.
    ctx.set_materialize_grads(False)


def _differentiate_attention(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    (out, lse, kept), inputs = _load(ctx, 3)
    wanted = list(ctx.needs_input_grad[:_DIFFERENTIABLE])
    if grad is None or not any(wanted):
        return (None,) * _COUNT
    results = iter(_backward_op(grad, out, lse, kept, *inputs, wanted))
    gradients = [next(results) if flag else None for flag in wanted]
    return (*gradients, *(None,) * (_COUNT - _DIFFERENTIABLE))


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, out, lse, kept, *rest = inputs
    *shared, ctx.wanted = rest
    _save(ctx, tuple(shared), grad, out, lse, kept)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Any, ...]:
    (grad, out, lse, kept), inputs = _load(ctx, 4)
    needed = ctx.needs_input_grad
    # grad, (out, lse and kept count as functions of the inputs), q, k, v, table, key_bias
    wanted = [needed[0], *needed[4 : 4 + _DIFFERENTIABLE]]
    pieces = iter(cotangents)
    parts = [next(pieces) if flag else None for flag in ctx.wanted]
    given = [x is not None for x in parts]
    present = [x for x in parts if x is not None]
    gradients: list[Tensor | None] = [None] * len(wanted)
    if present and any(wanted):
        results = iter(_double_backward_op(present, grad, out, lse, kept, *inputs, given, wanted))
        gradients = [next(results) if flag else None for flag in wanted]
    return (
        gradients[0],
        None,
        None,
        None,
        *gradients[1:],
        *(None,) * (_COUNT - _DIFFERENTIABLE + 1),
    )


def _setup_nothing(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None: ...


def _no_third_derivative(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    raise NotImplementedError(
        "visgen_kernels.attention has first and second derivatives, a third was asked for; "
        'use implementation="reference", which plain autograd differentiates as often as wanted.'
    )


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
for _name, _kernel, _fake in (
    ("attention", _attention, _attention_fake),
    ("attention_backward", _backward, _backward_fake),
    ("attention_double_backward", _double_backward, _double_backward_fake),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"visgen::{_name}", _fake, lib=_LIBRARY)
for _name, _formula, _setup in (
    ("attention", _differentiate_attention, _setup_attention),
    ("attention_backward", _differentiate_backward, _setup_backward),
    ("attention_double_backward", _no_third_derivative, _setup_nothing),
):
    torch.library.register_autograd(
        f"visgen::{_name}", _formula, setup_context=_setup, lib=_LIBRARY
    )

attention_op = torch.ops.visgen.attention.default
_backward_op = torch.ops.visgen.attention_backward.default
_double_backward_op = torch.ops.visgen.attention_double_backward.default
