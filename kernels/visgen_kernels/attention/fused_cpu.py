"""Longer sequences on a CPU: torch's fused kernel, called tile by tile.

The kernel behind `scaled_dot_product_attention` on CPUs needs no array of scores. It is part of
`chunked` where it computes the same function: no dropout, equal head dimensions, no NaN behind a
mask. Masks become tiles (see `tiles`) whose keys are mostly visible; what is still hidden in a
tile, the position bias and what keys add are handed over as one array of the size of a chunk. The
kernel gives no gradient for that array: calls whose table or key bias wants a gradient, and every
second derivative, compute the weights again in `chunked`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Block, Tokens, blocks, length, select
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.problem import CHUNK_SCORES, Problem
from visgen_kernels.masks import Causal, Full
from visgen_kernels.tiles import Index, Tile

# Where tokens have to be copied anyway, shorter sequences are faster as batched products.
LEAST_COPIED_SCORES = 32 * 32
# Numbers of q, k and v that are handed to the kernel at a time where they have to be copied, or its
# results have to: 16 MB of float32.
_COPIED_INPUTS = 4 * 1024 * 1024

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def fits(device: torch.device, d: int, d_v: int, dropout: float) -> bool:
    """Can the fused kernel compute such a call?"""
    return device.type == "cpu" and not dropout and d == d_v


def takes(problem: Problem) -> bool:
    """Is the fused kernel right for a call, and faster than chunks?"""
    if problem.empty or not problem.finite:
        return False
    if not fits(problem.like.device, problem.d, problem.d_v, problem.call.dropout):
        return False
    views = all(x.run for x in (problem.q, problem.k, problem.v))
    return views or problem.n_q * problem.n_k >= LEAST_COPIED_SCORES


class _Fused:
    """A call as the fused kernel takes it."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.call = problem, problem.call
        mask = self.call.mask
        square = problem.n_q == problem.n_k
        plain = problem.shift is None and problem.expanded is None
        self.causal = isinstance(mask, Causal) and mask.group == 1 and square and plain
        whole = self.causal or (isinstance(mask, Full) and problem.expanded is None)
        if whole:  # nothing that is as large as the scores has to be added
            self.tiles = [Tile(slice(0, problem.n_q), slice(0, problem.n_k), whole=True)]
            return
        heads = 1 if problem.expanded is None else problem.heads
        problem.tile(max(16, CHUNK_SCORES // (problem.n_k * heads)))
        self.tiles = problem.tiles

    def blocks(self, tokens: list[Tokens], most: int) -> list[Block]:
        """Blocks of at most `most` sequences; of one stride, if copies can be avoided."""
        problem = self.problem
        runs = min(x.run for x in tokens)
        most = min(most, runs) if runs else most
        if problem.shift is not None and not all(tile.whole for tile in self.tiles):
            # What keys add and what the mask hides together differ in every axis.
            largest = max(length(tile.rows) * length(tile.keys) for tile in self.tiles)
            most = min(most, CHUNK_SCORES // (problem.heads * largest))
        return blocks(tokens[0].sequence_axes, max(1, most))

    def added(self, tile: Tile, block: Block) -> Tensor | None:
        """What the kernel adds to the scores of a tile, broadcasting with (z, h, rows, keys)."""
        problem, total = self.problem, None
        bias = problem.tile_bias(tile)
        if bias is not None:
            total = bias[None]
        if not tile.whole:
            base = problem.like.new_zeros(()) if total is None else total
            total = base.masked_fill(problem.hidden(tile, block), -torch.inf)
        if problem.shift is not None:
            shift = select(problem.shift[block.start : block.stop], tile.keys, 3)
            total = shift if total is None else total + shift
        return total


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d) and log-sum-exp (b, *grid, h), the latter empty unless asked for."""
    fused, call = _Fused(problem), problem.call
    tokens = [problem.q, problem.k, problem.v]
    direct = _token_major(problem, q) and len(fused.tiles) == 1
    found = fused.blocks(tokens, problem.sequences if direct else _most(problem))
    if direct and len(found) == 1:  # the kernel's own output is the result
        out, lse = _forward(
            *(x.several(found[0]) for x in tokens),
            is_causal=fused.causal,
            attn_mask=fused.added(fused.tiles[0], found[0]),
            scale=call.scale,
        )
        shape = q.shape[:-1]
        lse = lse.transpose(1, 2).reshape(shape) if with_lse else problem.like.new_empty(0)
        return out.transpose(1, 2).reshape(q.shape), lse
    out = q.new_empty(q.shape)
    lse = problem.like.new_empty(q.shape[:-1] if with_lse else (0,))
    outs = problem.target(out, "out")
    lses = problem.target(lse, "lse") if with_lse else None
    for block in found:
        qs, ks, vs = (x.several(block) for x in tokens)
        outs.start(block, zero=problem.bare_rows)
        if lses is not None:
            lses.start(block)
        for tile in fused.tiles:
            if not length(tile.keys):
                continue
            o, l = _forward(
                select(qs, tile.rows, 2),
                select(ks, tile.keys, 2),
                select(vs, tile.keys, 2),
                is_causal=fused.causal,
                attn_mask=fused.added(tile, block),
                scale=call.scale,
            )
            outs.write(tile.rows, o)
            if lses is not None:
                lses.write(tile.rows, l)
        outs.finish()
        if lses is not None:
            lses.finish()
    return out, lse


def backward(
    problem: Problem,
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
    """Gradients of q, k, v (or packed): those needed, in this order. No row may be empty."""
    fused, call = _Fused(problem), problem.call
    tokens = [problem.q, problem.k, problem.v, problem.tokens(grad, "g"), problem.tokens(out, "o")]
    lses = problem.tokens(lse, "lse")
    if packed:
        memory = [q.new_empty(*q.shape[:-2], 3, *q.shape[-2:])]
        parts = list(memory[0].unbind(-3))
    else:
        memory = parts = [x.new_empty(x.shape) for x in (q, k, v)]
    targets = [problem.target(x, name) for x, name in zip(parts, ("dq", "dk", "dv"), strict=True)]
    for block in fused.blocks(tokens, _most(problem)):
        qs, ks, vs, gs, os = (x.several(block) for x in tokens)
        ls = lses.several(block)
        for target in targets:
            target.start(block)
        sums = None
        if len(fused.tiles) > 1:
            sums = [x.new_zeros(x.shape) for x in (ks, vs)]
        for tile in fused.tiles:
            rows, keys = tile.rows, tile.keys
            dq, dk, dv = _backward(
                select(gs, rows, 2),
                select(qs, rows, 2),
                select(ks, keys, 2),
                select(vs, keys, 2),
                select(os, rows, 2),
                select(ls, rows, 2),
                0.0,
                fused.causal,
                attn_mask=fused.added(tile, block),
                scale=call.scale,
            )
            targets[0].write(rows, dq)
            if sums is None:
                targets[1].write(keys, dk)
                targets[2].write(keys, dv)
            else:
                for total, part in zip(sums, (dk, dv), strict=True):
                    _add(total, keys, part)
        if sums is not None:
            for target, total in zip(targets[1:], sums, strict=True):
                target.write(slice(0, problem.n_k), total)
        for target in targets:
            target.finish()
    wanted = (needs.q,) if packed else (needs.q, needs.k, needs.v)
    return [x for x, needed in zip(memory, wanted, strict=True) if needed]


def _add(total: Tensor, keys: Index, part: Tensor) -> None:
    if isinstance(keys, slice):
        select(total, keys, 2).add_(part)
    else:
        total.index_add_(2, keys, part)


def _most(problem: Problem) -> int:
    """Sequences of a block where something is copied."""
    inputs = problem.heads * (problem.n_q + 2 * problem.n_k) * problem.q.rest[0]
    return max(1, _COPIED_INPUTS // inputs)


def _token_major(problem: Problem, q: Tensor) -> bool:
    """Is (sequences, n, heads, d), the kernel's own order, the order of the result?"""
    return q.dtype == problem.dtype and problem.call.layout.keeps_order(problem.axes)
