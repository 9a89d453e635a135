"""What the kernels of short sequences do alike: several items at a time.

An item is one head of one sequence. One item a program is a matrix [T, D] with scores [T, T];
several are [blocks, T, D] and [blocks, T, T], multiplied by batched products. Sequences of at most
8 tokens share a block: its tokens are those of `pack` items, which do not see each other. A number
a token or an item is [T] or a scalar in the first case, in the others [1 or blocks, 1 or T].
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.tiles_jit import (
    FULL,
    LOG2_E,
    SAME_GROUP,
    bias_rows,
    biased_dot,
    operands,
    token_offsets,
    visible,
)


@triton.jit
def block_tokens(blocks: tl.constexpr, block: tl.constexpr, pack: tl.constexpr):
    """Tokens of a block, counted in their items, and which of the block's items each belongs to."""
    n = tl.arange(0, block)
    token, slot = n % (block // pack), n // (block // pack)
    if blocks == 1:
        return token, slot
    else:
        return token[None, :], slot[None, :]


@triton.jit
def item_places(
    slot,
    total,
    x,
    heads: tl.constexpr,
    blocks: tl.constexpr,
    pack: tl.constexpr,
    shared: tl.constexpr,
):
    """Where this program's items are, (z0, z1, z2, head), their numbers, and which of them exist.

    `shared`: how many of z0, z1, z2 all items have in common (0, 2 or 3); these are scalars. Items
    beyond the last are the last once more: they read what is there and write nothing.
    """
    first = tl.program_id(0) * (blocks * pack)
    lanes = slot
    if blocks > 1:
        lanes = tl.arange(0, blocks)[:, None] * pack
        if pack > 1:
            lanes += slot
    if blocks == 1:
        number = first
        exists = first >= 0
    elif shared > 0:
        number = first + lanes
        exists = tl.full((blocks, 1), 1, tl.int1)
    else:
        number = first + lanes
        exists = number < total
        number = tl.minimum(number, total - 1)
    if blocks > 1 and shared > 0:
        line = x.sizes[1] * heads
        row, within = first // line, first % line
        z0, z1 = row // x.sizes[0], row % x.sizes[0]
        if shared == 3:
            z2, head = within // heads, within % heads + lanes
        else:
            z2, head = (within + lanes) // heads, (within + lanes) % heads
    else:
        z, head = number // heads, number % heads
        rest, z2 = z // x.sizes[1], z % x.sizes[1]
        z0, z1 = rest // x.sizes[0], rest % x.sizes[0]
    return (z0, z1, z2, head), number, exists


@triton.jit
def item_base(rows, place):
    """Pointers to the items of a tensor."""
    z0, z1, z2, head = place
    offset = z0.to(tl.int64) * rows.strides[0] + z1.to(tl.int64) * rows.strides[1]
    offset += z2.to(tl.int64) * rows.strides[2]
    if len(z2.shape) == len(head.shape):
        base = rows.base + (offset + head.to(tl.int64) * rows.strides[5]) * rows.unit
    else:  # a token's heads are less than 2^31 numbers apart
        base = rows.base + offset * rows.unit + head * (rows.strides[5] * rows.unit)
    return base + rows.first if rows.first > 0 else base


@triton.jit
def per_row(v):
    """A number a token, or an item, broadcast along its row of a matrix."""
    return tl.expand_dims(v, len(v.shape)) if len(v.shape) > 0 else v


@triton.jit
def per_column(v):
    """A number a key broadcast over the rows of the scores."""
    return tl.expand_dims(v, len(v.shape) - 1)


@triton.jit
def _cells(rows, base, token, part: tl.constexpr):
    """Pointers to part 0 or 1 of the head dimension of tokens, and which columns there are."""
    first: tl.constexpr = rows.d0 if part == 1 else 0
    width: tl.constexpr = rows.d1 if part == 1 else rows.d0
    columns = first + tl.arange(0, width)
    return per_row(base + token_offsets(rows, token)) + columns, columns < rows.d


@triton.jit
def _load_part(rows, base, token, present, whole: tl.constexpr, part: tl.constexpr):
    cells, inside = _cells(rows, base, token, part)
    full: tl.constexpr = (rows.d0 if part == 0 else rows.d0 + rows.d1) <= rows.d
    if whole and full:
        return tl.load(cells)
    elif whole:
        return tl.load(cells, mask=per_row(token >= 0) & inside, other=0.0)
    elif full:
        return tl.load(cells, mask=per_row(present), other=0.0)
    else:
        return tl.load(cells, mask=per_row(present) & inside, other=0.0)


@triton.jit
def load_items(rows, place, token, present, whole: tl.constexpr):
    """All items' tokens, both parts of the head dimension, zero where absent.

    `whole`: none is absent. The second part is the first where there is none.
    """
    base = item_base(rows, place)
    part_0 = _load_part(rows, base, token, present, whole, 0)
    if rows.d1 > 0:
        return part_0, _load_part(rows, base, token, present, whole, 1)
    else:
        return part_0, part_0


@triton.jit
def load_item_queries(q, place, token, present, x, whole: tl.constexpr):
    """Q times the sign of the scale, as dot operands."""
    q_0, q_1 = load_items(q, place, token, present, whole)
    if x.sign != 1:
        q_0 = (q_0.to(tl.float32) * x.sign).to(q_0.dtype)
        q_1 = (q_1.to(tl.float32) * x.sign).to(q_1.dtype)
    return operands(q, q_0, q_1, x)


@triton.jit
def _store_part(rows, base, token, exists, tile, part: tl.constexpr):
    cells, inside = _cells(rows, base, token, part)
    tl.store(cells, tile.to(rows.base.dtype.element_ty), mask=per_row(exists) & inside)


@triton.jit
def store_product(rows, place, token, exists, a, b_0, b_1, factor, present, some: tl.constexpr, x):
    """Write the product of a and b, in both parts of b's columns, times a factor.

    `some`: rows that are not `present` become 0.
    """
    base = item_base(rows, place)
    product = tl.dot(a, b_0, input_precision=x.precision) * factor
    if some:
        product = tl.where(per_row(present), product, 0.0)
    _store_part(rows, base, token, exists, product, 0)
    if rows.d1 > 0:
        product = tl.dot(a, b_1, input_precision=x.precision) * factor
        if some:
            product = tl.where(per_row(present), product, 0.0)
        _store_part(rows, base, token, exists, product, 1)


@triton.jit
def store_numbers(rows, place, token, present, values):
    """Write one number a token."""
    tl.store(item_base(rows, place) + token_offsets(rows, token), values, mask=present)


@triton.jit
def load_item_sums(lse, place, token, present):
    """Base-2 log-sum-exp of rows; inf where a row is absent or sees nothing: its weights are 0."""
    cells = item_base(lse, place) + token_offsets(lse, token)
    sums = tl.load(cells, mask=present, other=float("inf")) * LOG2_E
    return tl.where(sums == -float("inf"), float("inf"), sums)


@triton.jit
def item_keys(token, place, number, x):
    """Which keys the items have, and their bias (over the scale, -inf hides); 0 without a bias."""
    limit = x.n_k
    if x.key_lengths is not None:
        limit = tl.minimum(limit, tl.load(x.key_lengths + place[0]).to(tl.int32))
    present = token < limit
    if x.key_bias is None:
        return present, 0.0
    else:
        c = tl.load(x.key_bias + number.to(tl.int64) * x.padded_n_k + token)
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
    token,
    head,
    x,
    whole: tl.constexpr,
    blocks: tl.constexpr,
    block: tl.constexpr,
):
    """Scores over the scale; -inf for a key that is not there.

    `width`: Rows of q or k; `whole`: no key is there only to fill the block.
    """
    if x.table is not None:
        across: tl.constexpr = (2 * x.bias_height - 1) * x.bias_width
        n = token if blocks == 1 else tl.reshape(token, (block,))
        cells = bias_rows(n, n < x.n_q, 0, x)
        if blocks > 1:
            cells = cells[None, :]
        cells = per_row(head * (x.bias_width * across) + cells) + per_column(token)
        if whole:
            s = tl.load(x.table + cells).to(tl.float32)
        else:
            s = tl.load(x.table + cells, mask=per_column(token < x.n_k), other=0.0).to(tl.float32)
    elif blocks > 1:
        s = tl.zeros((blocks, block, block), tl.float32)
    else:
        s = tl.zeros((block, block), tl.float32)
    s = biased_dot(width, q_0, q_1, k_0, k_1, s, x)
    if x.key_bias is not None:
        s += per_column(c)
    elif not whole or x.key_lengths is not None:
        s = tl.where(per_column(present), s, -float("inf"))
    return s


