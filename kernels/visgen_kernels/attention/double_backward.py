"""K5, the second derivative: two kernels that walk over keys, one that walks over queries.

With G the gradient of the output; U, W, X, Y, y the cotangents of dQ, dK, dV, of the bias and of
the key bias; a the scale; F the dropout factors; P, D, M, R as in `second_jit`:

    m = rowsum(P o M)    e = rowsum(P o (D o (M - m) + R))
    gG = (F o P o M) V + (F o P) X - m O                                    attention_double_rows
    dS = P o D           gS = P o (D o (M - m) + R - e)
    gQ = a (dS W + gS K)                                                    attention_double_queries
    gK = a (dS^T U + gS^T Q)    gV = (F o P o (M - m))^T G
    g key_bias = colsum(gS)                                                 attention_double_keys

(The formulas of `chunked_double`, rearranged: rows of P o D sum to 0, so one pass gives m, e and
gG.) The table's gradient is the sum of gS along equal differences, see `bias_gradient`. Nothing is
added by atomics, so two runs give the same bits.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import Lists, Rows, Scoring, lists_of, rows_of, vector_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import Second, sequences_of
from visgen_kernels.attention.second_jit import (
    add_product,
    add_value_cotangent,
    empty_parts,
    load_second_keys,
    load_second_queries,
    place_of,
    score_cotangent,
    second_factors,
    second_key_bases,
    second_query_bases,
    second_starts,
    second_weights,
    upstream,
)
from visgen_kernels.attention.sides_jit import load_vector
from visgen_kernels.attention.tile_lists import TileLists
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.attention.tiles_jit import (
    FULL,
    LN2,
    head_of_words,
    key_limit,
    load_both,
    position,
    sequence_base,
    store_both,
    token_offsets,
)
from visgen_kernels.attention.walks_jit import walk_keys, walk_queries
from visgen_kernels.launch import Launch


@triton.jit
def _rows_tile(
    state,
    fixed,
    t,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What keys at .. at + block_n add to gG, to a correction, m and rowsum(P o (D o M + R))."""
    acc_0, acc_1, total, m, e = state
    exact: tl.constexpr = t.q.base.dtype.element_ty == tl.float32
    query, i, bases, words, seed, number = fixed
    key = load_second_keys(t, bases, at, limit, x, whole, block_n)
    starts = second_starts(t, query[0][6], key[0], key[1], x, False, block_m, block_n)
    p = second_weights(t, query, key, starts[0], i, words, x, whole, False)
    factors = second_factors(key, i, seed, number, x, False)
    d = upstream(t, query, key, factors, x, False, block_m, block_n)
    total += tl.sum(p if exact else p * d, 1)
    cotangent = score_cotangent(t, query, key, starts[1], x, False)
    d *= cotangent
    d = add_value_cotangent(t, query, key, factors, d, x, False, block_m, block_n)
    e += tl.sum(p * d, 1)
    cotangent *= p
    m += tl.sum(cotangent, 1)
    if t.with_grad:
        weighted = cotangent * factors if x.dropout else cotangent
        acc_0, acc_1 = add_product(t.v, weighted, key[5], key[6], acc_0, acc_1, x)
        if t.of_v is not None:
            dropped = p * factors if x.dropout else p
            acc_0, acc_1 = add_product(t.v, dropped, key[9], key[10], acc_0, acc_1, x)
    return acc_0, acc_1, total, m, e


