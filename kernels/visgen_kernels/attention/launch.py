"""The Triton implementation of attention: from a call to the launches of its kernels.

Same functions, arguments and results as `chunked` and `chunked_double`; nothing of size n x n is
ever in memory. Sequences of at most 64 queries and keys go to K4, which holds them whole; the
others to K1 (forward) and K2 (backward). Which tile is used is `tiles.tile_for`'s answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_kernels.attention import bias_gradient
from visgen_kernels.attention.arguments import head_parts, scoring_of
from visgen_kernels.attention.backward import (
    delta_launch,
    keys_launch,
    keys_of,
    queries_launch,
    queries_of,
)
from visgen_kernels.attention.forward import forward_launch
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import first_of
from visgen_kernels.attention.short import fits_short, short_backward, short_forward
from visgen_kernels.attention.short_tiles import ShortTile, short_tile
from visgen_kernels.attention.tile_lists import TileLists, tile_lists
from visgen_kernels.attention.tiles import Tile, target_of, tile_for
from visgen_kernels.masks import BlockList, Blocks2d, Causal, Full


def lists_for(call: Call, q: Tensor, k: Tensor, tile: Tile, *, of_keys: bool) -> TileLists | None:
    """The tile lists of a call's mask, or None where ranges of keys say it."""
    if not isinstance(call.mask, Blocks2d | BlockList):
        return None
    n_q, n_k = call.layout.length(q.shape[1:-2]), call.layout.length(k.shape[1:-2])
    return tile_lists(
        call.mask, n_q, n_k, tile.block_m, tile.block_n, of_keys=of_keys, device=q.device
    )


def is_plain(call: Call) -> bool:
    """Whether a call's loops are few and short: causal or no mask, nothing added.

    Other calls hold more in registers and have tiles of their own.
    """
    simple = isinstance(call.mask, Full | Causal)
    added = call.table is not None or call.key_bias is not None
    return simple and not added and not call.dropout


def chosen_tile(kernel: str, call: Call, q: Tensor, v: Tensor) -> Tile:
    """The table's tile of a kernel for a call."""
    return tile_for(
        kernel,
        target_of(q.device),
        head_parts(q.shape[-1]),
        head_parts(v.shape[-1]),
        size=q.dtype.itemsize,
        plain=is_plain(call),
    )


