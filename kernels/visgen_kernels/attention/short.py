"""K4: attention over whole short sequences, at most 64 queries and keys.

A program holds all queries and keys of its items (heads of sequences, neighbours in memory), so
there is no loop over keys and no running softmax, and the backward pass is one kernel:

    P = exp(S - lse)    dP = F o (G V^T)    delta = rowsum(P o dP)    dS = P o (dP - delta)
    dV = (F o P)^T G    dQ = a dS K    dK = a dS^T Q    dc = colsum(dS)

(Dao 2022, appendix B; F the dropout factors, c the key bias, a the scale.) Since rows are whole,
delta comes from P and dP and the output need not be read. Every tensor is read once and written
once; nothing is added by atomics.
"""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import Keys, Rows, Scoring, rows_of, vector_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short_jit import (
    in_memory,
    item_keep_factors,
    item_keys,
    item_numbers,
    item_scores,
    item_visible,
    item_words,
    load_item_queries,
    load_item_sums,
    load_items,
    per_column,
    per_row,
    store_item_part,
    store_numbers,
)
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.attention.tiles_jit import (
    FULL,
    LN2,
    finite,
    key_limit,
    operand,
    operands,
    sequence_base,
)
from visgen_kernels.launch import Launch

MAX_LENGTH = 64


@triton.jit
def _broken(v):
    """Which tokens hold something that is not finite, int32."""
    return tl.max((~(tl.abs(v.to(tl.float32)) < float("inf"))).to(tl.int32), len(v.shape) - 1)


@triton.jit
def short_attention_forward(
    q: Rows,
    keys: Keys,
    out: Rows,
    lse: Rows,
    x: Scoring,
    total,
    items: tl.constexpr,
    block: tl.constexpr,
    whole_q: tl.constexpr,
    whole_k: tl.constexpr,
):
    """One program: `items` of `total`; `whole_q`, `whole_k`: there are `block` queries, keys."""
    number, exists = item_numbers(total, items)
    head, z = number % x.heads, number // x.heads
    rows = tl.arange(0, block)
    j = tl.arange(0, block)
    inside = rows < x.n_q
    present, c = item_keys(j, key_limit(x, z), number, x, items)
    every: tl.constexpr = whole_k and x.key_lengths is None and x.key_bias is None
    there = in_memory(present, items)

    q_base = sequence_base(q, z, head, x.sizes)
    q_0, q_1 = load_item_queries(q, q_base, rows, in_memory(inside, items), x, whole_q, items)
    k_base = sequence_base(keys.k, z, head, x.sizes)
    k_0, k_1 = load_items(keys.k, k_base, j, there, every, items)
    v_base = sequence_base(keys.v, z, head, x.sizes)
    v_0, v_1 = load_items(keys.v, v_base, j, there, every, items)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    s = item_scores(
        keys.k, q_0, q_1, k_0, k_1, c, present, rows, inside, j, head, x, whole_k, items, block
    )
    if x.code[0] != FULL:
        s = tl.where(item_visible(rows, j, x, item_words(x, z, items)), s, -float("inf"))
    last: tl.constexpr = len(s.shape) - 1
    top = tl.max(s, last) * x.scale
    base = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s * x.scale - per_row(base))
    l = tl.sum(p, last)
    empty = l == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, l)
    if x.code[0] != FULL:  # what a row does not see has no influence, NaN included
        broken = _broken(v_0)
        if keys.v.d1 > 0:
            broken = tl.maximum(broken, _broken(v_1))
        hurt = tl.max(tl.where(p > 0, per_column(broken), 0), last)
        inverse = tl.where(hurt > 0, float("nan"), inverse)
        v_0, v_1 = finite(v_0), finite(v_1)
    p *= per_row(inverse)
    if x.dropout:
        p *= item_keep_factors(tl.load(x.seed), number, rows, x, items, block)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    rounded = operand(p, keys.v.base.dtype.element_ty, x.emulate)
    written = in_memory(inside, items) & exists
    o_base = sequence_base(out, z, head, x.sizes)
    acc = tl.dot(rounded, v_0, input_precision=x.precision)
    store_item_part(out, o_base, rows, written, acc, 0, items)
    if keys.v.d1 > 0:
        acc = tl.dot(rounded, v_1, input_precision=x.precision)
        store_item_part(out, o_base, rows, written, acc, 1, items)
    values = tl.where(empty, -float("inf"), (base + tl.log2(l)) * LN2)
    store_numbers(lse, sequence_base(lse, z, head, x.sizes), rows, written, values, items)


