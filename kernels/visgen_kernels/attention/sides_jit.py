"""What the kernels of both derivatives load: the side of the queries, that of the keys, and P.

Queries that are not there, or that see nothing, have a log-sum-exp of inf: their weights are 0
without a mask.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.tiles_jit import (
    FULL,
    bias_rows,
    biased_dot,
    finite,
    load_both,
    load_queries,
    operands,
    per_key,
    per_query,
    position,
    sequence_base,
    start_scores,
    token_offsets,
)


@triton.jit
def load_sums(sums, base, rows, inside):
    """Base-2 log-sum-exp of rows, inf where a row is absent: its weights are 0."""
    return tl.load(base + token_offsets(sums, rows), mask=inside, other=float("inf"))


@triton.jit
def load_vector(vector, base, rows, inside):
    """One number a row, 0 where it is absent."""
    return tl.load(base + token_offsets(vector, rows), mask=inside, other=0.0)


@triton.jit
def tile_weights(
    width,
    q_0,
    q_1,
    k_0,
    k_1,
    c,
    sums,
    table_rows,
    j,
    present,
    x,
    flipped: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """P of a tile, from the log-sum-exp of its rows; hidden scores have a weight like any other.

    `width` is a tensor with the head dimension of q and k.
    """
    start = start_scores(table_rows, j, present, x, False, flipped, block_m, block_n)
    return weights_from(start, width, q_0, q_1, k_0, k_1, c, sums, x, flipped)


@triton.jit
def weights_from(start, width, q_0, q_1, k_0, k_1, c, sums, x, flipped: tl.constexpr):
    """`tile_weights` whose products are added to `start`, the position bias over the scale or 0."""
    if flipped:
        s = biased_dot(width, k_0, k_1, q_0, q_1, start, x)
    else:
        s = biased_dot(width, q_0, q_1, k_0, k_1, start, x)
    if x.key_bias is not None:
        s += per_key(c, flipped)
    return tl.exp2(s * x.scale - per_query(sums, flipped))


@triton.jit
def load_keys(keys, k_base, v_base, c_base, at, limit, x, whole: tl.constexpr, width: tl.constexpr):
    """Keys at .. at + width: positions, presence, key bias, and k and v as dot operands."""
    n = tl.multiple_of(at, width) + tl.arange(0, width)
    j, inside = position(n, x)
    present = inside & (j < limit)
    return load_keys_at(keys, k_base, v_base, c_base, j, j, present, x, whole)


@triton.jit
def load_keys_at(keys, k_base, v_base, c_base, near, j, present, x, whole: tl.constexpr):
    """Keys at positions j: these, presence, key bias, and k and v as dot operands.

    `near` counts them from the bases of k and v, j from that of the key bias. Where rows may see
    some of them only, what is not finite becomes 0: a row that sees such a key is NaN by its
    log-sum-exp, the others stay as they are.
    """
    c = 0.0
    if x.key_bias is not None:
        c = tl.load(c_base + j, mask=present, other=-float("inf"))
        present = c > -float("inf")
    every: tl.constexpr = whole and x.key_bias is None
    k_0, k_1 = load_both(keys.k, k_base, token_offsets(keys.k, near), present, every)
    v_0, v_1 = load_both(keys.v, v_base, token_offsets(keys.v, near), present, every)
    if not whole and x.code[0] != FULL:
        k_0, k_1 = finite(k_0), finite(k_1)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    return j, present, c, k_0, k_1, v_0, v_1


@triton.jit
def load_row_side(queries, bases, rows, inside, head, x, whole: tl.constexpr):
    """Queries (signed) and G as dot operands, base-2 log-sum-exp, delta, bias rows."""
    q_base, g_base, sums_base, delta_base = bases
    q_0, q_1 = load_queries(queries.q, q_base, token_offsets(queries.q, rows), inside, x, whole)
    g_0, g_1 = load_both(queries.grad, g_base, token_offsets(queries.grad, rows), inside, whole)
    g_0, g_1 = operands(queries.grad, g_0, g_1, x)
    sums = load_sums(queries.sums, sums_base, rows, inside)
    delta = load_vector(queries.delta, delta_base, rows, inside)
    return q_0, q_1, g_0, g_1, sums, delta, bias_rows(rows, inside, head, x)


@triton.jit
def query_bases(queries, z, head, x):
    """Where the queries' side of a sequence's head begins: q, G, sums, delta."""
    return (
        sequence_base(queries.q, z, head, x.sizes),
        sequence_base(queries.grad, z, head, x.sizes),
        sequence_base(queries.sums, z, head, x.sizes),
        sequence_base(queries.delta, z, head, x.sizes),
    )
