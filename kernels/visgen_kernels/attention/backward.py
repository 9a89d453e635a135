"""K2, the first derivative, and the row sums that it and the second one need.

    delta_i = rowsum(G o O)                                     attention_delta
    dS = P o (F o (G V^T) - delta)        P = exp(S - lse), F the dropout factors
    dQ = a dS K                                                 attention_backward_queries
    dV = (F o P)^T G    dK = a dS^T Q    dc = colsum(dS)        attention_backward_keys

(Dao 2022, appendix B; c is the key bias, a the scale.) One kernel walks over keys, one over
queries; nothing is added by atomics, so two runs give the same bits.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import (
    Keys,
    Lists,
    Queries,
    Rows,
    Scoring,
    head_parts,
    lists_of,
    rows_of,
    vector_of,
)
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.sides_jit import (
    load_keys,
    load_row_side,
    query_bases,
    tile_weights,
)
from visgen_kernels.attention.tile_lists import TileLists
from visgen_kernels.attention.tiles import Tile, target_of
from visgen_kernels.attention.tiles_jit import (
    FULL,
    LN2,
    LOG2_E,
    dot_parts,
    head_of_words,
    keep_factors,
    key_bias_base,
    key_limit,
    load_both,
    operand,
    position,
    sequence_base,
    store_both,
    token_offsets,
    visible,
)
from visgen_kernels.attention.walks_jit import walk_keys, walk_queries
from visgen_kernels.launch import Launch

_DELTA_WARPS = 4


@triton.jit
def attention_delta(
    grad: Rows, out: Rows, lse: Rows, delta: Rows, sums: Rows, x: Scoring, block_m: tl.constexpr
):
    """What the other kernels need of a row, float32: rowsum(G o O) and the base-2 log-sum-exp.

    The latter is inf for rows that see nothing, which makes their weights 0 without a mask.
    """
    blocks = tl.cdiv(x.n_q, block_m)
    pid = tl.program_id(0)
    head, z = pid // blocks % x.heads, pid // blocks // x.heads
    rows = (pid % blocks) * block_m + tl.arange(0, block_m)
    inside = rows < x.n_q
    g_base, o_base = sequence_base(grad, z, head, x.sizes), sequence_base(out, z, head, x.sizes)
    g_0, g_1 = load_both(grad, g_base, token_offsets(grad, rows), inside, False)
    o_0, o_1 = load_both(out, o_base, token_offsets(out, rows), inside, False)
    total = tl.sum(g_0.to(tl.float32) * o_0.to(tl.float32), 1)
    if grad.d1 > 0:
        total += tl.sum(g_1.to(tl.float32) * o_1.to(tl.float32), 1)
    tl.store(sequence_base(delta, z, head, x.sizes) + token_offsets(delta, rows), total, inside)
    of_row = tl.load(sequence_base(lse, z, head, x.sizes) + token_offsets(lse, rows), mask=inside)
    of_row = tl.where(of_row == -float("inf"), float("inf"), of_row * LOG2_E)
    tl.store(sequence_base(sums, z, head, x.sizes) + token_offsets(sums, rows), of_row, inside)


@triton.jit
def _queries_tile(
    state,
    fixed,
    keys,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What keys at .. at + block_n add to dQ / a."""
    acc_0, acc_1 = state
    side, i, k_base, v_base, c_base, words, seed, number = fixed
    q_0, q_1, g_0, g_1, sums, delta, table_rows = side
    j, present, c, k_0, k_1, v_0, v_1 = load_keys(
        keys, k_base, v_base, c_base, at, limit, x, whole, block_n
    )
    p = tile_weights(
        keys.k, q_0, q_1, k_0, k_1, c, sums, table_rows, j, present, x, False, block_m, block_n
    )
    dp = dot_parts(keys.v, g_0, g_1, v_0, v_1, tl.zeros((block_m, block_n), tl.float32), x)
    if x.dropout:
        dp *= keep_factors(seed, number, i - (x.n_k - x.n_q), j, x, False)
    ds = p * (dp - delta[:, None])
    if not whole:
        ds = tl.where(present[None, :], ds, 0.0)
        if x.code[0] != FULL:
            ds = tl.where(visible(i[:, None], j[None, :], x, words), ds, 0.0)
    rounded = operand(ds, keys.k.base.dtype.element_ty, x.emulate)
    acc_0 = tl.dot(rounded, k_0, acc_0, input_precision=x.precision)
    if keys.k.d1 > 0:
        acc_1 = tl.dot(rounded, k_1, acc_1, input_precision=x.precision)
    return acc_0, acc_1


