"""From a call to a kernel launch: strides, head dimension in two parts, tiles, grid."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from visgen_kernels.attention.addressing import Tokens, tokens_of
from visgen_kernels.attention.forward import attention_forward
from visgen_kernels.attention.problem import Call
from visgen_kernels.biases import expand_table

LOG2_E = 1.4426950408889634
_PADDING = 128  # no tile of keys is longer
# Triton reads this when it decorates a kernel, so it has to be set before the import.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class Tile:
    """Rows of queries, of keys, warps and pipeline stages of one program."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def head_parts(d: int) -> tuple[int, int]:
    """Two powers of two, at least 16 (the second may be 0), that cover d with little waste."""
    whole = max(16, triton.next_power_of_2(d))
    first = whole // 2
    rest = max(16, triton.next_power_of_2(d - first))
    if d <= 16 or whole - d <= d // 8 or first + rest >= whole:
        return whole, 0
    return first, rest


def forward(
    call: Call, q: Tensor, k: Tensor, v: Tensor, tile: Tile, *, precision: str = "ieee"
) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype and log-sum-exp (b, *grid, h) in float32."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    # The kernel takes the largest score before it scales: that wants a positive scale.
    sign = (call.scale > 0) - (call.scale < 0)
    scale = abs(call.scale) if sign else 1.0
    places = {name: tokens_of(call.layout, x) for name, x in (("q", q), ("k", k), ("v", v))}
    places["out"] = tokens_of(call.layout, out)
    places["lse"] = tokens_of(call.layout, lse.unsqueeze(-1))
    unit = min(places[name].unit() for name in ("q", "k", "v"))
    unit_out = places["out"].unit()
    bias = q
    if call.table is not None and call.size is not None:
        scaled = call.table / scale
        bias = expand_table(scaled, call.size, q.dtype if q.dtype.itemsize == 2 else torch.float32)
    key_bias = q
    if call.key_bias is not None:
        key_bias = _key_shift(call, call.key_bias, q.ndim - 3, scale)
    (d0, d1), (dv0, dv1) = head_parts(q.shape[-1]), head_parts(v.shape[-1])
    code = (*call.mask.encode(), 0, 0)
    n_q, n_k = places["q"].length, places["k"].length
    heads = q.shape[-2]
    programs = places["q"].sequences * heads * triton.cdiv(n_q, tile.block_m)
    height, width = call.size if call.table is not None and call.size else (0, 0)
    if programs:
        kernel: Any = attention_forward  # a jit function takes launch options as keywords
        kernel[(programs,)](
            q,
            k,
            v,
            out,
            lse,
            bias,
            key_bias,
            q if call.key_lengths is None else call.key_lengths,
            q if call.seed is None else call.seed,
            _in_units(places["q"], unit),
            _in_units(places["k"], unit),
            _in_units(places["v"], unit),
            _in_units(places["out"], unit_out),
            places["lse"].strides,
            places["q"].sizes[1:],
            heads,
            n_q,
            n_k,
            triton.cdiv(n_k, _PADDING) * _PADDING,
            scale * LOG2_E,
            int(call.dropout * 2**32),
            1.0 / (1.0 - call.dropout),
            sign=sign,
            mask=code[0],
            mask_a=code[1],
            mask_b=code[2],
            bias_height=height,
            bias_width=width,
            has_key_bias=call.key_bias is not None,
            has_lengths=call.key_lengths is not None,
            dropout=call.dropout > 0,
            d=q.shape[-1],
            d0=d0,
            d1=d1,
            dv=v.shape[-1],
            dv0=dv0,
            dv1=dv1,
            inner_q=places["q"].inner,
            inner_k=places["k"].inner,
            unit=unit,
            unit_out=unit_out,
            precision=precision,
            emulate=INTERPRETED and q.dtype == torch.bfloat16,
            block_m=tile.block_m,
            block_n=tile.block_n,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out, lse


def _key_shift(call: Call, key_bias: Tensor, axes: int, scale: float) -> Tensor:
    """The key bias as the kernel reads it: (z, heads, n padded), float32, over the scale.

    A vector of n numbers a head is copied so that tiles of it are read 16 bytes at a time; q, k, v
    never are.
    """
    split = call.layout.split(key_bias.float() / scale, axes).transpose(1, 2)
    missing = -split.shape[-1] % _PADDING
    return torch.nn.functional.pad(split, (0, missing), value=-torch.inf).contiguous()


def _in_units(tokens: Tokens, unit: int) -> tuple[int, ...]:
    return tuple(stride // unit for stride in tokens.strides)
