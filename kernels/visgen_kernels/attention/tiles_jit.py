"""What every attention kernel does alike: find tokens, score a tile, decide what is visible.

Masks are numbered as `masks.encode` numbers them; `code` is that list of integers. A tile of scores
has queries along its rows and keys along its columns; `flipped`, the other way round (the kernels
that walk over queries keep keys in the rows, which is where a product wants its left operand).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# A jit function reads module globals only if they are constexpr.
FULL = tl.constexpr(0)
CAUSAL = tl.constexpr(1)
WINDOW = tl.constexpr(2)
BLOCKS_1D = tl.constexpr(3)
BLOCKS_2D = tl.constexpr(4)
BLOCK_LIST = tl.constexpr(5)
SAME_GROUP = tl.constexpr(6)
LOG2_E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sequence_base(rows, z, head, sizes):
    """Pointer to sequence z and a head: int64, as a batch may hold more than 2^31 numbers."""
    rest, z2 = z // sizes[1], z % sizes[1]
    z0, z1 = rest // sizes[0], rest % sizes[0]
    offset = z0.to(tl.int64) * rows.strides[0] + z1.to(tl.int64) * rows.strides[1]
    offset += z2.to(tl.int64) * rows.strides[2] + head.to(tl.int64) * rows.strides[5]
    base = rows.base + offset * rows.unit
    return base + rows.first if rows.first > 0 else base


@triton.jit
def token_offsets(rows, n):
    """Element offsets of tokens n inside their sequence."""
    if rows.inner == 1:
        return n * (rows.strides[3] * rows.unit)
    near = (n % rows.inner) * (rows.strides[4] * rows.unit)
    return (n // rows.inner) * (rows.strides[3] * rows.unit) + near


@triton.jit
def load_part(rows, base, offsets, present, whole: tl.constexpr, part: tl.constexpr):
    """Rows `offsets` of a matrix, part 0 or 1 of the head dimension, zero beyond its end.

    `whole` says that every row is present. A part of no width gives part 0 again: it is not used.
    """
    first: tl.constexpr = rows.d0 if part == 1 else 0
    width: tl.constexpr = rows.d1 if part == 1 else rows.d0
    columns = first + tl.arange(0, width)
    pointers = base + offsets[:, None] + columns[None, :]
    if whole:
        if first + width <= rows.d:
            return tl.load(pointers)
        return tl.load(pointers, mask=(columns < rows.d)[None, :], other=0.0)
    if first + width <= rows.d:
        return tl.load(pointers, mask=present[:, None], other=0.0)
    return tl.load(pointers, mask=present[:, None] & (columns < rows.d)[None, :], other=0.0)


@triton.jit
def load_both(rows, base, offsets, present, whole: tl.constexpr):
    """Both parts of the head dimension; the second is the first where there is none."""
    part_0 = load_part(rows, base, offsets, present, whole, 0)
    if rows.d1 > 0:
        return part_0, load_part(rows, base, offsets, present, whole, 1)
    else:
        return part_0, part_0


@triton.jit
def store_both(rows, base, offsets, present, part_0, part_1):
    """Write both parts in the tensor's type."""
    columns = tl.arange(0, rows.d0)
    dtype: tl.constexpr = base.dtype.element_ty
    inside = present[:, None] & (columns < rows.d)[None, :]
    tl.store(base + offsets[:, None] + columns[None, :], part_0.to(dtype), mask=inside)
    if rows.d1 > 0:
        columns = rows.d0 + tl.arange(0, rows.d1)
        inside = present[:, None] & (columns < rows.d)[None, :]
        tl.store(base + offsets[:, None] + columns[None, :], part_1.to(dtype), mask=inside)


@triton.jit
def operand(x, dtype: tl.constexpr, emulate: tl.constexpr):
    """A dot operand of `dtype`; emulated, the same values in float32.

    Triton's interpreter multiplies the bit patterns of bf16.
    """
    rounded = x.to(dtype)
    return rounded.to(tl.float32) if emulate else rounded


@triton.jit
def operands(rows, part_0, part_1, x):
    """Both parts as dot operands of the tensor's type."""
    dtype: tl.constexpr = rows.base.dtype.element_ty
    return operand(part_0, dtype, x.emulate), operand(part_1, dtype, x.emulate)