@triton.jit
def attention_backward_queries(
    queries: Queries,
    keys: Keys,
    dq: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    masked_n: tl.constexpr,
):
    """The gradient dQ of a tile of queries of one head; `blocks` tiles a sequence."""
    pid = tl.program_id(0)
    head, z, tile = pid // blocks % x.heads, pid // blocks // x.heads, pid % blocks
    rows, inside = position(tile * block_m + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    number = z * x.heads + head
    seed = 0
    if x.dropout:
        seed = tl.load(x.seed)
    bases = query_bases(queries, z, head, x)
    fixed = (
        load_row_side(queries, bases, rows, inside, head, x, False),
        rows + (x.n_k - x.n_q),
        sequence_base(keys.k, z, head, x.sizes),
        sequence_base(keys.v, z, head, x.sizes),
        key_bias_base(x, number),
        head_of_words(x, z),
        seed,
        number,
    )
    acc_0 = tl.zeros((block_m, keys.k.d0), tl.float32)
    acc_1 = tl.zeros((block_m, keys.k.d1 if keys.k.d1 > 0 else 16), tl.float32)
    limit = key_limit(x, z)
    acc_0, acc_1 = walk_keys(
        _queries_tile,
        (acc_0, acc_1),
        fixed,
        keys,
        x,
        lists,
        tile,
        limit,
        block_m,
        block_n,
        masked_n,
    )
    factor = x.scale * LN2 * x.sign
    dq_base = sequence_base(dq, z, head, x.sizes)
    store_both(dq, dq_base, token_offsets(dq, rows), inside, acc_0 * factor, acc_1 * factor)


@triton.jit
def _keys_tile(
    state,
    fixed,
    queries,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What queries at .. at + block_m add to dV, dK / a and dc. Keys lie along the tile's rows."""
    dv_0, dv_1, dk_0, dk_1, dc = state
    k_0, k_1, v_0, v_1, c, j, present, bases, words, seed, number, head = fixed
    rows, inside = position(tl.multiple_of(at, block_m) + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    q_0, q_1, g_0, g_1, sums, delta, table_rows = load_row_side(
        queries, bases, rows, inside, head, x, whole
    )
    i = rows + (x.n_k - x.n_q)
    dtype: tl.constexpr = queries.q.base.dtype.element_ty
    p = tile_weights(
        queries.q, q_0, q_1, k_0, k_1, c, sums, table_rows, j, present, x, True, block_m, block_n
    )
    if not whole and x.code[0] != FULL:
        seen = visible(i[None, :], j[:, None], x, words)
        p = tl.where(seen, p, 0.0)
    dropped = p
    if x.dropout:
        factors = keep_factors(seed, number, rows, j, x, True)
        dropped *= factors
    if queries.with_v:
        rounded = operand(dropped, dtype, x.emulate)
        dv_0 = tl.dot(rounded, g_0, dv_0, input_precision=x.precision)
        if queries.grad.d1 > 0:
            dv_1 = tl.dot(rounded, g_1, dv_1, input_precision=x.precision)
    if queries.with_k:
        zero = tl.zeros((block_n, block_m), tl.float32)
        dp = dot_parts(queries.grad, v_0, v_1, g_0, g_1, zero, x)
        if x.dropout:
            dp *= factors
        ds = p * (dp - delta[None, :])
        if not whole and x.code[0] != FULL:  # a hidden value may be NaN
            ds = tl.where(seen, ds, 0.0)
        if x.key_bias is not None:
            dc += tl.sum(ds, 1)
        rounded = operand(ds, dtype, x.emulate)
        dk_0 = tl.dot(rounded, q_0, dk_0, input_precision=x.precision)
        if queries.q.d1 > 0:
            dk_1 = tl.dot(rounded, q_1, dk_1, input_precision=x.precision)
    return dv_0, dv_1, dk_0, dk_1, dc


@triton.jit
def attention_backward_keys(
    queries: Queries,
    keys: Keys,
    dk: Rows,
    dv: Rows,
    dc: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """dK, dV and d key_bias of a tile of keys of one head of one sequence.

    Keys that are not there (beyond a sample's length, or with a bias of -inf) get zeros. What is
    not wanted is None: one of dk and dv, dc.
    """
    pid = tl.program_id(0)
    head, z, tile = pid // blocks % x.heads, pid // blocks // x.heads, pid % blocks
    number = z * x.heads + head
    limit = key_limit(x, z)
    j, present, c, k_0, k_1, v_0, v_1 = load_keys(
        keys,
        sequence_base(keys.k, z, head, x.sizes),
        sequence_base(keys.v, z, head, x.sizes),
        key_bias_base(x, number),
        tile * block_n,
        limit,
        x,
        False,
        block_n,
    )
    seed = 0
    if x.dropout:
        seed = tl.load(x.seed)
    bases = query_bases(queries, z, head, x)
    fixed = (
        k_0, k_1, v_0, v_1, c, j, present, bases, head_of_words(x, z), seed, number, head
    )  # fmt: skip
    wide_k: tl.constexpr = keys.k.d1 > 0 and queries.with_k
    wide_v: tl.constexpr = keys.v.d1 > 0 and queries.with_v
    state = (
        tl.zeros((block_n, keys.v.d0 if queries.with_v else 16), tl.float32),
        tl.zeros((block_n, keys.v.d1 if wide_v else 16), tl.float32),
        tl.zeros((block_n, keys.k.d0 if queries.with_k else 16), tl.float32),
        tl.zeros((block_n, keys.k.d1 if wide_k else 16), tl.float32),
        tl.zeros((block_n,), tl.float32),
    )
    dv_0, dv_1, dk_0, dk_1, colsum = walk_queries(
        _keys_tile, state, fixed, queries, x, lists, tile, limit, block_m, block_n
    )
    gone, exists = ~present[:, None], j < x.n_k
    exists = exists & position(tile * block_n + tl.arange(0, block_n), x)[1]
    if queries.with_v:
        dv_base = sequence_base(dv, z, head, x.sizes)
        dv_0, dv_1 = tl.where(gone, 0.0, dv_0), tl.where(gone, 0.0, dv_1)
        store_both(dv, dv_base, token_offsets(dv, j), exists, dv_0, dv_1)
    if queries.with_k:
        factor = x.scale * LN2  # the sign is in q
        dk_base = sequence_base(dk, z, head, x.sizes)
        dk_0, dk_1 = tl.where(gone, 0.0, dk_0 * factor), tl.where(gone, 0.0, dk_1 * factor)
        store_both(dk, dk_base, token_offsets(dk, j), exists, dk_0, dk_1)
    if dc is not None:
        dc_base = sequence_base(dc, z, head, x.sizes)
        tl.store(dc_base + token_offsets(dc, j), tl.where(present, colsum, 0.0), exists)


def delta_launch(
    call: Call, x: Scoring, grad: Tensor, out: Tensor, lse: Tensor, delta: Tensor, sums: Tensor
) -> Launch:
    """The kernel that writes delta and sums (b, *grid, h) of G, O (b, *grid, h, d_v) and lse."""
    block = _delta_rows(out)
    sequences = call.layout.sequences(out.shape[1:-2]) * out.shape[0]
    place = partial(rows_of, call.layout)
    vectors = [vector_of(call.layout, y) for y in (lse, delta, sums)]
    return Launch(
        attention_delta,
        sequences * x.heads * triton.cdiv(x.n_q, block),
        (place(grad), place(out), *vectors, x),
        {"block_m": block},
        _DELTA_WARPS,
        1,
    )


def _delta_rows(out: Tensor) -> int:
    """Rows of a program: enough that each lane of its warps loads 16 bytes of a row's parts."""
    lanes = _DELTA_WARPS * (64 if target_of(out.device) == "gfx942" else 32)
    narrow = min(part for part in head_parts(out.shape[-1]) if part)
    return max(64, 16 // out.itemsize * lanes // narrow)


def queries_of(
    call: Call,
    q: Tensor,
    grad: Tensor,
    sums: Tensor,
    delta: Tensor,
    *,
    with_k: bool = True,
    with_v: bool = True,
) -> Queries:
    """The queries' side as the kernels take it, and what the kernel over keys is to compute."""
    place, vector = partial(rows_of, call.layout), partial(vector_of, call.layout)
    wanted = tl.constexpr(with_k), tl.constexpr(with_v)
    return Queries(place(q), place(grad), vector(sums), vector(delta), *wanted)


def keys_of(call: Call, k: Tensor, v: Tensor) -> Keys:
    """The keys' side as the kernels take it."""
    return Keys(rows_of(call.layout, k), rows_of(call.layout, v))


def queries_launch(
    call: Call,
    x: Scoring,
    lists: TileLists | None,
    queries: Queries,
    keys: Keys,
    dq: Tensor,
    tile: Tile,
) -> Launch:
    """The kernel that writes dq (b, *grid, h, d)."""
    blocks = triton.cdiv(x.n_q, tile.block_m) if lists is None else lists.tiles
    sequences = call.layout.sequences(dq.shape[1:-2]) * dq.shape[0]
    return Launch(
        attention_backward_queries,
        sequences * x.heads * blocks,
        (queries, keys, rows_of(call.layout, dq), x, lists_of(lists), blocks),
        tile.constants(),
        tile.warps,
        tile.stages,
        tile.options(),
    )


def keys_launch(
    call: Call,
    x: Scoring,
    lists: TileLists | None,
    queries: Queries,
    keys: Keys,
    dk: Tensor | None,
    dv: Tensor | None,
    dc: Tensor | None,
    tile: Tile,
) -> Launch:
    """The kernel that writes dk, dv (b, *grid_k, h, ...) and dc (b, *grid_k, h); None: not wanted.

    Which of dk and dv it computes, `queries` says; dc comes with dk.
    """
    blocks = triton.cdiv(x.n_k, tile.block_n) if lists is None else lists.tiles
    k = keys.k.base
    sequences = call.layout.sequences(k.shape[1:-2]) * k.shape[0]
    of_k, of_v = (None if y is None else rows_of(call.layout, y) for y in (dk, dv))
    shift = None if dc is None else vector_of(call.layout, dc)
    return Launch(
        attention_backward_keys,
        sequences * x.heads * blocks,
        (queries, keys, of_k, of_v, shift, x, lists_of(lists), blocks),
        {"block_m": tile.block_m, "block_n": tile.block_n},
        tile.warps,
        tile.stages,
        tile.options(),
    )
