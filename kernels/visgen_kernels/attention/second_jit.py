"""What the kernels of the second derivative load and compute for a tile of scores.

With the letters of `double_backward`, F the dropout factors, |a| the absolute scale:

    P = exp(S - lse)                        D = F o (G V^T) - delta
    M = |a| (U K^T + Q W^T) + Y + y         R = F o (G X^T)

where Q and U carry the sign of the scale. Absent cotangents cost nothing.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.sides_jit import (
    load_keys_at,
    load_row_side,
    query_bases,
    weights_from,
)
from visgen_kernels.attention.tiles_jit import (
    FULL,
    LN2,
    dot_parts,
    finite,
    keep_factors,
    key_bias_base,
    load_both,
    load_queries,
    operand,
    operands,
    per_key,
    per_query,
    position,
    sequence_base,
    start_scores,
    token_offsets,
    visible,
)


@triton.jit
def optional_base(rows, z, head, x):
    """`sequence_base`, 0 for an absent tensor."""
    if rows is not None:
        return sequence_base(rows, z, head, x.sizes)
    else:
        return 0


@triton.jit
def second_query_bases(t, z, head, x):
    """Where the queries' side of a sequence's head begins: that of `query_bases`, U, m, e."""
    return (
        query_bases(t, z, head, x),
        optional_base(t.of_q, z, head, x),
        optional_base(t.m, z, head, x),
        optional_base(t.e, z, head, x),
    )


@triton.jit
def second_key_bases(t, z, head, x):
    """Where the keys' side of a sequence's head begins: k, v, W, X, key bias, its cotangent."""
    number = z * x.heads + head
    shift_base = 0
    if t.of_key_bias is not None:
        shift_base = t.of_key_bias + number.to(tl.int64) * x.padded_n_k
    return (
        sequence_base(t.k, z, head, x.sizes),
        sequence_base(t.v, z, head, x.sizes),
        optional_base(t.of_k, z, head, x),
        optional_base(t.of_v, z, head, x),
        key_bias_base(x, number),
        shift_base,
    )


@triton.jit
def load_second_queries(t, bases, rows, inside, head, x, whole: tl.constexpr):
    """What `load_row_side` loads, and U (signed) in two parts."""
    side = load_row_side(t, bases[0], rows, inside, head, x, whole)
    u_0, u_1 = 0.0, 0.0
    if t.of_q is not None:
        offsets = token_offsets(t.of_q, rows)
        u_0, u_1 = load_queries(t.of_q, bases[1], offsets, inside, x, whole)
    return side, u_0, u_1


@triton.jit
def _cotangent_of_keys(rows, base, near, present, x, every: tl.constexpr, partly: tl.constexpr):
    """W or X in two parts, as dot operands."""
    if rows is not None:
        part_0, part_1 = load_both(rows, base, token_offsets(rows, near), present, every)
        if partly:
            part_0, part_1 = finite(part_0), finite(part_1)
        return operands(rows, part_0, part_1, x)
    else:
        return 0.0, 0.0


@triton.jit
def load_second_keys(t, bases, at, limit, x, whole: tl.constexpr, width: tl.constexpr):
    """Keys at .. at + width: what `load_second_keys_at` gives."""
    j, inside = position(tl.multiple_of(at, width) + tl.arange(0, width), x)
    return load_second_keys_at(t, bases, j, j, inside & (j < limit), x, whole)


@triton.jit
def load_second_keys_at(t, bases, near, j, present, x, whole: tl.constexpr):
    """What `load_keys_at` loads, W and X as dot operands, y.

    Where rows may see some of the keys only, what is not finite becomes 0: with P = 0 where a key
    is hidden, no product needs a mask then.
    """
    k_base, v_base, w_base, x_base, c_base, shift_base = bases
    j, present, c, k_0, k_1, v_0, v_1 = load_keys_at(
        t, k_base, v_base, c_base, near, j, present, x, whole
    )
    every: tl.constexpr = whole and x.key_bias is None
    partly: tl.constexpr = (not whole) and x.code[0] != FULL
    if partly:
        v_0, v_1 = finite(v_0), finite(v_1)
    w_0, w_1 = _cotangent_of_keys(t.of_k, w_base, near, present, x, every, partly)
    x_0, x_1 = _cotangent_of_keys(t.of_v, x_base, near, present, x, every, partly)
    shift = 0.0
    if t.of_key_bias is not None:
        shift = tl.load(shift_base + j, mask=present, other=0.0)
    return j, present, c, k_0, k_1, v_0, v_1, w_0, w_1, x_0, x_1, shift


@triton.jit
def product(rows, a_0, a_1, b_0, b_1, acc, x, flipped: tl.constexpr):
    """Acc + a b^T, a of queries and b of keys, laid out as a tile of scores is."""
    if flipped:
        return dot_parts(rows, b_0, b_1, a_0, a_1, acc, x)
    else:
        return dot_parts(rows, a_0, a_1, b_0, b_1, acc, x)


@triton.jit
def blank(flipped: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr):
    """A tile of zeros."""
    if flipped:
        return tl.zeros((block_n, block_m), tl.float32)
    else:
        return tl.zeros((block_m, block_n), tl.float32)


@triton.jit
def second_starts(
    t,
    table_rows,
    j,
    present,
    x,
    flipped: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What the products of S and of M start from: the position bias and Y over |a|, or 0."""
    start = start_scores(table_rows, j, present, x, False, flipped, block_m, block_n)
    if t.of_table is not None:
        cells = t.of_table + per_query(table_rows, flipped) + per_key(j, flipped)
        y = tl.load(cells, mask=per_key(present, flipped), other=0.0)
        return start, y.to(tl.float32)
    else:
        return start, blank(flipped, block_m, block_n)


