"""K4: attention over whole short sequences, at most 64 queries and keys.

A program holds all queries and keys of its items (heads of sequences, neighbours in memory), so
there is no loop over keys and no running softmax, and the backward pass is one kernel:

    P = exp(S - lse)    dP = F o (G V^T)    delta = rowsum(P o dP)    dS = P o (dP - delta)
    dV = (F o P)^T G    dQ = a dS K    dK = a dS^T Q    dc = colsum(dS)

(Dao 2022, appendix B; F the dropout factors, c the key bias, a the scale.) Since rows are whole,
delta comes from P and dP and the output need not be read. Every tensor is read once and written
once; nothing is added by atomics.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence as Sizes
from functools import partial
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import Keys, Rows, Scoring, rows_of, vector_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short_jit import (
    block_tokens,
    broken,
    item_keep_factors,
    item_keys,
    item_places,
    item_scores,
    item_visible,
    load_item_queries,
    load_item_sums,
    load_items,
    per_column,
    per_row,
    store_numbers,
    store_product,
)
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.attention.tiles_jit import FULL, LN2, dot_parts, finite, operand, operands
from visgen_kernels.launch import Launch
from visgen_kernels.layouts import Layout

MAX_LENGTH, MAX_HEAD = 64, 256


@triton.jit
def short_attention_forward(
    q: Rows,
    keys: Keys,
    out: Rows,
    lse: Rows,
    x: Scoring,
    total,
    heads: tl.constexpr,
    blocks: tl.constexpr,
    block: tl.constexpr,
    pack: tl.constexpr,
    shared: tl.constexpr,
    whole_q: tl.constexpr,
    whole_k: tl.constexpr,
):
    """One program: `blocks * pack` of `total` items, filled up to `block` queries and keys.

    shared: what the items have in common, see `item_places`; whole_q, whole_k: none is filled up.
    """
    n, slot = block_tokens(blocks, block, pack)
    place, number, exists = item_places(slot, total, x, heads, blocks, pack, shared)
    inside = n < x.n_q
    present, c = item_keys(n, place, number, x)
    partly: tl.constexpr = x.code[0] != FULL or pack > 1  # a row does not see every key
    every: tl.constexpr = whole_k and x.key_lengths is None and x.key_bias is None

    q_0, q_1 = load_item_queries(q, place, n, inside, x, whole_q)
    k_0, k_1 = load_items(keys.k, place, n, present, every)
    v_0, v_1 = load_items(keys.v, place, n, present, every)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    s = item_scores(keys.k, q_0, q_1, k_0, k_1, c, present, n, place[3], x, whole_k, blocks, block)
    if partly:
        s = tl.where(item_visible(n, slot, place, x, pack), s, -float("inf"))
    last: tl.constexpr = len(s.shape) - 1
    top = tl.max(s, last) * x.scale
    base = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s * x.scale - per_row(base))
    l = tl.sum(p, last)
    empty = l == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, l)
    p *= per_row(inverse)
    if x.dropout:
        p *= item_keep_factors(n, number, x, blocks, block, pack)
    if partly:  # what a row does not see has no influence, NaN included
        bad = broken(v_0)
        if keys.v.d1 > 0:
            bad = tl.maximum(bad, broken(v_1))
        p = tl.where((per_column(bad) > 0) & (s > -float("inf")), float("nan"), p)
        v_0, v_1 = finite(v_0), finite(v_1)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    rounded = operand(p, keys.v.base.dtype.element_ty, x.emulate)
    written = inside & exists
    store_product(out, place, n, written, rounded, v_0, v_1, 1.0, present, False, x)
    values = tl.where(empty, -float("inf"), (base + tl.log2(l)) * LN2)
    store_numbers(lse, place, n, written, values)


@triton.jit
def short_attention_backward(
    q: Rows,
    keys: Keys,
    grad: Rows,
    lse: Rows,
    dq: Rows,
    of_keys: Keys,
    dc: Rows,
    x: Scoring,
    total,
    heads: tl.constexpr,
    blocks: tl.constexpr,
    block: tl.constexpr,
    pack: tl.constexpr,
    shared: tl.constexpr,
    whole_q: tl.constexpr,
    whole_k: tl.constexpr,
):
    """DQ, dK and dV (`of_keys`) and dc of `blocks * pack` of `total` items, unless None.

    Keys that are not there (beyond a sample's length, or with a bias of -inf) get zeros.
    """
    n, slot = block_tokens(blocks, block, pack)
    place, number, exists = item_places(slot, total, x, heads, blocks, pack, shared)
    inside = n < x.n_q
    present, c = item_keys(n, place, number, x)
    partly: tl.constexpr = x.code[0] != FULL or pack > 1  # a row does not see every key
    some: tl.constexpr = x.key_lengths is not None or x.key_bias is not None
    every: tl.constexpr = whole_k and not some
    dtype: tl.constexpr = q.base.dtype.element_ty

    q_0, q_1 = load_item_queries(q, place, n, inside, x, whole_q)
    k_0, k_1 = load_items(keys.k, place, n, present, every)
    if partly:
        # A row that sees such a key is NaN by its log-sum-exp, the others stay as they are.
        k_0, k_1 = finite(k_0), finite(k_1)
    g_0, g_1 = load_items(grad, place, n, inside, whole_q)
    v_0, v_1 = load_items(keys.v, place, n, present, every)
    sums = load_item_sums(lse, place, n, inside)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    g_0, g_1 = operands(grad, g_0, g_1, x)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    s = item_scores(keys.k, q_0, q_1, k_0, k_1, c, present, n, place[3], x, whole_k, blocks, block)
    p = tl.exp2(s * x.scale - per_row(sums))
    last: tl.constexpr = len(p.shape) - 1
    if partly:
        seen = item_visible(n, slot, place, x, pack)
        p = tl.where(seen, p, 0.0)
    # A row's weights share the rounding of its log-sum-exp, which is large where scores are.
    l = tl.sum(p, last)
    p *= per_row(1.0 / tl.where(l > 0.0, l, 1.0))
    dp = dot_parts(keys.v, g_0, g_1, v_0, v_1, tl.zeros(p.shape, tl.float32), x)
    if partly:  # a hidden value may be NaN
        dp = tl.where(seen, dp, 0.0)
    dropped = p
    if x.dropout:
        factors = item_keep_factors(n, number, x, blocks, block, pack)
        dropped *= factors
        dp *= factors
    rounded = tl.trans(operand(dropped, dtype, x.emulate))
    written = (n < x.n_k) & exists
    if of_keys.v is not None:
        store_product(of_keys.v, place, n, written, rounded, g_0, g_1, 1.0, present, some, x)

    ds = p * (dp - per_row(tl.sum(p * dp, last)))
    if partly:  # a row that is NaN is none of the business of what it does not see
        ds = tl.where(seen, ds, 0.0)
    if dc is not None:
        sums = tl.where(present, tl.sum(ds, len(ds.shape) - 2), 0.0)
        store_numbers(dc, place, n, written, sums)
    rounded = operand(ds, dtype, x.emulate)
    factor = x.scale * LN2  # the sign is in q
    if of_keys.k is not None:
        turned = tl.trans(rounded)
        store_product(of_keys.k, place, n, written, turned, q_0, q_1, factor, present, some, x)
    if dq is not None:
        factor *= x.sign
        store_product(dq, place, n, inside & exists, rounded, k_0, k_1, factor, present, False, x)


def fits_short(layout: Layout, q: Sizes[int], k: Sizes[int], d_v: int) -> bool:
    """Whether K4 takes a call; q, k: shapes (b, *grid, h, d)."""
    lengths = (layout.length(q[1:-2]), layout.length(k[1:-2]))
    return min(lengths) > 0 and max(lengths) <= MAX_LENGTH and max(q[-1], d_v) <= MAX_HEAD


def _launch(
    kernel: Any, call: Call, x: Scoring, q: Tensor, arguments: tuple[Any, ...], tile: ShortTile
) -> Launch:
    pack = tile.pack(max(x.n_q, x.n_k))
    items = tile.blocks * pack
    total = call.layout.sequences(q.shape[1:-2]) * q.shape[0] * x.heads
    shared = 2 if x.heads * x.sizes[1] % items == 0 else 0
    if x.heads % items == 0 and all(_heads_are_near(rows, x.heads) for rows in arguments):
        shared = 3
    return Launch(
        kernel,
        triton.cdiv(total, items),
        (*arguments, x, total),
        {
            "heads": x.heads,
            "blocks": tile.blocks,
            "block": tile.length,
            "pack": pack,
            "shared": shared,
            "whole_q": x.n_q == tile.length // pack,
            "whole_k": x.n_k == tile.length // pack,
        },
        tile.warps,
        1,
        tile.options(),
    )


def _rows(layout: Layout, x: Tensor) -> Rows:
    """`rows_of` in parts of at most 128 columns: one part of a result is in registers at a time."""
    rows = rows_of(layout, x)
    half = tl.constexpr(128)
    return rows._replace(d0=half, d1=half) if rows.d0.value == 256 else rows


def _heads_are_near(argument: Rows | Keys | None, heads: int) -> bool:
    """Whether 32 bits reach from one head of a token to the others."""
    places = argument if isinstance(argument, Keys) else (argument,)
    steps = [abs(rows.strides[5]) * rows.unit.value for rows in places if rows is not None]
    return all(step * heads < 2**31 for step in steps)


def short_forward_launch(
    call: Call, x: Scoring, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    tile: ShortTile,
) -> Launch:  # fmt: skip
    """K4 for q, k, v -> out (b, *grid, h, d_v) in q's dtype and lse (b, *grid, h) in float32."""
    place, vector = partial(_rows, call.layout), partial(vector_of, call.layout)
    arguments = (place(q), Keys(place(k), place(v)), place(out), vector(lse))
    return _launch(short_attention_forward, call, x, q, arguments, tile)


def short_backward_launch(
    call: Call, x: Scoring, grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, dc: Tensor | None, tile: ShortTile,
) -> Launch:  # fmt: skip
    """The backward pass: writes dq, dk, dv (shaped like q, k, v) and dc (b, *grid_k, h), if given.

    grad is the gradient of the output, lse what the forward pass saved.
    """
    place, vector = partial(_rows, call.layout), partial(vector_of, call.layout)

    def into(x: Tensor | None) -> Rows | None:
        return None if x is None else place(x)

    arguments = (
        place(q),
        Keys(place(k), place(v)),
        place(grad),
        vector(lse),
        into(dq),
        Keys(into(dk), into(dv)),
        None if dc is None else vector(dc),
    )
    return _launch(short_attention_backward, call, x, q, arguments, tile)


def short_forward(
    call: Call, x: Scoring, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    tile: ShortTile,
) -> None:  # fmt: skip
    """Write the output and the log-sum-exp; arguments as in `short_forward_launch`."""
    short_forward_launch(call, x, q, k, v, out, lse, tile).run()


def short_backward(
    call: Call, x: Scoring, grad: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, dc: Tensor | None, tile: ShortTile,
) -> None:  # fmt: skip
    """Write all gradients; arguments as in `short_backward_launch`."""
    short_backward_launch(call, x, grad, lse, q, k, v, dq, dk, dv, dc, tile).run()
