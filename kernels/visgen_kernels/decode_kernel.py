# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""K6: a few queries against a cache of keys and values, the keys shared out among programs.

Every program streams its share of one head's cache once and leaves a partial softmax,

    m = max_j s_j      l = sum_j 2^(s_j - m)      a = sum_j 2^(s_j - m) v_j      (s in base 2)

and `decode_combine` adds the shares (Flash-Decoding; Dao et al. 2023): with M the largest m,

    out = sum 2^(m - M) a / sum 2^(m - M) l

Memory is the bound, one product a number read. So `decode_one` takes a query times its keys by
sums, not by matrix products padded to 16 rows, and keeps the softmax statistics of every place in
the tile apart until the end: where keys are as wide as values, no thread waits for another inside
the loop. `decode_several` takes up to 16 queries by matrix products in one warp, because with more
each warp would compute the same 16 rows.

q, k and v are `Rows` of `attention/arguments.py`, (b, n, h, d or d_v).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Lists(NamedTuple):
    """Lists of key blocks in CSR form; block 0: there are none, every key is listed.

    A query has the list of its sample, or else that of the block its position falls into.
    """

    offsets: Any
    columns: Any
    block: tl.constexpr
    by_sample: tl.constexpr


class Size(NamedTuple):
    """Heads, queries a sample, keys a cache holds, programs that share the keys of one head."""

    heads: int
    queries: int
    keys: int
    splits: int


@triton.jit
def _head(x, sample, head):
    """Address of one head of a sample; int64, because a cache may hold more than 2^31 numbers."""
    offset = sample.to(tl.int64) * x.strides[0] + head.to(tl.int64) * x.strides[5]
    base = x.base + offset * x.unit
    return base + x.first if x.first > 0 else base


@triton.jit
def _load(x, base, n, present, start: tl.constexpr, width: tl.constexpr):
    """Columns start .. start + width of tokens n; 0 where absent and beyond the tensor's width."""
    columns = start + tl.arange(0, width)
    pointers = base + (n.to(tl.int64) * x.strides[3] * x.unit)[:, None] + columns[None, :]
    mask = present[:, None]
    if start + width > x.d:
        mask = mask & (columns < x.d)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _load_query(x, base, n, start: tl.constexpr, width: tl.constexpr, scale):
    """The same of one token, (width,), times the scale, in float32."""
    columns = start + tl.arange(0, width)
    pointers = base + n.to(tl.int64) * x.strides[3] * x.unit + columns
    return tl.load(pointers, mask=columns < x.d, other=0.0).to(tl.float32) * scale


@triton.jit
def _length(lengths, sample, size):
    """Keys of a sample: never more than the cache holds, whatever `lengths` says."""
    return tl.maximum(0, tl.minimum(tl.load(lengths + sample).to(tl.int32), size.keys))


@triton.jit
def _share(count, split, size, block_n: tl.constexpr):
    """First and one past the last of `count` places for a split; shares are whole tiles."""
    share = tl.cdiv(tl.cdiv(count, size.splits), block_n) * block_n
    return split * share, tl.minimum(split * share + share, count)


