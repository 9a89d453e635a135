"""What the kernels of short sequences do alike: several items at a time.

An item is one head of one sequence. One item a program is a matrix [T, D] with scores [T, T];
several are [items, T, D] and [items, T, T], multiplied by batched products. Numbers of an item are
a scalar, or [items]; of an item's tokens [T], or [items, T].

Tiles are loaded as [T, items, D] and then turned: neighbouring items are heads of one token, so one
token's row of all items lies in one piece of memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.tiles_jit import (
    FULL,
    LOG2_E,
    bias_rows,
    load_part,
    operands,
    token_offsets,
    visible,
)


@triton.jit
def item_numbers(total, items: tl.constexpr):
    """Numbers of this program's items, and which of them there are.

    Those beyond the last are the last once more: they read what is there and write nothing.
    """
    if items == 1:
        number = tl.program_id(0)
        return number, number >= 0
    else:
        number = tl.program_id(0) * items + tl.arange(0, items)
        return tl.minimum(number, total - 1), number < total


@triton.jit
def per_item(v, items: tl.constexpr):
    """A number an item, broadcast over its scores."""
    return v if items == 1 else v[:, None, None]


@triton.jit
def per_row(v):
    """A number a query, broadcast over the scores."""
    return tl.expand_dims(v, len(v.shape))


@triton.jit
def per_column(v):
    """A number a key, broadcast over the scores."""
    return tl.expand_dims(v, len(v.shape) - 1)


@triton.jit
def in_memory(v, items: tl.constexpr):
    """A vector [T] or [items, T] as memory has it: [T], or [T, 1 or items]."""
    if items == 1:
        return v
    elif len(v.shape) == 1:
        return v[:, None]
    else:
        return tl.trans(v)


@triton.jit
def load_item_part(
    rows, base, n, present, whole: tl.constexpr, part: tl.constexpr, items: tl.constexpr
):
    """Tokens n of the items, part 0 or 1 of the head dimension; `present` as memory has it."""
    offsets = token_offsets(rows, n)
    if items == 1:
        return load_part(rows, base, offsets, present, whole, part)
    else:
        first: tl.constexpr = rows.d0 if part == 1 else 0
        width: tl.constexpr = rows.d1 if part == 1 else rows.d0
        columns = first + tl.arange(0, width)
        pointers = base[None, :, None] + offsets[:, None, None] + columns[None, None, :]
        inside = (columns < rows.d)[None, None, :]
        if whole and first + width <= rows.d:
            tile = tl.load(pointers)
        elif whole:
            tile = tl.load(pointers, mask=inside, other=0.0)
        elif first + width <= rows.d:
            tile = tl.load(pointers, mask=present[:, :, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=present[:, :, None] & inside, other=0.0)
        return tl.permute(tile, (1, 0, 2))


@triton.jit
def load_items(rows, base, n, present, whole: tl.constexpr, items: tl.constexpr):
    """Both parts of the head dimension; the second is the first where there is none."""
    part_0 = load_item_part(rows, base, n, present, whole, 0, items)
    if rows.d1 > 0:
        return part_0, load_item_part(rows, base, n, present, whole, 1, items)
    else:
        return part_0, part_0


@triton.jit
def load_item_queries(q, base, n, present, x, whole: tl.constexpr, items: tl.constexpr):
    """Q times the sign of the scale, as dot operands."""
    q_0, q_1 = load_items(q, base, n, present, whole, items)
    if x.sign != 1:
        q_0 = (q_0.to(tl.float32) * x.sign).to(q_0.dtype)
        q_1 = (q_1.to(tl.float32) * x.sign).to(q_1.dtype)
    return operands(q, q_0, q_1, x)


@triton.jit
def store_item_part(rows, base, n, present, tile, part: tl.constexpr, items: tl.constexpr):
    """Write one part in the tensor's type; `present` [T], or [T, items]."""
    first: tl.constexpr = rows.d0 if part == 1 else 0
    width: tl.constexpr = rows.d1 if part == 1 else rows.d0
    offsets = token_offsets(rows, n)
    columns = first + tl.arange(0, width)
    rounded = tile.to(rows.base.dtype.element_ty)
    if items == 1:
        pointers = base + offsets[:, None] + columns[None, :]
        tl.store(pointers, rounded, mask=present[:, None] & (columns < rows.d)[None, :])
    else:
        pointers = base[None, :, None] + offsets[:, None, None] + columns[None, None, :]
        inside = present[:, :, None] & (columns < rows.d)[None, None, :]
        tl.store(pointers, tl.permute(rounded, (1, 0, 2)), mask=inside)


