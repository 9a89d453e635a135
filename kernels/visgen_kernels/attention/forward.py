"""K1, the forward kernel: softmax over tiles of keys, one tile of queries a program.

    m   largest score of a row so far (base 2)      l   sum of exp2(s - m)
    acc sum of exp2(s - m) v                        o = acc / l,  lse = (m + log2 l) ln 2

(Milakov & Gimelshein 2018; Dao 2022, algorithm 1.) Tiles that every row sees carry no mask code:
the loop over keys is cut into such tiles and the others. The head dimension comes in two parts of
a power of two, so that 144 costs 128 + 16 and not 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.tiles_jit import (
    BLOCKS_1D,
    FULL,
    WINDOW,
    keep_factors,
    key_range,
    load_rows,
    operand,
    sequence_offset,
    token_offsets,
    visible,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _skipped(stretch: tl.constexpr, mask: tl.constexpr, mask_b: tl.constexpr) -> tl.constexpr:
    """Whether no tile of this mask falls into a stretch."""
    if stretch == 0:
        return mask != WINDOW or mask_b == 0
    if stretch == 1:
        return mask != WINDOW and mask != BLOCKS_1D
    return False


@triton.jit
def _tile(
    m,
    l,
    acc_0,
    acc_1,
    broken_rows,
    q_0,
    q_1,
    k_base,
    v_base,
    c_base,
    table,
    table_rows,
    k_strides,
    v_strides,
    rows,
    i,
    at,
    limit,
    scale,
    word_seed,
    sequence,
    threshold,
    factor,
    whole: tl.constexpr,
    mask: tl.constexpr,
    mask_a: tl.constexpr,
    mask_b: tl.constexpr,
    has_bias: tl.constexpr,
    has_key_bias: tl.constexpr,
    dropout: tl.constexpr,
    d: tl.constexpr,
    d0: tl.constexpr,
    d1: tl.constexpr,
    dv: tl.constexpr,
    dv0: tl.constexpr,
    dv1: tl.constexpr,
    inner: tl.constexpr,
    unit: tl.constexpr,
    precision: tl.constexpr,
    emulate: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Keys at .. at + block_n; `whole`: every row sees every one of them."""
    dtype: tl.constexpr = k_base.dtype.element_ty
    partly: tl.constexpr = (not whole) and mask != FULL  # some rows see a key, others do not
    j = tl.multiple_of(at, block_n) + tl.arange(0, block_n)
    present = j < limit
    c = 0.0
    if has_key_bias:
        c = tl.load(c_base + j)
        if not whole:
            c = tl.where(present, c, -float("inf"))
        present = c > -float("inf")  # a key hidden from all rows is not even read
    k_rows = token_offsets(j, k_strides, inner, unit)
    if has_bias:
        cells = table + table_rows[:, None] + j[None, :]
        if whole:
            s = tl.load(cells).to(tl.float32)
        else:
            s = tl.load(cells, mask=present[None, :], other=0.0).to(tl.float32)
    else:
        s = tl.zeros((block_m, block_n), tl.float32)
    every: tl.constexpr = whole and not has_key_bias
    k_0 = operand(load_rows(k_base, k_rows, present, every, 0, d0, d), dtype, emulate)
    s = tl.dot(q_0, k_0.T, s, input_precision=precision)
    if d1 > 0:
        k_1 = operand(load_rows(k_base, k_rows, present, every, d0, d1, d), dtype, emulate)
        s = tl.dot(q_1, k_1.T, s, input_precision=precision)
    if has_key_bias:
        s += c[None, :]
    if partly:
        s = tl.where(visible(i[:, None], j[None, :], mask, mask_a, mask_b), s, -float("inf"))
    if not whole and not has_key_bias:
        s = tl.where(present[None, :], s, -float("inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    base = top
    if partly or has_key_bias:  # a row may have seen nothing yet
        base = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s * scale - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    if dropout:
        p *= keep_factors(word_seed, sequence, rows, at, threshold, factor, block_n)
    v_rows = token_offsets(j, v_strides, inner, unit)
    v_0 = load_rows(v_base, v_rows, present, every, 0, dv0, dv)
    if partly:
        v_0, broken = _finite(v_0)
        broken_rows = tl.maximum(broken_rows, tl.max(tl.where(p > 0, broken[None, :], 0), 1))
    rounded = operand(p, dtype, emulate)
    acc_0 *= shrink[:, None]
    acc_0 = tl.dot(rounded, operand(v_0, dtype, emulate), acc_0, input_precision=precision)
    if dv1 > 0:
        v_1 = load_rows(v_base, v_rows, present, every, dv0, dv1, dv)
        if partly:
            v_1, broken = _finite(v_1)
            broken_rows = tl.maximum(broken_rows, tl.max(tl.where(p > 0, broken[None, :], 0), 1))
        acc_1 *= shrink[:, None]
        acc_1 = tl.dot(rounded, operand(v_1, dtype, emulate), acc_1, input_precision=precision)
    return top, l, acc_0, acc_1, broken_rows


@triton.jit
def _finite(v):
    """Values with 0 for those that are not finite, and which rows had such values (int32).

    A product of 0 with a NaN that a row must not see would be NaN.
    """
    good = tl.abs(v.to(tl.float32)) < float("inf")
    return tl.where(good, v, 0.0).to(v.dtype), tl.max((~good).to(tl.int32), 1)


@triton.jit
def attention_forward(
    q,
    k,
    v,
    out,
    lse,
    table,  # expanded relative position bias (heads, w, (2h-1) * w), divided by the scale
    key_bias,  # (z, heads, padded_n_k), divided by the scale; -inf beyond n_k
    key_lengths,
    seed,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    sizes,  # z1, z2
    heads,
    n_q,
    n_k,
    padded_n_k,
    scale,  # times log2 e; positive
    threshold,  # of dropout's 32-bit words
    factor,  # 1 / (1 - dropout)
    sign: tl.constexpr,  # of the scale: q is multiplied by it
    mask: tl.constexpr,
    mask_a: tl.constexpr,
    mask_b: tl.constexpr,
    bias_height: tl.constexpr,  # 0: no relative position bias
    bias_width: tl.constexpr,
    has_key_bias: tl.constexpr,
    has_lengths: tl.constexpr,
    dropout: tl.constexpr,
    d: tl.constexpr,
    d0: tl.constexpr,
    d1: tl.constexpr,
    dv: tl.constexpr,
    dv0: tl.constexpr,
    dv1: tl.constexpr,
    inner_q: tl.constexpr,
    inner_k: tl.constexpr,
    unit: tl.constexpr,
    unit_out: tl.constexpr,
    precision: tl.constexpr,
    emulate: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """One program: queries [block * block_m, ...) of one head of one sequence."""
    blocks = tl.cdiv(n_q, block_m)
    pid = tl.program_id(0)
    head = pid // blocks % heads
    z = pid // blocks // heads
    rows = (pid % blocks) * block_m + tl.arange(0, block_m)
    inside = rows < n_q
    i = rows + (n_k - n_q)
    first = (pid % blocks) * block_m + (n_k - n_q)
    last = tl.minimum(first + block_m, n_k) - 1

    q_base = q + sequence_offset(z, sizes, q_strides, unit) + head * q_strides[5] * unit
    q_rows = token_offsets(rows, q_strides, inner_q, unit)
    q_0 = load_rows(q_base, q_rows, inside, False, 0, d0, d)
    q_1 = q_0
    if d1 > 0:
        q_1 = load_rows(q_base, q_rows, inside, False, d0, d1, d)
    if sign != 1:
        q_0 = (q_0.to(tl.float32) * sign).to(q_0.dtype)
        q_1 = (q_1.to(tl.float32) * sign).to(q_1.dtype)
    dtype: tl.constexpr = q.dtype.element_ty
    q_0 = operand(q_0, dtype, emulate)
    if d1 > 0:
        q_1 = operand(q_1, dtype, emulate)
    k_base = k + sequence_offset(z, sizes, k_strides, unit) + head * k_strides[5] * unit
    v_base = v + sequence_offset(z, sizes, v_strides, unit) + head * v_strides[5] * unit
    c_base = key_bias
    if has_key_bias:
        c_base += (z * heads + head).to(tl.int64) * padded_n_k
    limit = n_k
    if has_lengths:
        limit = tl.minimum(n_k, tl.load(key_lengths + z // (sizes[0] * sizes[1])).to(tl.int32))
    table_rows = rows
    if bias_height > 0:
        across: tl.constexpr = (2 * bias_height - 1) * bias_width
        y, x = rows // bias_width, rows % bias_width
        table_rows = tl.where(inside, x * across + (bias_height - 1 - y) * bias_width, 0)
        table_rows = tl.multiple_of(table_rows, bias_width & -bias_width)  # for wide loads
        table += head * bias_width * across
    word_seed = 0
    if dropout:
        word_seed = tl.load(seed)

    m = tl.full((block_m,), -float("inf"), tl.float32)
    l = tl.zeros((block_m,), tl.float32)
    acc_0 = tl.zeros((block_m, dv0), tl.float32)
    acc_1 = tl.zeros((block_m, dv1 if dv1 > 0 else 16), tl.float32)
    broken_rows = tl.zeros((block_m,), tl.int32)  # they see a value that is not finite

    low, high, inner_low, inner_high = key_range(first, last, limit, mask, mask_a, mask_b)
    global_end = 0 * low
    if mask == WINDOW and mask_b > 0:  # tiles of global keys, before the window's
        global_end = tl.cdiv(tl.minimum(mask_b, limit), block_n) * block_n
        low = tl.maximum(low, global_end)
        inner_low = tl.maximum(inner_low, global_end)
    low = low // block_n * block_n
    inner_low = tl.maximum(low, tl.cdiv(inner_low, block_n) * block_n)
    inner_high = tl.maximum(inner_low, inner_high // block_n * block_n)
    # Stretches of tiles in order: global keys; masked; whole; masked.
    for stretch in tl.static_range(4):
        if not _skipped(stretch, mask, mask_b):
            start, stop = low, inner_low
            if stretch == 0:
                start, stop = 0 * low, global_end
            elif stretch == 2:
                start, stop = inner_low, inner_high
            elif stretch == 3:
                start, stop = inner_high, high
            for at in range(start, stop, block_n):
                m, l, acc_0, acc_1, broken_rows = _tile(
                    m,
                    l,
                    acc_0,
                    acc_1,
                    broken_rows,
                    q_0,
                    q_1,
                    k_base,
                    v_base,
                    c_base,
                    table,
                    table_rows,
                    k_strides,
                    v_strides,
                    rows,
                    i,
                    at,
                    limit,
                    scale,
                    word_seed,
                    z * heads + head,
                    threshold,
                    factor,
                    stretch == 2,
                    mask,
                    mask_a,
                    mask_b,
                    bias_height > 0,
                    has_key_bias,
                    dropout,
                    d,
                    d0,
                    d1,
                    dv,
                    dv0,
                    dv1,
                    inner_k,
                    unit,
                    precision,
                    emulate,
                    block_m,
                    block_n,
                )

    empty = l == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, l)
    if mask != FULL:
        inverse = tl.where(broken_rows > 0, float("nan"), inverse)
    lse_base = lse + sequence_offset(z, sizes, lse_strides, 1) + head * lse_strides[5]
    lse_rows = token_offsets(rows, lse_strides, inner_q, 1)
    tl.store(lse_base + lse_rows, tl.where(empty, -float("inf"), (m + tl.log2(l)) * LN2), inside)
    o_base = out + sequence_offset(z, sizes, out_strides, unit_out)
    o_base += head * out_strides[5] * unit_out
    o_rows = token_offsets(rows, out_strides, inner_q, unit_out)
    columns = tl.arange(0, dv0)
    tl.store(
        o_base + o_rows[:, None] + columns[None, :],
        (acc_0 * inverse[:, None]).to(out.dtype.element_ty),
        mask=inside[:, None] & (columns < dv)[None, :],
    )
    if dv1 > 0:
        columns = dv0 + tl.arange(0, dv1)
        tl.store(
            o_base + o_rows[:, None] + columns[None, :],
            (acc_1 * inverse[:, None]).to(out.dtype.element_ty),
            mask=inside[:, None] & (columns < dv)[None, :],
        )
