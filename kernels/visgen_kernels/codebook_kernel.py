# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""K7: the nearest code of every vector; no matrix of distances is written.

    argmin_e |z - e|^2 = argmin_e  |e|^2 / 2 - z . e

One program keeps the smallest score of each of its vectors, and whose it is, while codes go by tile
after tile. Only a strictly smaller score takes over, so that of equal codes the first wins. Where
vectors are few, programs share the codes too and each leaves its best as one integer,

    (score as an integer of the same order) * 2^32 + index

the smallest of which is the smallest score, and of equal scores the smallest index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.launch import INTERPRETED, Launch

_UNITS = (8, 4, 2, 1)


class Matrix(NamedTuple):
    """Rows of d numbers; the stride between rows counts units of `unit` elements."""

    base: Any
    rows: int
    stride: int
    unit: tl.constexpr


@triton.jit
def _pointers(x, rows):
    """Addresses of rows, (rows, 1); int64, because a matrix may hold more than 2^31 numbers."""
    return x.base + (rows.to(tl.int64) * x.stride * x.unit)[:, None]


@triton.jit
def _operand(
    pointers,
    present,
    first,
    width: tl.constexpr,
    d: tl.constexpr,
    dtype: tl.constexpr,
    emulate: tl.constexpr,
):
    """Columns first .. first + width of rows as a factor of a product, 0 where there is nothing.

    Emulated in float32, as Triton's interpreter multiplies the bit patterns of bf16.
    """
    columns = first + tl.arange(0, width)
    mask = present[:, None]
    if d % width != 0:
        mask = mask & (columns < d)[None, :]
    x = tl.load(pointers + columns[None, :], mask=mask, other=0.0).to(dtype)
    return x.to(tl.float32) if emulate else x


@triton.jit
def nearest_code_search(
    vectors,
    codes,
    half_norms,  # |e|^2 / 2, float32; inf for a code that is never chosen
    best,  # (splits, vectors) int64
    splits,
    d: tl.constexpr,
    precision: tl.constexpr,
    emulate: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
):
    """One program: block_m vectors, and a share of the codes."""
    blocks = tl.cdiv(vectors.rows, block_m)
    split = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    share = tl.cdiv(tl.cdiv(codes.rows, splits), block_k) * block_k
    start = split * share
    stop = tl.minimum(start + share, codes.rows)
    dtype: tl.constexpr = codes.base.dtype.element_ty
    inside = row < vectors.rows
    z_rows = _pointers(vectors, row)
    least = tl.full((block_m,), float("inf"), tl.float32)
    index = tl.zeros((block_m,), tl.int32)
    for at in range(start, stop, block_k):
        code = at + tl.arange(0, block_k)
        present = code < stop
        e_rows = _pointers(codes, code)
        products = tl.zeros((block_m, block_k), tl.float32)
        for first in range(0, d, block_d):
            z = _operand(z_rows, inside, first, block_d, d, dtype, emulate)
            e = _operand(e_rows, present, first, block_d, d, dtype, emulate)
            products = tl.dot(z, e.T, products, input_precision=precision)
        half = tl.load(half_norms + code, mask=present, other=float("inf"))
        scores = half[None, :] - products
        scores = tl.where((half < float("inf"))[None, :], scores, float("inf"))
        score, place = tl.min(scores, 1, return_indices=True)
        better = score < least
        least = tl.where(better, score, least)
        index = tl.where(better, at + place, index)
    # Integers in the order of the floats; adding 0 turns -0, which is below 0 there, into 0.
    bits = (least + 0.0).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    both = (order.to(tl.int64) << 32) | index.to(tl.int64)
    tl.store(best + split.to(tl.int64) * vectors.rows + row, both, mask=inside)


class Tile(NamedTuple):
    """Vectors, codes and columns of one step, warps and pipeline stages of one program."""

    vectors: int
    codes: int
    columns: int
    warps: int
    stages: int