@triton.jit
def load_numbers(rows, base, n, present, other: tl.constexpr, items: tl.constexpr):
    """One number a token."""
    offsets = token_offsets(rows, n)
    if items == 1:
        return tl.load(base + offsets, mask=present, other=other)
    else:
        pointers = base[None, :] + offsets[:, None]
        return tl.trans(tl.load(pointers, mask=present, other=other))


@triton.jit
def store_numbers(rows, base, n, present, values, items: tl.constexpr):
    """One number a token; `present` [T], or [T, items]."""
    offsets = token_offsets(rows, n)
    if items == 1:
        tl.store(base + offsets, values, mask=present)
    else:
        tl.store(base[None, :] + offsets[:, None], tl.trans(values), mask=present)


@triton.jit
def load_item_sums(lse, base, n, present, items: tl.constexpr):
    """Base-2 log-sum-exp of rows; inf where a row is absent or sees nothing: its weights are 0."""
    sums = load_numbers(lse, base, n, present, float("inf"), items) * LOG2_E
    return tl.where(sums == -float("inf"), float("inf"), sums)


@triton.jit
def item_keys(j, limit, number, x, items: tl.constexpr):
    """Which keys an item has, and their bias (over the scale, -inf hides); 0 without a bias."""
    if items > 1 and x.key_lengths is not None:
        present = j[None, :] < limit[:, None]
    else:
        present = j < limit
    if x.key_bias is None:
        return present, 0.0
    else:
        start = number.to(tl.int64) * x.padded_n_k
        if items > 1:
            c = tl.load(x.key_bias + start[:, None] + j[None, :])
        else:
            c = tl.load(x.key_bias + start + j)
        c = tl.where(present, c, -float("inf"))
        return c > -float("inf"), c


@triton.jit
def item_scores(
    width,
    q_0,
    q_1,
    k_0,
    k_1,
    c,
    present,
    rows,
    inside,
    j,
    head,
    x,
    whole: tl.constexpr,
    items: tl.constexpr,
    block: tl.constexpr,
):
    """Scores over the scale; -inf for a key that is not there. `width`: Rows of q or k."""
    if x.table is not None:
        across: tl.constexpr = (2 * x.bias_height - 1) * x.bias_width
        start = per_item(head * (x.bias_width * across), items)
        cells = x.table + start + per_row(bias_rows(rows, inside, 0, x)) + per_column(j)
        if whole:
            s = tl.load(cells).to(tl.float32)
        else:
            s = tl.load(cells, mask=per_column(j < x.n_k), other=0.0).to(tl.float32)
    elif items > 1:
        s = tl.zeros((items, block, block), tl.float32)
    else:
        s = tl.zeros((block, block), tl.float32)
    s = tl.dot(q_0, tl.trans(k_0), s, input_precision=x.precision)
    if width.d1 > 0:
        s = tl.dot(q_1, tl.trans(k_1), s, input_precision=x.precision)
    if x.key_bias is not None:
        s += per_column(c)
    elif not whole or x.key_lengths is not None:
        s = tl.where(per_column(present), s, -float("inf"))
    return s


@triton.jit
def item_words(x, z, items: tl.constexpr):
    """Where the words of SameGroup and BlockList begin for each item; 0 without."""
    if x.words is None:
        return 0
    elif x.code[0] == 6:
        return per_item(x.words + (z % (x.sizes[0] * x.sizes[1])) * x.n_k, items)
    else:
        return x.words


@triton.jit
def item_visible(rows, j, x, words):
    """May the query in a row see key j? [T, T], or [items, T, T] where items differ."""
    return visible(per_row(rows + (x.n_k - x.n_q)), per_column(j), x, words)


@triton.jit
def item_keep_factors(seed, number, rows, x, items: tl.constexpr, block: tl.constexpr):
    """Dropout factors of all scores: the words of `dropout.py`, four keys a Philox block."""
    four, row = per_column(tl.arange(0, block // 4)).to(tl.uint32), per_row(rows).to(tl.uint32)
    item = per_item(number.to(tl.uint32), items)
    zero = tl.zeros_like(four + row + item)
    w0, w1, w2, w3 = tl.philox(seed, four + zero, row + zero, item + zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    if items > 1:
        words = words.reshape(items, block, block)
    else:
        words = words.reshape(block, block)
    return tl.where(words >= x.threshold, x.factor, 0.0)