@triton.jit
def _store_sums(out, offset, here, acc, start: tl.constexpr, d):
    """Columns start .. start + width of one row (width,), or of several (rows, width)."""
    columns = start + tl.arange(0, acc.shape[-1])
    mask = columns < d
    if len(acc.shape) == 2:
        offset, columns, mask = offset[:, None], columns[None, :], here[:, None] & mask[None, :]
    tl.store(out + offset + columns, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store(out, stats, row, here, split, size, m, l, acc_0, acc_1, v):
    """A partial result: sums, m and l. Without stats the share is everything: sums / l."""
    target = row.to(tl.int64) * size.splits + split
    if stats is None:
        inverse = 1.0 / tl.where(l == 0.0, 1.0, l)
        if len(acc_0.shape) == 2:
            inverse = inverse[:, None]
        acc_0 *= inverse
        acc_1 *= inverse
    else:
        tl.store(stats + 2 * target, m, mask=here)
        tl.store(stats + 2 * target + 1, l, mask=here)
    _store_sums(out, target * v.d, here, acc_0, 0, v.d)
    if v.d1 > 0:
        _store_sums(out, target * v.d, here, acc_1, v.d0, v.d)


@triton.jit
def decode_one(
    q,
    k,
    v,
    lengths,
    lists,
    size,
    scale,  # times log2 e
    out,  # (b, n_q, h, d_v) or, with stats, (b, n_q, h, splits, d_v)
    stats,  # (b, n_q, h, splits, 2): m and l; None if there is one split
    block_n: tl.constexpr,
    stages: tl.constexpr,
):
    """One program: a share of the keys of one query of one head."""
    pid = tl.program_id(0)
    head = pid % size.heads
    query = pid // size.heads % size.queries
    split = pid // size.heads // size.queries % size.splits
    sample = pid // size.heads // size.queries // size.splits
    position = _length(lengths, sample, size) - size.queries + query
    count = tl.maximum(position + 1, 0)
    columns = lists.columns
    if lists.block > 0:
        row = sample
        if not lists.by_sample:
            row = tl.maximum(position, 0) // lists.block
        first = tl.load(lists.offsets + row).to(tl.int32)
        listed = tl.load(lists.offsets + row + 1).to(tl.int32) - first
        count = tl.where(position < 0, 0, listed * lists.block)
        columns += first
    start, stop = _share(count, split, size, block_n)
    q_base, k_base, v_base = _head(q, sample, head), _head(k, sample, head), _head(v, sample, head)
    q_0 = _load_query(q, q_base, query, 0, q.d0, scale)
    q_1 = q_0
    if q.d1 > 0:
        q_1 = _load_query(q, q_base, query, q.d0, q.d1, scale)

    m = tl.full((block_n,), -float("inf"), tl.float32)
    l = tl.zeros((block_n,), tl.float32)
    acc_0 = tl.zeros((block_n, v.d0), tl.float32)
    acc_1 = tl.zeros((block_n, v.d1 if v.d1 > 0 else 16), tl.float32)
    # Said here, because the compiler prefetches for a loop without matrix products only if told.
    for at in tl.range(start, stop, block_n, num_stages=stages):
        place = at + tl.arange(0, block_n)
        present = place < stop
        j = place
        if lists.block > 0:
            column = tl.load(columns + place // lists.block, mask=present, other=-1).to(tl.int32)
            j = column * lists.block + place % lists.block
            present = (column >= 0) & (j <= position)
        s = tl.sum(_load(k, k_base, j, present, 0, k.d0).to(tl.float32) * q_0[None, :], 1)
        if k.d1 > 0:
            k_1 = _load(k, k_base, j, present, k.d0, k.d1)
            s += tl.sum(k_1.to(tl.float32) * q_1[None, :], 1)
        s = tl.where(present, s, -float("inf"))
        top = tl.maximum(m, s)
        base = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s - base)
        shrink = tl.exp2(m - base)
        m = top
        l = l * shrink + p
        v_0 = _load(v, v_base, j, present, 0, v.d0).to(tl.float32)
        acc_0 = acc_0 * shrink[:, None] + p[:, None] * v_0
        if v.d1 > 0:
            v_1 = _load(v, v_base, j, present, v.d0, v.d1).to(tl.float32)
            acc_1 = acc_1 * shrink[:, None] + p[:, None] * v_1

    top = tl.max(m, 0)
    weight = tl.exp2(m - tl.where(top == -float("inf"), 0.0, top))
    l = tl.sum(l * weight, 0)
    acc_0 = tl.sum(acc_0 * weight[:, None], 0)
    acc_1 = tl.sum(acc_1 * weight[:, None], 0)
    row = (sample * size.queries + query) * size.heads + head
    _store(out, stats, row, row >= 0, split, size, top, l, acc_0, acc_1, v)


@triton.jit
def _operand(x, dtype: tl.constexpr, emulate: tl.constexpr):
    """A factor of a matrix product; emulated in float32, as the interpreter multiplies bf16's bits.

    (The values are those of `dtype` either way.)
    """
    rounded = x.to(dtype)
    return rounded.to(tl.float32) if emulate else rounded


@triton.jit
def _finite(v):
    """Values with 0 for those that are not finite, and which keys had such values (int32).

    A product of 0 with a NaN that a row must not see would be NaN.
    """
    good = tl.abs(v.to(tl.float32)) < float("inf")
    return tl.where(good, v, 0.0).to(v.dtype), tl.max((~good).to(tl.int32), 1)


@triton.jit
def _weighted(acc, p, v, broken, whole: tl.constexpr, emulate: tl.constexpr):
    """Sums plus p v; rows that see a value that is not finite are marked, no others are touched."""
    dtype: tl.constexpr = v.dtype
    if not whole:
        v, bad = _finite(v)
        broken = tl.maximum(broken, tl.max(tl.where(p > 0, bad[None, :], 0), 1))
    acc = tl.dot(_operand(p, dtype, emulate), _operand(v, dtype, emulate), acc)
    return acc, broken


@triton.jit
def _tile(state, q_0, q_1, k, v, k_base, v_base, at, limit, i, scale, plan, whole: tl.constexpr):
    """Keys at .. at + block_n; whole: every query sees every one of them."""
    m, l, acc_0, acc_1, broken = state
    j = at + tl.arange(0, plan.block_n)
    present = j < limit
    k_0 = _load(k, k_base, j, present, 0, k.d0)
    s = tl.dot(q_0, _operand(k_0, k_0.dtype, plan.emulate).T)
    if k.d1 > 0:
        k_1 = _load(k, k_base, j, present, k.d0, k.d1)
        s = tl.dot(q_1, _operand(k_1, k_1.dtype, plan.emulate).T, s)
    s *= scale
    if whole:
        s = tl.where(present[None, :], s, -float("inf"))
    else:
        s = tl.where(present[None, :] & (j[None, :] <= i[:, None]), s, -float("inf"))
    top = tl.maximum(m, tl.max(s, 1))
    base = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    v_0 = _load(v, v_base, j, present, 0, v.d0)
    acc_0, broken = _weighted(acc_0 * shrink[:, None], p, v_0, broken, whole, plan.emulate)
    if v.d1 > 0:
        v_1 = _load(v, v_base, j, present, v.d0, v.d1)
        acc_1, broken = _weighted(acc_1 * shrink[:, None], p, v_1, broken, whole, plan.emulate)
    return top, l, acc_0, acc_1, broken


class Plan(NamedTuple):
    """Keys of a tile, rows that the queries are padded to, whether bf16 is emulated."""

    block_n: tl.constexpr
    rows: tl.constexpr
    emulate: tl.constexpr


@triton.jit
def decode_several(q, k, v, lengths, size, scale, out, stats, plan):
    """One program: a share of the keys of one head, for all queries of a sample.

    Arguments as in `decode_one`; the queries are causal among themselves.
    """
    pid = tl.program_id(0)
    head = pid % size.heads
    split = pid // size.heads % size.splits
    sample = pid // size.heads // size.splits
    length = _length(lengths, sample, size)
    query = tl.arange(0, plan.rows)
    here = query < size.queries
    i = length - size.queries + query
    start, stop = _share(length, split, size, plan.block_n)
    q_base, k_base, v_base = _head(q, sample, head), _head(k, sample, head), _head(v, sample, head)
    q_0 = _load(q, q_base, query, here, 0, q.d0)
    q_0 = _operand(q_0, q_0.dtype, plan.emulate)
    q_1 = q_0
    if q.d1 > 0:
        q_1 = _load(q, q_base, query, here, q.d0, q.d1)
        q_1 = _operand(q_1, q_1.dtype, plan.emulate)
    state = (
        tl.full((plan.rows,), -float("inf"), tl.float32),
        tl.zeros((plan.rows,), tl.float32),
        tl.zeros((plan.rows, v.d0), tl.float32),
        tl.zeros((plan.rows, v.d1 if v.d1 > 0 else 16), tl.float32),
        tl.zeros((plan.rows,), tl.int32),  # rows that see a value that is not finite
    )
    # Tiles before `inner` hold only keys that the first query sees too.
    inner = tl.maximum(length - size.queries + 1, 0) // plan.block_n * plan.block_n
    inner = tl.maximum(start, tl.minimum(stop, inner))
    for at in range(start, inner, plan.block_n):
        state = _tile(state, q_0, q_1, k, v, k_base, v_base, at, stop, i, scale, plan, True)
    for at in range(inner, stop, plan.block_n):
        state = _tile(state, q_0, q_1, k, v, k_base, v_base, at, stop, i, scale, plan, False)
    m, l, acc_0, acc_1, broken = state
    l = tl.where(broken > 0, float("nan"), l)
    row = (sample * size.queries + query) * size.heads + head
    _store(out, stats, row, here, split, size, m, l, acc_0, acc_1, v)


@triton.jit
def decode_combine(
    partial, stats, out, splits, width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr
):
    """One program: one query of one head; `block` shares at a time."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, padded)
    top = tl.full((block,), -float("inf"), tl.float32)
    for at in range(0, splits, block):
        split = at + tl.arange(0, block)
        m = tl.load(stats + 2 * (row * splits + split), mask=split < splits, other=-float("inf"))
        top = tl.maximum(top, m)
    base = tl.max(top, 0)
    base = tl.where(base == -float("inf"), 0.0, base)
    total = tl.zeros((block,), tl.float32)
    acc = tl.zeros((block, padded), tl.float32)
    for at in range(0, splits, block):
        split = at + tl.arange(0, block)
        present = split < splits
        place = row * splits + split
        weight = tl.exp2(tl.load(stats + 2 * place, mask=present, other=-float("inf")) - base)
        total += weight * tl.load(stats + 2 * place + 1, mask=present, other=0.0)
        mask = present[:, None] & (columns < width)[None, :]
        part = tl.load(partial + (place * width)[:, None] + columns[None, :], mask=mask, other=0.0)
        acc += weight[:, None] * part
    sums = tl.sum(acc, 0)
    total = tl.sum(total, 0)
    sums /= tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * width + columns, sums.to(out.dtype.element_ty), mask=columns < width)