@triton.jit
def short_attention_backward(
    q: Rows,
    keys: Keys,
    grad: Rows,
    lse: Rows,
    dq: Rows,
    dk: Rows,
    dv: Rows,
    dc: Rows,
    x: Scoring,
    total,
    items: tl.constexpr,
    block: tl.constexpr,
    whole_q: tl.constexpr,
    whole_k: tl.constexpr,
):
    """DQ, dK, dV and, unless it is None, dc of `items` of `total`."""
    number, exists = item_numbers(total, items)
    head, z = number % x.heads, number // x.heads
    rows = tl.arange(0, block)
    j = tl.arange(0, block)
    inside = rows < x.n_q
    present, c = item_keys(j, key_limit(x, z), number, x, items)
    some: tl.constexpr = x.key_lengths is not None or x.key_bias is not None
    every: tl.constexpr = whole_k and not some
    of_query, there = in_memory(inside, items), in_memory(present, items)
    dtype: tl.constexpr = q.base.dtype.element_ty

    q_base = sequence_base(q, z, head, x.sizes)
    q_0, q_1 = load_item_queries(q, q_base, rows, of_query, x, whole_q, items)
    k_base = sequence_base(keys.k, z, head, x.sizes)
    k_0, k_1 = load_items(keys.k, k_base, j, there, every, items)
    g_base = sequence_base(grad, z, head, x.sizes)
    g_0, g_1 = load_items(grad, g_base, rows, of_query, whole_q, items)
    v_base = sequence_base(keys.v, z, head, x.sizes)
    v_0, v_1 = load_items(keys.v, v_base, j, there, every, items)
    if x.code[0] != FULL:
        # A row that sees such a key is NaN by its log-sum-exp, the others stay as they are.
        k_0, k_1 = finite(k_0), finite(k_1)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    g_0, g_1 = operands(grad, g_0, g_1, x)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    sums = load_item_sums(lse, sequence_base(lse, z, head, x.sizes), rows, of_query, items)
    s = item_scores(
        keys.k, q_0, q_1, k_0, k_1, c, present, rows, inside, j, head, x, whole_k, items, block
    )
    p = tl.exp2(s * x.scale - per_row(sums))
    dp = tl.dot(g_0, tl.trans(v_0), input_precision=x.precision)
    if keys.v.d1 > 0:
        dp = tl.dot(g_1, tl.trans(v_1), dp, input_precision=x.precision)
    if x.code[0] != FULL:  # a hidden value may be NaN
        seen = item_visible(rows, j, x, item_words(x, z, items))
        p, dp = tl.where(seen, p, 0.0), tl.where(seen, dp, 0.0)
    dropped = p
    if x.dropout:
        factors = item_keep_factors(tl.load(x.seed), number, rows, x, items, block)
        dropped *= factors
        dp *= factors
    rounded = tl.trans(operand(dropped, dtype, x.emulate))
    written = in_memory(j < x.n_k, items) & exists
    dv_base = sequence_base(dv, z, head, x.sizes)
    acc = tl.dot(rounded, g_0, input_precision=x.precision)
    store_item_part(dv, dv_base, j, written, acc, 0, items)
    if dv.d1 > 0:
        acc = tl.dot(rounded, g_1, input_precision=x.precision)
        store_item_part(dv, dv_base, j, written, acc, 1, items)

    ds = p * (dp - per_row(tl.sum(p * dp, len(p.shape) - 1)))
    if dc is not None:
        dc_base = sequence_base(dc, z, head, x.sizes)
        store_numbers(dc, dc_base, j, written, tl.sum(ds, len(ds.shape) - 2), items)
    rounded = operand(ds, dtype, x.emulate)
    factor = x.scale * LN2  # the sign is in q
    dk_base = sequence_base(dk, z, head, x.sizes)
    acc = tl.dot(tl.trans(rounded), q_0, input_precision=x.precision) * factor
    store_item_part(dk, dk_base, j, written, acc, 0, items)
    if dk.d1 > 0:
        acc = tl.dot(tl.trans(rounded), q_1, input_precision=x.precision) * factor
        store_item_part(dk, dk_base, j, written, acc, 1, items)
    written = of_query & exists
    dq_base = sequence_base(dq, z, head, x.sizes)
    acc = tl.dot(rounded, k_0, input_precision=x.precision) * (factor * x.sign)
    store_item_part(dq, dq_base, rows, written, acc, 0, items)
    if dq.d1 > 0:
        acc = tl.dot(rounded, k_1, input_precision=x.precision) * (factor * x.sign)
        store_item_part(dq, dq_base, rows, written, acc, 1, items)


def _constants(x: Scoring, tile: ShortTile) -> dict[str, int | bool]:
    return {
        "items": tile.items,
        "block": tile.length,
        "whole_q": x.n_q == tile.length,
        "whole_k": x.n_k == tile.length,
    }


def _total(call: Call, x: Scoring, q: Tensor) -> int:
    return call.layout.sequences(q.shape[1:-2]) * q.shape[0] * x.heads


def short_forward_launch(
    call: Call, x: Scoring, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    tile: ShortTile,
) -> Launch:  # fmt: skip
    """K4 for q, k, v -> out (b, *grid, h, d_v) in q's dtype and lse (b, *grid, h) in float32."""
    total, place = _total(call, x, q), partial(rows_of, call.layout)
    return Launch(
        short_attention_forward,
        triton.cdiv(total, tile.items),
        (place(q), Keys(place(k), place(v)), place(out), vector_of(call.layout, lse), x, total),
        _constants(x, tile),
        tile.warps,
        1,
        tile.options(),
    )


def short_backward_launch(
    call: Call, x: Scoring, grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor, dc: Tensor | None, tile: ShortTile,
) -> Launch:  # fmt: skip
    """The backward pass: writes dq, dk, dv (like q, k, v) and, if given, dc (b, *grid_k, h)."""
    total, place = _total(call, x, q), partial(rows_of, call.layout)
    vector = partial(vector_of, call.layout)
    return Launch(
        short_attention_backward,
        triton.cdiv(total, tile.items),
        (
            place(q),
            Keys(place(k), place(v)),
            place(grad),
            vector(lse),
            place(dq),
            place(dk),
            place(dv),
            None if dc is None else vector(dc),
            x,
            total,
        ),
        _constants(x, tile),
        tile.warps,
        1,
        tile.options(),
    )