@triton.jit
def attention_double_rows(
    t: Second,
    out: Rows,
    grad_grad: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    masked_n: tl.constexpr,
):
    """Row sums m, e and, if `grad_grad` is given, gG of a tile of queries of one head."""
    z, head, number, tile, seed = place_of(x, blocks)
    rows, inside = position(tile * block_m + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    bases = second_query_bases(t, z, head, x)
    fixed = (
        load_second_queries(t, bases, rows, inside, head, x, False),
        rows + (x.n_k - x.n_q),
        second_key_bases(t, z, head, x),
        head_of_words(x, z),
        seed,
        number,
    )
    exact: tl.constexpr = t.q.base.dtype.element_ty == tl.float32
    acc_0, acc_1 = empty_parts(t.v, block_m)
    zero = tl.zeros((block_m,), tl.float32)
    acc_0, acc_1, total, m, e = walk_keys(
        _rows_tile,
        (acc_0, acc_1, zero, zero, zero),
        fixed,
        t,
        x,
        lists,
        tile,
        key_limit(x, z),
        block_m,
        block_n,
        masked_n,
    )
    # Were nothing rounded, rows of P would sum to 1 and those of P o D to 0. In float32 the former
    # is what shows: where a weight is near 1, M - m is small beside M. In 16 bits it is the latter,
    # since O and so delta are rounded.
    inverse = 1.0 + zero
    if exact:
        inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
        m *= inverse
        e *= inverse
    else:
        e -= m * total
    tl.store(bases[2] + token_offsets(t.m, rows), m, inside)
    tl.store(bases[3] + token_offsets(t.e, rows), e, inside)
    if grad_grad is not None:
        o_base = sequence_base(out, z, head, x.sizes)
        o_0, o_1 = load_both(out, o_base, token_offsets(out, rows), inside, False)
        acc_0 = acc_0 * inverse[:, None] - m[:, None] * o_0.to(tl.float32)
        if out.d1 > 0:
            acc_1 = acc_1 * inverse[:, None] - m[:, None] * o_1.to(tl.float32)
        base = sequence_base(grad_grad, z, head, x.sizes)
        store_both(grad_grad, base, token_offsets(grad_grad, rows), inside, acc_0, acc_1)


@triton.jit
def _queries_tile(
    state,
    fixed,
    t,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What keys at .. at + block_n add to gQ / a."""
    acc_0, acc_1 = state
    query, m, e, i, bases, words, seed, number = fixed
    key = load_second_keys(t, bases, at, limit, x, whole, block_n)
    starts = second_starts(t, query[0][6], key[0], key[1], x, False, block_m, block_n)
    p = second_weights(t, query, key, starts[0], i, words, x, whole, False)
    factors = second_factors(key, i, seed, number, x, False)
    d = upstream(t, query, key, factors, x, False, block_m, block_n)
    if t.of_k is not None:
        acc_0, acc_1 = add_product(t.k, p * d, key[7], key[8], acc_0, acc_1, x)
    cotangent = score_cotangent(t, query, key, starts[1], x, False) - m[:, None]
    d = d * cotangent - e[:, None]
    d = add_value_cotangent(t, query, key, factors, d, x, False, block_m, block_n)
    acc_0, acc_1 = add_product(t.k, p * d, key[3], key[4], acc_0, acc_1, x)
    return acc_0, acc_1


@triton.jit
def attention_double_queries(
    t: Second,
    gq: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    masked_n: tl.constexpr,
):
    """The gradient gQ of a tile of queries of one head of one sequence."""
    z, head, number, tile, seed = place_of(x, blocks)
    rows, inside = position(tile * block_m + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    bases = second_query_bases(t, z, head, x)
    fixed = (
        load_second_queries(t, bases, rows, inside, head, x, False),
        load_vector(t.m, bases[2], rows, inside),
        load_vector(t.e, bases[3], rows, inside),
        rows + (x.n_k - x.n_q),
        second_key_bases(t, z, head, x),
        head_of_words(x, z),
        seed,
        number,
    )
    acc_0, acc_1 = empty_parts(t.k, block_m)
    acc_0, acc_1 = walk_keys(
        _queries_tile,
        (acc_0, acc_1),
        fixed,
        t,
        x,
        lists,
        tile,
        key_limit(x, z),
        block_m,
        block_n,
        masked_n,
    )
    factor = x.scale * LN2 * x.sign
    base = sequence_base(gq, z, head, x.sizes)
    store_both(gq, base, token_offsets(gq, rows), inside, acc_0 * factor, acc_1 * factor)


@triton.jit
def _keys_tile(
    state,
    fixed,
    t,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What queries at .. at + block_m add to gV, gK / a and g key_bias; keys along the rows."""
    gv_0, gv_1, gk_0, gk_1, colsum = state
    key, bases, words, seed, number, head = fixed
    rows, inside = position(tl.multiple_of(at, block_m) + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    query = load_second_queries(t, bases, rows, inside, head, x, whole)
    m = load_vector(t.m, bases[2], rows, inside)
    e = load_vector(t.e, bases[3], rows, inside)
    i = rows + (x.n_k - x.n_q)
    side = query[0]
    starts = second_starts(t, side[6], key[0], key[1], x, True, block_m, block_n)
    p = second_weights(t, query, key, starts[0], i, words, x, whole, True)
    factors = second_factors(key, i, seed, number, x, True)
    partly: tl.constexpr = (not whole) and x.code[0] != FULL
    cotangent = score_cotangent(t, query, key, starts[1], x, True) - m[None, :]
    d = upstream(t, query, key, factors, x, True, block_m, block_n)
    if partly:  # a row may be NaN by a key that others do not see
        cotangent, d = tl.where(p == 0.0, 0.0, cotangent), tl.where(p == 0.0, 0.0, d)
    if t.with_v:
        weighted = p * cotangent * factors if x.dropout else p * cotangent
        gv_0, gv_1 = add_product(t.grad, weighted, side[2], side[3], gv_0, gv_1, x)
    if t.with_k and t.of_q is not None:
        gk_0, gk_1 = add_product(t.q, p * d, query[1], query[2], gk_0, gk_1, x)
    d *= cotangent
    d = add_value_cotangent(t, query, key, factors, d, x, True, block_m, block_n) - e[None, :]
    if partly:
        d = tl.where(p == 0.0, 0.0, d)
    d *= p
    if t.with_key_bias:
        colsum += tl.sum(d, 1)
    if t.with_k:
        gk_0, gk_1 = add_product(t.q, d, side[0], side[1], gk_0, gk_1, x)
    return gv_0, gv_1, gk_0, gk_1, colsum


@triton.jit
def attention_double_keys(
    t: Second,
    gk: Rows,
    gv: Rows,
    gc: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Those of gK, gV and g key_bias that are given, of a tile of keys of one head.

    Keys that are not there (beyond a sample's length, or with a bias of -inf) get zeros.
    """
    z, head, number, tile, seed = place_of(x, blocks)
    limit = key_limit(x, z)
    bases = second_key_bases(t, z, head, x)
    key = load_second_keys(t, bases, tile * block_n, limit, x, False, block_n)
    j, present = key[0], key[1]
    fixed = (
        key, second_query_bases(t, z, head, x), head_of_words(x, z), seed, number, head
    )  # fmt: skip
    gv_0, gv_1 = empty_parts(t.v, block_n)
    gk_0, gk_1 = empty_parts(t.k, block_n)
    gv_0, gv_1, gk_0, gk_1, colsum = walk_queries(
        _keys_tile,
        (gv_0, gv_1, gk_0, gk_1, tl.zeros((block_n,), tl.float32)),
        fixed,
        t,
        x,
        lists,
        tile,
        limit,
        block_m,
        block_n,
    )
    gone = ~present[:, None]
    exists = (j < x.n_k) & position(tile * block_n + tl.arange(0, block_n), x)[1]
    if gv is not None:
        gv_0, gv_1 = tl.where(gone, 0.0, gv_0), tl.where(gone, 0.0, gv_1)
        base = sequence_base(gv, z, head, x.sizes)
        store_both(gv, base, token_offsets(gv, j), exists, gv_0, gv_1)
    if gk is not None:
        factor = x.scale * LN2  # the sign is in q and U
        gk_0, gk_1 = tl.where(gone, 0.0, gk_0 * factor), tl.where(gone, 0.0, gk_1 * factor)
        base = sequence_base(gk, z, head, x.sizes)
        store_both(gk, base, token_offsets(gk, j), exists, gk_0, gk_1)
    if gc is not None:
        base = sequence_base(gc, z, head, x.sizes)
        tl.store(base + token_offsets(gc, j), tl.where(present, colsum, 0.0), exists)


def rows_launch(
    call: Call,
    x: Scoring,
    lists: TileLists | None,
    t: Second,
    out: Tensor,
    grad_grad: Tensor | None,
    tile: Tile,
) -> Launch:
    """The kernel that writes t.m and t.e and, if given, grad_grad (b, *grid, h, d_v)."""
    blocks = triton.cdiv(x.n_q, tile.block_m) if lists is None else lists.tiles
    written = None if grad_grad is None else rows_of(call.layout, grad_grad)
    return Launch(
        attention_double_rows,
        sequences_of(call, t) * x.heads * blocks,
        (t, rows_of(call.layout, out), written, x, lists_of(lists), blocks),
        tile.constants(),
        tile.warps,
        tile.stages,
        tile.options(),
    )


def queries_launch(
    call: Call, x: Scoring, lists: TileLists | None, t: Second, gq: Tensor, tile: Tile
) -> Launch:
    """The kernel that writes gq (b, *grid, h, d); t.m and t.e are read."""
    blocks = triton.cdiv(x.n_q, tile.block_m) if lists is None else lists.tiles
    return Launch(
        attention_double_queries,
        sequences_of(call, t) * x.heads * blocks,
        (t, rows_of(call.layout, gq), x, lists_of(lists), blocks),
        tile.constants(),
        tile.warps,
        tile.stages,
        tile.options(),
    )


def keys_launch(
    call: Call,
    x: Scoring,
    lists: TileLists | None,
    t: Second,
    gk: Tensor | None,
    gv: Tensor | None,
    gc: Tensor | None,
    tile: Tile,
) -> Launch:
    """The kernel that writes those given of gk, gv (b, *grid_k, h, ...) and gc (b, *grid_k, h)."""
    blocks = triton.cdiv(x.n_k, tile.block_n) if lists is None else lists.tiles
    gradients = tuple(None if one is None else rows_of(call.layout, one) for one in (gk, gv))
    shift = None if gc is None else vector_of(call.layout, gc)
    return Launch(
        attention_double_keys,
        sequences_of(call, t) * x.heads * blocks,
        (t, *gradients, shift, x, lists_of(lists), blocks),
        {"block_m": tile.block_m, "block_n": tile.block_n},
        tile.warps,
        tile.stages,
        tile.options(),
    )