@triton.jit
def second_weights(t, query, key, start, i, words, x, whole: tl.constexpr, flipped: tl.constexpr):
    """P of a tile, 0 where a key is hidden from a row; i are the queries' positions."""
    side, j = query[0], key[0]
    p = weights_from(start, t.k, side[0], side[1], key[3], key[4], key[2], side[4], x, flipped)
    if not whole:
        if x.key_bias is None:
            p = tl.where(per_key(key[1], flipped), p, 0.0)
        if x.code[0] != FULL:
            p = tl.where(visible(per_query(i, flipped), per_key(j, flipped), x, words), p, 0.0)
    return p


@triton.jit
def second_factors(key, i, seed, number, x, flipped: tl.constexpr, aligned: tl.constexpr = True):
    """The dropout factors F of a tile, 1 without dropout; `aligned` as in `keep_factors`."""
    if x.dropout:
        return keep_factors(seed, number, i - (x.n_k - x.n_q), key[0], x, flipped, aligned)
    else:
        return 1.0


@triton.jit
def upstream(
    t,
    query,
    key,
    factors,
    x,
    flipped: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """D of a tile."""
    side = query[0]
    start = blank(flipped, block_m, block_n)
    d = product(t.v, side[2], side[3], key[5], key[6], start, x, flipped)
    if x.dropout:
        d *= factors
    return d - per_query(side[5], flipped)


@triton.jit
def score_cotangent(t, query, key, start, x, flipped: tl.constexpr):
    """M of a tile; `start` is Y over |a|, or zeros."""
    m = start
    if t.of_q is not None:
        m = product(t.k, query[1], query[2], key[3], key[4], m, x, flipped)
    if t.of_k is not None:
        m = product(t.k, query[0][0], query[0][1], key[7], key[8], m, x, flipped)
    m *= x.scale * LN2
    if t.of_key_bias is not None:
        m += per_key(key[11], flipped)
    return m


@triton.jit
def add_value_cotangent(
    t,
    query,
    key,
    factors,
    acc,
    x,
    flipped: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Acc + R of a tile: where nothing is dropped, the products are added to acc itself."""
    side = query[0]
    if t.of_v is None:
        return acc
    elif x.dropout:
        start = blank(flipped, block_m, block_n)
        r = product(t.v, side[2], side[3], key[9], key[10], start, x, flipped)
        return acc + r * factors
    else:
        return product(t.v, side[2], side[3], key[9], key[10], acc, x, flipped)


@triton.jit
def add_product(rows, weights, part_0, part_1, acc_0, acc_1, x):
    """Acc + weights @ both parts of a tensor of tokens; weights are rounded to its type."""
    rounded = operand(weights, rows.base.dtype.element_ty, x.emulate)
    acc_0 = tl.dot(rounded, part_0, acc_0, input_precision=x.precision)
    if rows.d1 > 0:
        acc_1 = tl.dot(rounded, part_1, acc_1, input_precision=x.precision)
    return acc_0, acc_1


@triton.jit
def empty_parts(rows, width: tl.constexpr):
    """Zeros (width, d) in two parts; a second part of no width has 16 columns that stay unused."""
    part_0 = tl.zeros((width, rows.d0), tl.float32)
    return part_0, tl.zeros((width, rows.d1 if rows.d1 > 0 else 16), tl.float32)


@triton.jit
def place_of(x, blocks):
    """What a program works on: sequence, head, their number, tile of the sequence, seed."""
    pid = tl.program_id(0)
    head, z, tile = pid // blocks % x.heads, pid // blocks // x.heads, pid % blocks
    seed = 0
    if x.dropout:
        seed = tl.load(x.seed)
    return z, head, z * x.heads + head, tile, seed