# Chosen with the static report: no spills, no repeated matrix products, loads of 16 bytes. By
# target and by how products are made: of 16-bit numbers, of float32 in three tf32 products, in one,
# and in float32 itself (which only AMD has matrix units for).
_TILES = {
    "sm_80": {
        "16-bit": Tile(128, 128, 32, 8, 3),
        "tf32x3": Tile(128, 64, 32, 8, 3),
        "tf32": Tile(128, 64, 32, 8, 3),
        "ieee": Tile(64, 64, 16, 8, 2),
    },
    "sm_90": {
        "16-bit": Tile(128, 128, 64, 8, 3),
        "tf32x3": Tile(128, 128, 32, 8, 3),
        "tf32": Tile(128, 128, 32, 8, 3),
        "ieee": Tile(64, 64, 16, 8, 2),
    },
    "sm_100": {
        "16-bit": Tile(128, 128, 64, 8, 3),
        "tf32x3": Tile(128, 128, 32, 8, 3),
        "tf32": Tile(128, 128, 32, 8, 3),
        "ieee": Tile(64, 64, 16, 8, 2),
    },
    "gfx942": {
        "16-bit": Tile(128, 128, 32, 4, 2),
        "ieee": Tile(64, 128, 32, 4, 2),
    },
}


def default_precision(target: str) -> str:
    """How float32 products are made: exactly on AMD, in three tf32 products on NVIDIA.

    NVIDIA's matrix units have no float32; three products of tf32 parts are right to 2^-21.
    """
    return "ieee" if target == "gfx942" else "tf32x3"


def precisions(target: str) -> tuple[str, ...]:
    """The precisions of float32 products that a target has."""
    return tuple(name for name in _TILES[target] if name != "16-bit")


def code_splits(vectors: int, codes: int, tile: Tile, multiprocessors: int) -> int:
    """Programs that share the codes of one tile of vectors, so that no multiprocessor idles.

    clamp(multiprocessors // tiles of vectors, 1, tiles of codes); the result is the same for any.
    """
    wanted = multiprocessors // max(1, triton.cdiv(vectors, tile.vectors))
    return max(1, min(wanted, triton.cdiv(codes, tile.codes)))


def nearest_launch(
    vectors: Tensor,
    codes: Tensor,
    half_norms: Tensor,
    *,
    target: str,
    precision: str,
    multiprocessors: int,
) -> tuple[Tensor, Launch]:
    """The buffer of best integers (splits, m), and the launch that fills it.

    vectors (m, d) and codes (k, d) with rows of stride 1, half_norms (k,) float32; on the meta
    device if the launch is to be compiled only. If codes are 16-bit, vectors have their dtype.
    """
    (m, d), k = vectors.shape, codes.shape[0]
    kind = "16-bit" if codes.itemsize == 2 else precision
    tile = _TILES[target][kind]
    splits = code_splits(m, k, tile, multiprocessors)
    best = torch.empty((splits, m), dtype=torch.int64, device=vectors.device)
    strides = (vectors.stride(0), codes.stride(0))
    unit = next(unit for unit in _UNITS if all(stride % unit == 0 for stride in strides))
    matrices = (
        Matrix(x, x.shape[0], stride // unit, tl.constexpr(unit))
        for x, stride in zip((vectors, codes), strides, strict=True)
    )
    constants = {
        "d": d,
        "precision": "ieee" if kind == "16-bit" else precision,
        "emulate": INTERPRETED and codes.dtype == torch.bfloat16,
        "block_m": tile.vectors,
        "block_k": tile.codes,
        "block_d": min(tile.columns, max(16, triton.next_power_of_2(d))),
    }
    programs = splits * triton.cdiv(m, tile.vectors)
    arguments = (*matrices, half_norms, best, splits)
    launch = Launch(nearest_code_search, programs, arguments, constants, tile.warps, tile.stages)
    return best, launch


def meta_nearest_launch(
    *,
    vectors: int,
    codes: int,
    d: int,
    target: str,
    dtype: torch.dtype = torch.float32,
    precision: str | None = None,
    multiprocessors: int = 132,
) -> Launch:
    """The launch of a shape, on the meta device."""
    _, launch = nearest_launch(
        torch.empty(vectors, d, device="meta", dtype=dtype),
        torch.empty(codes, d, device="meta", dtype=dtype),
        torch.empty(codes, device="meta"),
        target=target,
        precision=precision or default_precision(target),
        multiprocessors=multiprocessors,
    )
    return launch