@triton.jit
def dot_parts(rows, a_0, a_1, b_0, b_1, acc, x):
    """Acc + a b^T over both parts of the head dimension of `rows`; batches of matrices too."""
    acc = tl.dot(a_0, tl.trans(b_0), acc, input_precision=x.precision)
    if rows.d1 > 0:
        acc = tl.dot(a_1, tl.trans(b_1), acc, input_precision=x.precision)
    return acc


@triton.jit
def biased_dot(rows, a_0, a_1, b_0, b_1, start, x):
    """A tile's scores a b^T plus `start`, the position bias over the scale, or 0 without one."""
    if x.table is not None and not x.bias_first:
        return dot_parts(rows, a_0, a_1, b_0, b_1, tl.zeros_like(start), x) + start
    else:
        return dot_parts(rows, a_0, a_1, b_0, b_1, start, x)


@triton.jit
def load_queries(q, base, offsets, present, x, whole: tl.constexpr):
    """Q times the sign of the scale, as dot operands."""
    q_0, q_1 = load_both(q, base, offsets, present, whole)
    if x.sign != 1:
        q_0 = (q_0.to(tl.float32) * x.sign).to(q_0.dtype)
        q_1 = (q_1.to(tl.float32) * x.sign).to(q_1.dtype)
    return operands(q, q_0, q_1, x)


@triton.jit
def finite(v):
    """Values with 0 for those that are not finite: a product of 0 with a NaN would be NaN."""
    return tl.where(tl.abs(v.to(tl.float32)) < float("inf"), v, 0.0).to(v.dtype)


@triton.jit
def per_query(v, flipped: tl.constexpr):
    """A number a query, broadcast over a tile of scores."""
    return v[None, :] if flipped else v[:, None]


@triton.jit
def per_key(v, flipped: tl.constexpr):
    """A number a key, broadcast over a tile of scores."""
    return v[:, None] if flipped else v[None, :]


@triton.jit
def position(n, x):
    """Raster position of token n, and whether there is such a token in the map.

    Tokens of 2-D blocks are walked block by block.
    """
    if x.code[0] == BLOCKS_2D:
        height: tl.constexpr = x.code[1]
        width: tl.constexpr = x.code[2]
        rows: tl.constexpr = x.code[3]
        cols: tl.constexpr = x.code[4]
        across: tl.constexpr = (width + cols - 1) // cols
        block, inside = n // (rows * cols), n % (rows * cols)
        y = block // across * rows + inside // cols
        column = block % across * cols + inside % cols
        return y * width + column, (y < height) & (column < width)
    else:
        return n, n >= 0


@triton.jit
def head_of_words(x, z):
    """Where the mask's words of sequence z begin; 0 where the mask has none."""
    if x.code[0] == SAME_GROUP:
        return x.words + (z % (x.sizes[0] * x.sizes[1])) * x.n_k
    elif x.words is not None:
        return x.words
    else:
        return 0


@triton.jit
def key_bias_base(x, number):
    """Where the key biases of a sequence's head begin; 0 without."""
    if x.key_bias is not None:
        return x.key_bias + number.to(tl.int64) * x.padded_n_k
    else:
        return 0


