"""The second derivative in Triton: from a call and its cotangents to the launches of K5 and K3.

Same arguments and results as `chunked_double.double_backward`, with the log-sum-exp instead of kept
weights. Nothing of size n x n is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention import bias_gradient, double_backward
from visgen_kernels.attention.arguments import scoring_of
from visgen_kernels.attention.backward import delta_launch
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.launch import chosen_tile, lists_for
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import first_of, readable, second_of
from visgen_kernels.attention.tiles import Tile


@dataclass(frozen=True)
class DoubleTiles:
    """Tiles of the kernels of a second derivative; `table` is read if there is a position bias."""

    rows: Tile
    queries: Tile
    keys: Tile
    table: Tile


@dataclass(frozen=True)
class _Memory:
    """Where each gradient is written, None where it is not asked for."""

    grad: Tensor | None
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    key_bias: Tensor | None
    packed: Tensor | None  # what q, k and v are views of


def double_backward_of(
    call: Call,
    cotangents: Cotangents,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    needs_grad: bool,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """`double_backward_tiled` at the table's tiles."""
    names = ("double_rows", "double_queries", "double_keys", "double_table")
    tiles = DoubleTiles(*(chosen_tile(name, call, q, v) for name in names))
    return double_backward_tiled(
        call,
        cotangents,
        grad,
        out,
        lse,
        q,
        k,
        v,
        tiles,
        needs_grad=needs_grad,
        needs=needs,
        packed=packed,
    )


def double_backward_tiled(
    call: Call,
    cotangents: Cotangents,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: DoubleTiles,
    *,
    needs_grad: bool,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """Gradients of grad, q (or packed), k, v, table, key bias: those needed, in this order.

    grad, out (b, *grid, h, d_v), lse (b, *grid, h) float32; cotangents have the shapes of q, k, v,
    table and key bias. packed: q, k and v are views of one (b, *grid, 3, h, d) tensor, whose
    gradient is one tensor.
    """
    x, grad = scoring_of(call, q, k), readable(grad)
    sums, delta, m, e = (torch.empty_like(lse) for _ in range(4))
    delta_launch(call, x, grad, out, lse, delta, sums).run()
    first = first_of(call, q, k, v, grad, sums, delta)
    t = second_of(call, x, first, cotangents, m, e, needs_grad=needs_grad, needs=needs)
    memory = _memory(call, grad, q, k, v, needs_grad, needs, packed)
    lists = lists_for(call, q, k, tiles.rows, of_keys=False)
    double_backward.rows_launch(call, x, lists, t, out, memory.grad, tiles.rows).run()
    if memory.q is not None:
        lists = lists_for(call, q, k, tiles.queries, of_keys=False)
        double_backward.queries_launch(call, x, lists, t, memory.q, tiles.queries).run()
    of_keys = (memory.k, memory.v, memory.key_bias)
    if any(y is not None for y in of_keys):
        lists = lists_for(call, q, k, tiles.keys, of_keys=True)
        double_backward.keys_launch(call, x, lists, t, *of_keys, tiles.keys).run()
    table = None
    if needs.table:
        table = bias_gradient.table_gradient(call, x, t, tiles.table)
    inputs = (memory.q, memory.k, memory.v) if memory.packed is None else (memory.packed,)
    results = (memory.grad, *inputs, table, memory.key_bias)
    return [y for y in results if y is not None]


def _memory(
    call: Call,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    needs_grad: bool,
    needs: Needs,
    packed: bool,
) -> _Memory:
    def new(x: Tensor | None, wanted: bool) -> Tensor | None:
        if x is None or not wanted:
            return None
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    whole, gq, gk, gv = None, new(q, needs.q), new(k, needs.k), new(v, needs.v)
    if packed and needs.q:
        whole = q.new_empty((*q.shape[:-2], 3, *q.shape[-2:]))
        gq, gk, gv = whole.unbind(-3)
    shift = new(call.key_bias, needs.key_bias)
    return _Memory(new(grad, needs_grad), gq, gk, gv, shift, whole)
