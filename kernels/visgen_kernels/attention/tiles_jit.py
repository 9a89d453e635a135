"""What every attention kernel does alike: find tokens, decide what is visible, draw dropout.

Masks are numbered as `masks.encode` numbers them; A and B are the mask's integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A jit function reads module globals only if they are constexpr.
FULL = tl.constexpr(0)
CAUSAL = tl.constexpr(1)
WINDOW = tl.constexpr(2)
BLOCKS_1D = tl.constexpr(3)


@triton.jit
def sequence_offset(z, sizes, strides, unit: tl.constexpr):
    """Element offset of sequence z: int64, because a batch may hold more than 2^31 numbers."""
    z0 = z // (sizes[0] * sizes[1])
    z1 = z // sizes[1] % sizes[0]
    z2 = z % sizes[1]
    offset = z0.to(tl.int64) * strides[0] + z1.to(tl.int64) * strides[1]
    return (offset + z2.to(tl.int64) * strides[2]) * unit


@triton.jit
def token_offsets(n, strides, inner: tl.constexpr, unit: tl.constexpr):
    """Element offsets of tokens n inside their sequence."""
    if inner == 1:
        return n * (strides[3] * unit)
    return (n // inner) * (strides[3] * unit) + (n % inner) * (strides[4] * unit)


@triton.jit
def load_rows(
    base,
    offsets,
    present,
    whole: tl.constexpr,
    first: tl.constexpr,
    width: tl.constexpr,
    d: tl.constexpr,
):
    """Rows `offsets` of a matrix, columns first .. first + width, zero beyond column d.

    `whole` says that every row is present.
    """
    columns = first + tl.arange(0, width)
    pointers = base + offsets[:, None] + columns[None, :]
    if whole:
        if first + width <= d:
            return tl.load(pointers)
        return tl.load(pointers, mask=(columns < d)[None, :], other=0.0)
    if first + width <= d:
        return tl.load(pointers, mask=present[:, None], other=0.0)
    return tl.load(pointers, mask=present[:, None] & (columns < d)[None, :], other=0.0)


@triton.jit
def operand(x, dtype: tl.constexpr, emulate: tl.constexpr):
    """A dot operand of `dtype`; emulated, the same values in float32.

    Triton's interpreter multiplies the bit patterns of bf16.
    """
    rounded = x.to(dtype)
    return rounded.to(tl.float32) if emulate else rounded


@triton.jit
def visible(i, j, mask: tl.constexpr, a: tl.constexpr, b: tl.constexpr):
    """May query i see key j? Positions broadcast."""
    if mask == CAUSAL:
        if a == 1:
            return j <= i
        return j < _group_end(i, a)
    if mask == WINDOW:
        near = (i - j <= a) & (j - i <= a)
        return near | (j < b) if b > 0 else near
    if mask == BLOCKS_1D:
        return (j <= i) & (j >= (i // a - 1) * a)
    return (i >= i) & (j >= j)


@triton.jit
def _group_end(i, group: tl.constexpr):
    """One past the last key that a query at i >= 0 may see; 0 for a query before the first key."""
    return tl.where(i >= 0, (i // group + 1) * group, 0)


@triton.jit
def key_range(first, last, n_k, mask: tl.constexpr, a: tl.constexpr, b: tl.constexpr):
    """Which keys the queries at positions first .. last may see, the global ones left out.

    Some of them see [low, high), all of them see [inner_low, inner_high).
    """
    low, high = 0 * first, n_k + 0 * first
    inner_low, inner_high = low, high
    if mask == CAUSAL:
        high = tl.minimum(n_k, _group_end(last, a))
        inner_high = tl.minimum(n_k, _group_end(first, a))
    elif mask == WINDOW:
        low = tl.maximum(0, tl.minimum(first - a, n_k))
        high = tl.maximum(low, tl.minimum(n_k, last + a + 1))
        inner_low = tl.maximum(low, last - a)
        inner_high = tl.maximum(inner_low, tl.minimum(n_k, first + a + 1))
    elif mask == BLOCKS_1D:
        # Floor division of a negative position: queries there see nothing anyway.
        low = tl.maximum(0, (tl.maximum(first, 0) // a - 1) * a)
        high = tl.maximum(low, tl.minimum(n_k, last + 1))
        inner_low = tl.maximum(low, (tl.maximum(last, 0) // a - 1) * a)
        inner_high = tl.maximum(inner_low, tl.minimum(n_k, first + 1))
    return low, high, inner_low, inner_high


@triton.jit
def keep_factors(seed, sequence, i, first, threshold, factor, width: tl.constexpr):
    """Dropout factors of queries i and keys first .. first + width: the words of `dropout.py`.

    One Philox block gives the words of four neighbouring keys; first is a multiple of 4.
    """
    block = (first // 4 + tl.arange(0, width // 4)).to(tl.uint32)[None, :]
    row = i.to(tl.uint32)[:, None]
    zero = tl.zeros_like(block + row)
    w0, w1, w2, w3 = tl.philox(seed, block + zero, row + zero, sequence.to(tl.uint32) + zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(i.shape[0], width)
    return tl.where(words >= threshold, factor, 0.0)