def forward(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype and log-sum-exp (b, *grid, h) in float32."""
    tile = _short_tile(call, q, k, v, backward=False)
    if tile is not None:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        short_forward(call, scoring_of(call, q, k), q, k, v, out, lse, tile)
        return out, lse
    return forward_tiled(call, q, k, v, chosen_tile("forward", call, q, v))


def _short_tile(call: Call, q: Tensor, k: Tensor, v: Tensor, *, backward: bool) -> ShortTile | None:
    """The tile of K4, or None if the call is K1's or K2's."""
    if not fits_short(call.layout, q.shape, k.shape, v.shape[-1]):
        return None
    width = max(sum(head_parts(x.shape[-1])) for x in (q, v))
    length = max(call.layout.length(x.shape[1:-2]) for x in (q, k))
    size, target = q.dtype.itemsize, target_of(q.device)
    return short_tile(length, width, size, target, backward=backward)


def forward_tiled(call: Call, q: Tensor, k: Tensor, v: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """`forward` with K1 at a given tile."""
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
    *,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, table, key bias: those needed, in this order, in their tensors' dtypes.

    packed: q, k and v are views of one (b, *grid, 3, h, d) tensor, whose gradient is one tensor.
    """
    tile = _short_tile(call, q, k, v, backward=True)
    if tile is not None:
        return _short(call, grad, out, lse, q, k, v, tile, needs=needs, packed=packed)
    of_queries, of_keys, of_table = (
        chosen_tile(name, call, q, v) for name in ("queries", "keys", "table")
    )
    return backward_tiled(
        call,
        grad,
        out,
        lse,
        q,
        k,
        v,
        of_queries,
        of_keys,
        of_table=of_table,
        needs=needs,
        packed=packed,
    )


def _short(
    call: Call,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile: ShortTile,
    *,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """`backward` with K4, and K3 for the table."""
    x = scoring_of(call, q, k)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    results, (dq, dk, dv) = gradient_memory((q, k, v), needs, packed)
    dc = None
    if needs.key_bias and call.key_bias is not None:
        dc = torch.empty_like(call.key_bias, memory_format=torch.contiguous_format)
    if needs.q or needs.k or needs.v or dc is not None:
        into = (
            dq if needs.q else None,
            dk if needs.k or dc is not None else None,
            dv if needs.v else None,
        )
        short_backward(call, x, grad, lse, q, k, v, *into, dc, tile)
    if needs.table:
        delta, sums = torch.empty_like(lse), torch.empty_like(lse)
        delta_launch(call, x, grad, out, lse, delta, sums).run()
        first = first_of(call, q, k, v, grad, sums, delta)
        of_table = chosen_tile("table", call, q, v)
        results.append(bias_gradient.table_gradient(call, x, first, of_table))
    return [*results, *([] if dc is None else [dc])]


def backward_tiled(
    call: Call,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_queries: Tile,
    of_keys: Tile,
    *,
    of_table: Tile,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """`backward` with K2 at given tiles."""
    x, delta, sums = scoring_of(call, q, k), torch.empty_like(lse), torch.empty_like(lse)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    results, (dq, dk, dv) = gradient_memory((q, k, v), needs, packed)
    dc = None
    if needs.key_bias and call.key_bias is not None:
        dc = torch.empty_like(call.key_bias, memory_format=torch.contiguous_format)
    delta_launch(call, x, grad, out, lse, delta, sums).run()
    queries, keys = queries_of(call, q, grad, sums, delta), keys_of(call, k, v)
    if needs.q:
        lists = lists_for(call, q, k, of_queries, of_keys=False)
        queries_launch(call, x, lists, queries, keys, dq, of_queries).run()
    lists = lists_for(call, q, k, of_keys, of_keys=True)
    for with_k, with_v in key_passes(needs, head_parts(q.shape[-1]), head_parts(v.shape[-1])):
        queries = queries_of(call, q, grad, sums, delta, with_k=with_k, with_v=with_v)
        into = (dk if with_k else None, dv if with_v else None, dc if with_k else None)
        keys_launch(call, x, lists, queries, keys, *into, of_keys).run()
    if needs.table:
        first = first_of(call, q, k, v, grad, sums, delta)
        results.append(bias_gradient.table_gradient(call, x, first, of_table))
    return [*results, *([] if dc is None else [dc])]


# Wider sums of dK and dV together do not fit into registers beside the scores.
_BOTH_SUMS = 192


def key_passes(
    needs: Needs, parts: tuple[int, int], value_parts: tuple[int, int]
) -> list[tuple[bool, bool]]:
    """Launches of the kernel over keys, as (with dK and d key_bias, with dV).

    One if the sums of both fit, else one for each, which computes the weights twice.
    """
    with_k, with_v = needs.k or needs.key_bias, needs.v
    if with_k and with_v and sum(parts) + sum(value_parts) > _BOTH_SUMS:
        return [(True, False), (False, True)]
    return [(with_k, with_v)] if with_k or with_v else []


def gradient_memory(
    tensors: tuple[Tensor, Tensor, Tensor], needs: Needs, packed: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Memory for the gradients of q, k, v: the results to return, and where each is written.

    packed: one tensor (b, *grid, 3, h, d), written through its three views.
    """
    if packed:
        q = tensors[0]
        whole = q.new_empty((*q.shape[:-2], 3, *q.shape[-2:]))
        dq, dk, dv = whole.unbind(-3)
        return ([whole] if needs.q else []), (dq, dk, dv)
    # dK comes with the key bias's gradient: what nobody asked for is written and dropped.
    memory = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
    wanted = zip(memory, (needs.q, needs.k, needs.v), strict=True)
    return [x for x, needed in wanted if needed], (memory[0], memory[1], memory[2])
