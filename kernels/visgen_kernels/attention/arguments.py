"""What the attention kernels are given: tensors as strides, and all that decides a score.

Named tuples, because a Triton kernel takes them as they are: numbers and tensors in them are
arguments, `tl.constexpr` are constants that it is compiled for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.addressing import NotStrided, tokens_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tile_lists import TileLists
from visgen_kernels.attention.tiles import target_of
from visgen_kernels.biases import expand_table
from visgen_kernels.launch import INTERPRETED
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import BlockList, SameGroup

LOG2_E = 1.4426950408889634
_PADDING = 128  # no tile of keys is longer
_INT32 = 2**31


class Rows(NamedTuple):
    """The tokens of one tensor.

    Token n, column c of sequence z and head h stands at
    base + (strides . (z0, z1, z2, n // inner, n % inner, h)) * unit + first + c

    Base lies at a multiple of 16 bytes. Of other addresses (k in one projection with q, heads of 30
    numbers) the JIT tells the compiler nothing, which then loads number by number.
    """

    base: Any
    strides: tuple[int, ...]
    unit: tl.constexpr
    inner: tl.constexpr
    d: tl.constexpr
    d0: tl.constexpr  # the head dimension in two parts, powers of two
    d1: tl.constexpr
    first: tl.constexpr  # elements from base to the first token


class Scoring(NamedTuple):
    """What decides a score beside q and k. Absent tensors are None."""

    table: Any  # expanded relative position bias (heads, w, (2h-1) * w), over the scale
    key_bias: Any  # (z, heads, padded_n_k) float32, over the scale; -inf beyond n_k
    key_lengths: Any  # (b,)
    seed: Any  # (1,) int64
    words: Any  # BlockList: (blocks, blocks) int8, listed or not; SameGroup: ids (sequences, n)
    scale: float  # |scale| times log2 e
    threshold: int  # of dropout's 32-bit words
    factor: float  # 1 / (1 - dropout)
    heads: int
    n_q: int
    n_k: int
    padded_n_k: int
    sizes: tuple[int, int]  # z1, z2: how a sequence's number is taken apart
    code: tuple[tl.constexpr, ...]  # the mask as integers, see masks.encode
    sign: tl.constexpr  # of the scale: q is multiplied by it
    bias_height: tl.constexpr
    bias_width: tl.constexpr
    bias_first: tl.constexpr  # do products start from the position bias, or is it added to them?
    dropout: tl.constexpr
    precision: tl.constexpr
    emulate: tl.constexpr  # of bf16, in Triton's interpreter


class Keys(NamedTuple):
    """Keys and values (z, n_k, d or d_v)."""

    k: Rows
    v: Rows


class Queries(NamedTuple):
    """Queries, the gradient G of their outputs, and two numbers a row from `attention_delta`.

    sums: the base-2 log-sum-exp, inf where a row sees nothing; delta: rowsum(G o O).
    """

    q: Rows
    grad: Rows
    sums: Rows
    delta: Rows
    with_k: tl.constexpr  # are dK and the key bias's gradient wanted?
    with_v: tl.constexpr  # is dV?


class Lists(NamedTuple):
    """Which tiles of the other side each tile meets, for masks that are lists of tiles.

    Tile r meets columns[starts[r] : starts[r + 1]]; those before splits[r] are seen whole.
    """

    starts: Any
    splits: Any
    columns: Any


def head_parts(d: int) -> tuple[int, int]:
    """Two powers of two, at least 16 (the second may be 0), that cover d with little waste."""
    whole = max(16, triton.next_power_of_2(d))
    first = whole // 2
    rest = max(16, triton.next_power_of_2(d - first))
    if d <= 16 or whole - d <= d // 8 or first + rest >= whole:
        return whole, 0
    return first, rest


def rows_of(layout: Layout, x: Tensor) -> Rows:
    """Tokens of x (b, *grid, h, d).

    Raises:
        NotStrided: if the last axis is not contiguous, or a sequence spans 2^31 elements or more.
    """
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise NotStrided("the last axis of a tensor of tokens has stride 1; call .contiguous().")
    tokens = tokens_of(layout, x)
    n0, n1 = tokens.strides[3:5]
    span = (tokens.length // tokens.inner) * n0 + tokens.inner * n1 + x.shape[-1]
    if span >= _INT32:
        raise NotStrided(
            f"one sequence spans {span} elements of memory; the kernels reach 2^31 - 1 inside a "
            "sequence (the batch may be any size)."
        )
    base, first = _aligned(x)
    unit = tokens.unit(first)
    parts = (x.shape[-1], *head_parts(x.shape[-1]), first)
    return Rows(
        base,
        tuple(stride // unit for stride in tokens.strides),
        tl.constexpr(unit),
        tl.constexpr(tokens.inner),
        *map(tl.constexpr, parts),
    )


def _aligned(x: Tensor) -> tuple[Tensor, int]:
    """The same numbers' memory from the last multiple of 16 bytes on, and where x begins in it.

    x itself and 0 if its memory does not reach back so far.
    """
    first = x.data_ptr() % 16 // x.itemsize
    if first > x.storage_offset():
        return x, 0
    return (x.as_strided(x.shape, x.stride(), x.storage_offset() - first) if first else x), first


def vector_of(layout: Layout, x: Tensor) -> Rows:
    """One number a token and head: x (b, *grid, h), such as the log-sum-exp."""
    tokens = tokens_of(layout, x.unsqueeze(-1))
    one, zero = tl.constexpr(1), tl.constexpr(0)
    return Rows(x, tokens.strides, one, tl.constexpr(tokens.inner), one, one, one, zero)


def scoring_of(call: Call, q: Tensor, k: Tensor) -> Scoring:
    """The scores of a call; q (b, *grid, h, d), k (b, *grid_k, h, d)."""
    # The kernel takes the largest score before it scales: that wants a positive scale.
    sign = (call.scale > 0) - (call.scale < 0)
    scale = abs(call.scale) if sign else 1.0
    places = tokens_of(call.layout, q)
    n_k = call.layout.length(k.shape[1:-2])
    table, (height, width) = None, call.size or (0, 0)
    if call.table is not None and call.size is not None:
        dtype = q.dtype if q.dtype.itemsize == 2 else torch.float32
        table = expand_table(call.table / scale, call.size, dtype)
    tf32 = q.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return Scoring(
        table=table,
        key_bias=None if call.key_bias is None else _key_shift(call, call.key_bias, q.ndim, scale),
        key_lengths=call.key_lengths,
        seed=call.seed if call.dropout else None,
        words=_words(call, q),
        scale=scale * LOG2_E,
        threshold=int(call.dropout * 2**32),
        factor=1.0 / (1.0 - call.dropout),
        heads=q.shape[-2],
        n_q=places.length,
        n_k=n_k,
        padded_n_k=triton.cdiv(n_k, _PADDING) * _PADDING,
        sizes=(places.sizes[1], places.sizes[2]),
        code=tuple(tl.constexpr(number) for number in call.mask.encode()),
        sign=tl.constexpr(sign),
        bias_height=tl.constexpr(height if table is not None else 0),
        bias_width=tl.constexpr(width if table is not None else 0),
        # As a start value it saves an addition for each score. But on sm_80 Triton then lays warps
        # along the keys too, which repeats work and spills.
        bias_first=tl.constexpr(table is not None and target_of(q.device) != "sm_80"),
        dropout=tl.constexpr(call.dropout > 0),
        precision=tl.constexpr("tf32" if tf32 else "ieee"),
        emulate=tl.constexpr(INTERPRETED and q.dtype == torch.bfloat16),
    )


def lists_of(lists: TileLists | None) -> Lists | None:
    """Tile lists as a kernel takes them."""
    return None if lists is None else Lists(lists.starts, lists.splits, lists.columns)


def _key_shift(call: Call, key_bias: Tensor, axes: int, scale: float) -> Tensor:
    """The key bias as the kernels read it: (z, heads, n padded), float32, over the scale.

    A vector of n numbers a head is copied so that tiles of it are read 16 bytes at a time; q, k, v
    never are.
    """
    split = call.layout.split(key_bias.float() / scale, axes - 3).transpose(1, 2)
    missing = -split.shape[-1] % _PADDING
    return torch.nn.functional.pad(split, (0, missing), value=-torch.inf).contiguous()


def _words(call: Call, q: Tensor) -> Tensor | None:
    if isinstance(call.mask, SameGroup):
        return call.mask.sequences(call.layout).to(q.device).contiguous()
    if isinstance(call.mask, BlockList):
        return call.mask.listed().to(device=q.device, dtype=torch.int8)
    return None
