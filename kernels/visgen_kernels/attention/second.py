"""What the kernels of the second derivative, and that of the bias's gradient, are given."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import LOG2_E, Rows, Scoring, rows_of, vector_of
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.problem import Call
from visgen_kernels.biases import expand_table

_NO_NEEDS = Needs(False, False, False, False, False)


class Second(NamedTuple):
    """All tensors of a second derivative: queries' side, keys' side, cotangents. Absent ones None.

    The queries' side has the names of `arguments.Queries`, the keys' side those of
    `arguments.Keys`, so that what loads those loads this too. Without m and e it is what a first
    derivative reads.
    """

    q: Rows
    grad: Rows  # G
    sums: Rows  # base-2 log-sum-exp, inf where a row sees nothing
    delta: Rows
    k: Rows
    v: Rows
    of_q: Any  # U, the cotangent of dQ
    of_k: Any  # W, of dK
    of_v: Any  # X, of dV
    of_table: Any  # Y over |a|, expanded like the table (heads, w, (2h-1) * w)
    of_key_bias: Any  # y (z, heads, padded_n_k) float32
    m: Any  # rowsum(P o M)
    e: Any  # rowsum(P o (D o (M - m) + R))
    with_grad: tl.constexpr  # is gG wanted?
    with_k: tl.constexpr  # is gK?
    with_v: tl.constexpr  # is gV?
    with_key_bias: tl.constexpr  # is the key bias's?


def readable(x: Tensor) -> Tensor:
    """x, or a copy whose last axis is contiguous: what autograd hands over may be expanded."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def first_of(
    call: Call, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, sums: Tensor, delta: Tensor
) -> Second:
    """The tensors of a first derivative; grad (b, *grid, h, d_v), sums and delta (b, *grid, h)."""
    place, vector = partial(rows_of, call.layout), partial(vector_of, call.layout)
    sides = (place(q), place(readable(grad)), vector(sums), vector(delta), place(k), place(v))
    absent = (None, None, None, None, None, None, None)
    return Second(*sides, *absent, *_wanted(False, _NO_NEEDS))


def second_of(
    call: Call,
    x: Scoring,
    first: Second,
    cotangents: Cotangents,
    m: Tensor,
    e: Tensor,
    *,
    needs_grad: bool,
    needs: Needs,
) -> Second:
    """The tensors of a second derivative: those of the first, and m, e (b, *grid, h) float32."""
    place, vector = partial(rows_of, call.layout), partial(vector_of, call.layout)
    given = (cotangents.q, cotangents.k, cotangents.v)
    of_q, of_k, of_v = (None if y is None else place(readable(y)) for y in given)
    of_table = None
    if cotangents.table is not None and call.size is not None and x.table is not None:
        scaled = cotangents.table * (LOG2_E / x.scale)
        of_table = expand_table(scaled, call.size, x.table.dtype)
    of_key_bias = None
    if cotangents.key_bias is not None:
        shift = call.layout.split(cotangents.key_bias.float(), m.ndim - 2).transpose(1, 2)
        missing = x.padded_n_k - shift.shape[-1]
        of_key_bias = torch.nn.functional.pad(shift, (0, missing)).contiguous()
    wanted = _wanted(needs_grad, needs)
    return Second(
        *first[:6], of_q, of_k, of_v, of_table, of_key_bias, vector(m), vector(e), *wanted
    )


def sequences_of(call: Call, t: Second) -> int:
    """How many sequences there are, all samples together."""
    shape = t.q.base.shape
    return call.layout.sequences(shape[1:-2]) * shape[0]


def _wanted(
    needs_grad: bool, needs: Needs
) -> tuple[tl.constexpr, tl.constexpr, tl.constexpr, tl.constexpr]:
    one = tl.constexpr
    return one(needs_grad), one(needs.k), one(needs.v), one(needs.key_bias)
