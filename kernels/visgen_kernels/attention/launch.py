"""The Triton implementation of attention: from a call to the launches of its kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_kernels.attention.arguments import scoring_of
from visgen_kernels.attention.backward import (
    delta_launch,
    keys_launch,
    keys_of,
    queries_launch,
    queries_of,
)
from visgen_kernels.attention.forward import forward_launch
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tile_lists import TileLists, tile_lists
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.masks import BlockList, Blocks2d


def lists_for(call: Call, q: Tensor, k: Tensor, tile: Tile, *, of_keys: bool) -> TileLists | None:
    """The tile lists of a call's mask, or None where ranges of keys say it."""
    if not isinstance(call.mask, Blocks2d | BlockList):
        return None
    n_q, n_k = call.layout.length(q.shape[1:-2]), call.layout.length(k.shape[1:-2])
    return tile_lists(
        call.mask, n_q, n_k, tile.block_m, tile.block_n, of_keys=of_keys, device=q.device
    )


def forward(call: Call, q: Tensor, k: Tensor, v: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype and log-sum-exp (b, *grid, h) in float32."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    x = scoring_of(call, q, k)
    lists = lists_for(call, q, k, tile, of_keys=False)
    forward_launch(call, x, lists, q, k, v, out, lse, tile).run()
    return out, lse


def backward(
    call: Call,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_queries: Tile,
    of_keys: Tile,
) -> list[Tensor]:
    """Gradients of q, k, v and, if the call has one, the key bias."""
    x, delta = scoring_of(call, q, k), torch.empty_like(lse)
    delta_launch(call, x, grad, out, delta).run()
    queries, keys = queries_of(call, q, grad, lse, delta), keys_of(call, k, v)
    dq, dk, dv = (torch.full_like(y, torch.nan) for y in (q, k, v))
    dc = None if call.key_bias is None else torch.full_like(call.key_bias, torch.nan)
    lists = lists_for(call, q, k, of_queries, of_keys=False)
    queries_launch(call, x, lists, queries, keys, dq, of_queries).run()
    lists = lists_for(call, q, k, of_keys, of_keys=True)
    keys_launch(call, x, lists, queries, keys, dk, dv, dc, of_keys).run()
    return [dq, dk, dv] + ([] if dc is None else [dc])