@triton.jit
def visible(i, j, x, words):
    """May query i see key j? Positions broadcast; `words` as `head_of_words` gives them."""
    if x.code[0] == CAUSAL:
        if x.code[1] == 1:
            return j <= i
        else:
            return j < _group_end(i, x.code[1])
    elif x.code[0] == WINDOW:
        near = (i - j <= x.code[1]) & (j - i <= x.code[1])
        return near | (j < x.code[2]) if x.code[2] > 0 else near
    elif x.code[0] == BLOCKS_1D:
        return (j <= i) & (j >= (i // x.code[1] - 1) * x.code[1])
    elif x.code[0] == BLOCKS_2D:
        return _sees_2d(i, j, x)
    elif x.code[0] == BLOCK_LIST:
        inside = (i < x.n_q) & (j < x.n_k)
        across = tl.cdiv(x.n_k, x.code[1])
        cells = words + (i // x.code[1]) * across + j // x.code[1]
        return (tl.load(cells, mask=inside, other=0) != 0) & (j <= i)
    elif x.code[0] == SAME_GROUP:
        of_query = tl.load(words + i, mask=(i >= 0) & (i < x.n_q), other=0)
        of_key = tl.load(words + j, mask=(j >= 0) & (j < x.n_k), other=0)
        return of_query == of_key
    else:
        return (i >= i) & (j >= j)


@triton.jit
def _sees_2d(i, j, x):
    """`masks.Blocks2d.visible`."""
    width: tl.constexpr = x.code[2]
    rows: tl.constexpr = x.code[3]
    cols: tl.constexpr = x.code[4]
    above: tl.constexpr = x.code[5]
    left: tl.constexpr = x.code[6]
    iy, ix, jy, jx = i // width, i % width, j // width, j % width
    y0, x0 = iy // rows * rows, ix // cols * cols
    same_rows = (jy >= y0) & (jy < y0 + rows)
    inside = same_rows & (jx >= x0) & (jx < x0 + cols)
    earlier = (jy < iy) | ((jy == iy) & (jx <= ix))
    top = (jy >= y0 - above) & (jy < y0) & (jx >= x0 - left) & (jx < x0 + cols + left)
    side = same_rows & (jx >= x0 - left) & (jx < x0)
    return (inside & earlier) | top | side


@triton.jit
def _group_end(i, group: tl.constexpr):
    """One past the last key that a query at i >= 0 may see; 0 for a query before the first key."""
    return tl.where(i >= 0, (i // group + 1) * group, 0)


@triton.jit
def key_limit(x, z):
    """How many keys of sequence z there are."""
    if x.key_lengths is None:
        return x.n_k
    else:
        length = tl.load(x.key_lengths + z // (x.sizes[0] * x.sizes[1])).to(tl.int32)
        return tl.minimum(x.n_k, length)


@triton.jit
def key_range(first, last, limit, x, block: tl.constexpr):
    """Tiles of keys for the queries at positions first .. last, as ends of four stretches.

    Returns (global_end, low, inner_low, inner_high, high), multiples of `block` but for the last:
    tiles of global keys are [0, global_end), masked ones [low, inner_low) and [inner_high, high),
    those that every query sees [inner_low, inner_high).
    """
    low, high = 0 * first, limit + 0 * first
    inner_low, inner_high, global_end = low, high, low
    if x.code[0] == CAUSAL:
        high = tl.minimum(limit, _group_end(last, x.code[1]))
        inner_high = tl.minimum(limit, _group_end(first, x.code[1]))
    elif x.code[0] == WINDOW:
        low = tl.maximum(0, tl.minimum(first - x.code[1], limit))
        high = tl.maximum(low, tl.minimum(limit, last + x.code[1] + 1))
        inner_low = tl.maximum(low, last - x.code[1])
        inner_high = tl.maximum(inner_low, tl.minimum(limit, first + x.code[1] + 1))
        if x.code[2] > 0:
            global_end = tl.cdiv(tl.minimum(x.code[2], limit), block) * block
            low = tl.maximum(low, global_end)
            inner_low = tl.maximum(inner_low, global_end)
    elif x.code[0] == BLOCKS_1D:
        # Floor division of a negative position: queries there see nothing anyway.
        low = tl.maximum(0, (tl.maximum(first, 0) // x.code[1] - 1) * x.code[1])
        high = tl.maximum(low, tl.minimum(limit, last + 1))
        inner_low = tl.maximum(low, (tl.maximum(last, 0) // x.code[1] - 1) * x.code[1])
        inner_high = tl.maximum(inner_low, tl.minimum(limit, first + 1))
    elif x.code[0] == SAME_GROUP:
        inner_high = low
    low = low // block * block
    inner_low = tl.maximum(low, tl.cdiv(inner_low, block) * block)
    inner_high = tl.maximum(inner_low, inner_high // block * block)
    return global_end, low, inner_low, inner_high, high


@triton.jit
def query_range(first, last, x, block: tl.constexpr):
    """Tiles of query rows for the keys first .. last: (low, inner_low, inner_high, high).

    Masked tiles are [low, inner_low) and [inner_high, high), those whose queries all see all of
    these keys [inner_low, inner_high); multiples of `block` but for the last.
    """
    shift = x.n_k - x.n_q  # position of row 0
    low, high = 0 * first, x.n_q + 0 * first
    inner_low, inner_high = low, high
    if x.code[0] == CAUSAL:
        low = first // x.code[1] * x.code[1] - shift
        inner_low = last // x.code[1] * x.code[1] - shift
    elif x.code[0] == WINDOW:
        low, high = first - x.code[1] - shift, last + x.code[1] + 1 - shift
        inner_low, inner_high = last - x.code[1] - shift, first + x.code[1] + 1 - shift
        if x.code[2] > 0:
            some, every = first < x.code[2], last < x.code[2]
            low, high = tl.where(some, 0, low), tl.where(some, x.n_q, high)
            inner_low = tl.where(every, 0, inner_low)
            inner_high = tl.where(every, x.n_q, inner_high)
    elif x.code[0] == BLOCKS_1D:
        low, high = first - shift, (last // x.code[1] + 2) * x.code[1] - shift
        inner_low, inner_high = last - shift, (first // x.code[1] + 2) * x.code[1] - shift
    elif x.code[0] == SAME_GROUP:
        inner_high = 0 * first
    low = tl.maximum(0, tl.minimum(low, x.n_q)) // block * block
    high = tl.maximum(low, tl.minimum(high, x.n_q))
    inner_low = tl.maximum(low, tl.cdiv(tl.maximum(inner_low, 0), block) * block)
    inner_high = tl.maximum(inner_low, tl.minimum(inner_high, x.n_q) // block * block)
    return low, inner_low, inner_high, tl.maximum(high, inner_high)


@triton.jit
def bias_rows(rows, inside, head, x):
    """Where the bias of queries `rows` begins in the expanded table; 0 without a bias."""
    if x.table is None:
        return 0
    else:
        across: tl.constexpr = (2 * x.bias_height - 1) * x.bias_width
        y, column = rows // x.bias_width, rows % x.bias_width
        cells = tl.where(inside, column * across + (x.bias_height - 1 - y) * x.bias_width, 0)
        cells = tl.multiple_of(cells, x.bias_width & -x.bias_width)  # for wide loads
        return head * (x.bias_width * across) + cells


@triton.jit
def start_scores(
    table_rows,
    j,
    present,
    x,
    whole: tl.constexpr,
    flipped: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """What the products of a tile start from: the position bias over the scale, or 0."""
    if x.table is not None:
        cells = x.table + per_query(table_rows, flipped) + per_key(j, flipped)
        if whole:
            return tl.load(cells).to(tl.float32)
        return tl.load(cells, mask=per_key(present, flipped), other=0.0).to(tl.float32)
    elif flipped:
        return tl.zeros((block_n, block_m), tl.float32)
    else:
        return tl.zeros((block_m, block_n), tl.float32)


@triton.jit
def keep_factors(word_seed, sequence, i, j, x, flipped: tl.constexpr, aligned: tl.constexpr = True):
    """Dropout factors of a tile, queries i and keys j: the words of `dropout.py`.

    One Philox block gives the words of four neighbouring keys; `aligned` says that j, where keys
    are in order, begins at a multiple of 4.
    """
    number = sequence.to(tl.uint32)
    if x.code[0] == BLOCKS_2D or not aligned:
        column, row = per_key(j, flipped), per_query(i, flipped)
        zero = tl.zeros_like(column + row).to(tl.uint32)
        block = (column // 4).to(tl.uint32) + zero
        row = row.to(tl.uint32) + zero
        w0, w1, w2, w3 = tl.philox(word_seed, block, row, number + zero, zero)
        which = column % 4
        words = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
        return tl.where(words >= x.threshold, x.factor, 0.0)
    else:
        width: tl.constexpr = j.shape[0]
        block = (tl.min(j, 0) // 4 + tl.arange(0, width // 4)).to(tl.uint32)[None, :]
        row = i.to(tl.uint32)[:, None]
        zero = tl.zeros_like(block + row)
        w0, w1, w2, w3 = tl.philox(word_seed, block + zero, row + zero, number + zero, zero)
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(i.shape[0], width)
        factors = tl.where(words >= x.threshold, x.factor, 0.0)
        return factors.T if flipped else factors
