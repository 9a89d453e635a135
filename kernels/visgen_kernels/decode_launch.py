"""From a decoding step to its launches: tiles, splits, memory for partial results."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import LOG2_E, Rows, rows_of
from visgen_kernels.decode_kernel import (
    Lists,
    Plan,
    Size,
    decode_combine,
    decode_one,
    decode_several,
)
from visgen_kernels.key_blocks import KeyLists
from visgen_kernels.launch import INTERPRETED, Launch
from visgen_kernels.layouts import Sequence

_SPLIT_KEYS = 128  # a program is not given fewer keys than this
_PROGRAMS = 2  # for every multiprocessor
_MATRIX_BYTES = 288  # widest row of keys or values that `decode_several` holds without spilling
_COMBINED = 8  # shares that `decode_combine` reads at a time


class Tile(NamedTuple):
    """Keys, warps and pipeline stages of one program."""

    keys: int
    warps: int
    stages: int


def decode_tile(widest: int, *, several: bool, amd: bool) -> Tile:
    """The tile for rows of `widest` bytes (of keys or values, in parts), on NVIDIA or on AMD.

    Chosen with the static report: on sm_80, sm_90, sm_100 and gfx942 none spills, none repeats
    matrix products, and rows of 16-bit numbers are read 16 bytes at a time. A wave has 64 lanes,
    so AMD's blocks have half the warps.
    """
    if several:
        return Tile(32, 1, 2) if amd else Tile(16, 1, 3)
    return Tile(64 if widest <= 288 else 32, 2 if amd else 4, 2)


def decode_splits(heads: int, keys: int, multiprocessors: int) -> int:
    """Programs that share the keys of one head of one sample.

    clamp(ceil(2 * multiprocessors / heads), 1, ceil(keys / 128)), heads those of all samples: as
    many as give every multiprocessor two programs, none of them fewer than 128 keys of a full
    cache (kernels of Flash-Decoding; the spec's figure).
    """
    wanted = triton.cdiv(_PROGRAMS * multiprocessors, max(heads, 1))
    return max(1, min(wanted, triton.cdiv(keys, _SPLIT_KEYS)))


def decode_launches(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    lists: KeyLists | None,
    *,
    scale: float,
    splits: int,
    amd: bool = False,
) -> tuple[Launch, ...]:
    """The launches of one step in order; they write out (b, n_q, h, d_v), contiguous.

    Tensors may be on the meta device: the static report compiles these launches. Arguments as in
    `attention_decode`; memory for partial results is taken here.
    """
    batch, queries, heads, d_v = out.shape
    q_rows, k_rows, v_rows = (rows_of(Sequence(), x) for x in (q, k_cache, v_cache))
    widest = max(_bytes(k_rows), _bytes(v_rows))
    several = queries > 1 and lists is None and q.itemsize == 2 and widest <= _MATRIX_BYTES
    tile = decode_tile(widest, several=several, amd=amd)
    size = Size(heads, queries, k_cache.shape[1], splits)
    programs = batch * heads * splits
    result, stats = out, None
    if splits > 1:
        rows = (batch, queries, heads, splits)
        result = out.new_empty((*rows, d_v), dtype=torch.float32)
        stats = out.new_empty((*rows, 2), dtype=torch.float32)
    factor = scale * LOG2_E
    if several:
        emulate = INTERPRETED and q.dtype == torch.bfloat16
        plan = Plan(tl.constexpr(tile.keys), tl.constexpr(16), tl.constexpr(emulate))
        arguments = (q_rows, k_rows, v_rows, lengths, size, factor, result, stats, plan)
        share = Launch(decode_several, programs, arguments, {}, tile.warps, tile.stages)
    else:
        listed = Lists(None, None, tl.constexpr(0), tl.constexpr(False))
        if lists is not None:
            block, by_sample = tl.constexpr(lists.block), tl.constexpr(lists.by_sample)
            listed = Lists(lists.offsets, lists.columns, block, by_sample)
        arguments = (q_rows, k_rows, v_rows, lengths, listed, size, factor, result, stats)
        constants = {"block_n": tile.keys, "stages": tile.stages}
        share = Launch(decode_one, programs * queries, arguments, constants, tile.warps)
    if stats is None:
        return (share,)
    constants = {"width": d_v, "padded": triton.next_power_of_2(d_v), "block": _COMBINED}
    arguments = (result, stats, out, splits)
    return share, Launch(decode_combine, batch * queries * heads, arguments, constants)


def _bytes(x: Rows) -> int:
    """Of one row as the kernels hold it."""
    return (x.d0.value + x.d1.value) * x.base.itemsize


def meta_decode_launches(
    *,
    batch: int,
    heads: int,
    keys: int,
    d: int,
    d_v: int | None = None,
    queries: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    lists: KeyLists | None = None,
    multiprocessors: int = 132,
    amd: bool = False,
) -> tuple[Launch, ...]:
    """The launches of a shape, on the meta device, with caches (b, s, h, d) in one piece.

    `multiprocessors` of the device that is meant: 132 of H100, 108 of A100, 304 of MI300X.
    """

    def empty(*sizes: int) -> Tensor:
        return torch.empty(sizes, device="meta", dtype=dtype)

    value_d = d if d_v is None else d_v
    visible = keys if lists is None else lists.average_keys
    lengths = torch.empty(batch, device="meta", dtype=torch.int32)
    if lists is not None:
        lists = lists.to("meta")
    return decode_launches(
        empty(batch, queries, heads, value_d),
        empty(batch, queries, heads, d),
        empty(batch, keys, heads, d),
        empty(batch, keys, heads, value_d),
        lengths,
        lists,
        scale=d**-0.5,
        splits=decode_splits(batch * heads, visible, multiprocessors),
        amd=amd,
    )
