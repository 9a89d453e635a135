# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Kernels as a user would bring them, for the tests of `static.signature`."""

import os
import time

import torch
import triton
import triton.language as tl

from visgen_kernels.launch import Launch


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    """out = x + y, n numbers."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def scaled(x, sizes, factor, BLOCK: tl.constexpr, ROWS: tl.constexpr = 2):
    """Rows of x times a factor, in place; sizes (columns, stride)."""
    i = tl.arange(0, BLOCK)
    for row in tl.static_range(ROWS):
        place = x + row * sizes[1] + i
        tl.store(place, tl.load(place, mask=i < sizes[0]) * factor, mask=i < sizes[0])


@triton.jit
def centred(x, mean, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out = x - mean: rows in 16 bits, one float32 number a row."""
    row = tl.arange(0, ROWS)
    cell = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tile = tl.load(x + cell, mask=row[:, None] >= 1, other=0.0)
    shift = tl.load(mean + row, mask=row >= 1, other=0.0)
    tl.store(out + cell, (tile - shift[:, None]).to(out.dtype.element_ty))


@triton.jit
def _loaded(pointers):
    return tl.load(pointers)


@triton.jit
def centred_alike(x, mean, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The same; one line loads both."""
    row = tl.arange(0, ROWS)
    cell = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    shifted = _loaded(x + cell) - _loaded(mean + row)[:, None]
    tl.store(out + cell, shifted.to(out.dtype.element_ty))


@triton.autotune(
    configs=[
        triton.Config({"BLOCK": 128}, num_warps=2),
        triton.Config({"BLOCK": 1024}, num_warps=8),
    ],
    key=["n"],
)
@triton.jit
def tuned(x, out, n, BLOCK: tl.constexpr):
    """out = exp2(x)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.exp2(tl.load(x + i, mask=i < n)), mask=i < n)


def launch_of_add() -> Launch:
    """An exact launch: what a call with these tensors would compile."""
    x = torch.empty(4096, dtype=torch.float32, device="meta")
    return Launch(add, 4, (x, x, x, 4096), {"BLOCK": 1024}, warps=4, stages=1)


def returns_nothing() -> None:
    """No kernel at all."""


def _skewed(x):
    tl.store(x + tl.arange(0, 3), 1.0)


skewed = triton.jit(_skewed)
number = 7


def dies() -> None:
    """As a compiler does that meets a fault of its own."""
    os._exit(9)


def sleeps() -> Launch:
    """A kernel that takes a while to make."""
    time.sleep(0.5)
    return launch_of_add()