@triton.jit
def item_visible(token, slot, place, x, pack: tl.constexpr):
    """May the query in a row see the key in a column?"""
    i, j = per_row(token + (x.n_k - x.n_q)), per_column(token)
    if x.code[0] == SAME_GROUP:
        at = (place[1] * x.sizes[1] + place[2]) * x.n_k + token
        ids = tl.load(x.words + at, mask=token < x.n_k, other=0)
        seen = per_row(ids) == per_column(ids)
    elif x.words is not None:
        seen = visible(i, j, x, x.words)
    elif x.code[0] != FULL:
        seen = visible(i, j, x, 0)
    if pack == 1:
        return seen
    elif x.code[0] == FULL:
        return per_row(slot) == per_column(slot)
    else:
        return seen & (per_row(slot) == per_column(slot))


@triton.jit
def broken(v):
    """Which tokens hold something that is not finite, int32."""
    return tl.max((~(tl.abs(v.to(tl.float32)) < float("inf"))).to(tl.int32), len(v.shape) - 1)


@triton.jit
def item_keep_factors(
    token, number, x, blocks: tl.constexpr, block: tl.constexpr, pack: tl.constexpr
):
    """Dropout factors of all scores: the words of `dropout.py`, four keys a Philox block."""
    four = (tl.arange(0, block // 4) % (block // pack // 4)).to(tl.uint32)
    row, item = per_row(token).to(tl.uint32), per_row(number).to(tl.uint32)
    zero = tl.zeros_like(four + row + item)
    w0, w1, w2, w3 = tl.philox(tl.load(x.seed), four + zero, row + zero, item + zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = words.reshape(blocks, block, block) if blocks > 1 else words.reshape(block, block)
    return tl.where(words >= x.threshold, x.factor, 0.0)
