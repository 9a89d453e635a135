"""Longer sequences on a CPU: torch's fused kernel, called tile by tile.

The kernel behind `scaled_dot_product_attention` on CPUs needs no array of scores. It is part of
`chunked` where it computes the same function: no dropout, equal head dimensions, no NaN behind a
mask. Masks become tiles (see `tiles`) whose keys are mostly visible; what is still hidden in a
tile, the position bias and what keys add are handed over as one array of the size of a chunk. The
kernel gives no gradient for that array: calls whose table or key bias wants a gradient, and every
second derivative, compute the weights again in `chunked`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import (
    Block,
    Target,
    Tokens,
    blocks,
    equal_parts,
    length,
    select,
)
from visgen_kernels.attention.problem import (
    CHUNK_SCORES,
    Call,
    Geometry,
    Problem,
    all_finite,
    key_shift,
)
from visgen_kernels.biases import square_bias
from visgen_kernels.layouts import Sequence
from visgen_kernels.masks import Causal, Full, reach
from visgen_kernels.tiles import Index, Tile

# Where tokens have to be copied anyway, shorter sequences are faster as batched products.
LEAST_COPIED_SCORES = 32 * 32
# Numbers of q, k and v that are handed to the kernel at a time where they have to be copied, or its
# results have to: 4 MB of float32.
_COPIED_INPUTS = 1024 * 1024
# The kernel reads all keys once for so many rows.
_LEAST_ROWS = 256

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def fits(device: torch.device, d: int, d_v: int, dropout: float) -> bool:
    """Can the fused kernel compute such a call?"""
    return device.type == "cpu" and not dropout and d == d_v


@dataclass(frozen=True, slots=True)
class _Plain:
    """A call whose whole answer is one answer of the kernel."""

    causal: bool
    added: Tensor | None  # to the scores, broadcasts with (b, h, n_q, n_k)
    guarded: bool  # what is hidden may leak, as 0 * NaN

    def empty(self) -> Tensor:
        """(b, h or 1, n_q or 1) bool: rows that keys hide everything from."""
        assert self.added is not None
        return self.added.amax(-1) == -torch.inf


def _plain(call: Call, *tensors: Tensor) -> _Plain | None:
    """How the kernel's answer is the whole answer; None if it is not. tensors: q, k, v, ..."""
    q, k, v = tensors[:3]
    wide = q.dtype in (torch.float32, torch.float64) and q.numel() and k.numel()
    if not (wide and isinstance(call.layout, Sequence) and all(x.stride(-1) == 1 for x in tensors)):
        return None
    if not fits(q.device, q.shape[-1], v.shape[-1], call.dropout):
        return None
    hiding = not (call.key_bias is None and call.key_lengths is None)
    if isinstance(call.mask, Causal) and call.mask.group == 1 and q.shape[1] == k.shape[1]:
        return None if hiding or call.table is not None else _Plain(True, None, True)
    if not isinstance(call.mask, Full):
        return None
    added = None
    if hiding:
        added = key_shift(call, Geometry(call.layout, q.shape, k.shape, v.shape[-1]), q)
    if call.table is not None and call.size is not None:
        if q.shape[1] * k.shape[1] * q.shape[2] > CHUNK_SCORES or hiding:
            return None
        added = square_bias(call.table, call.size, q.dtype)[None]
    return _Plain(False, added, hiding)


def plain(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor] | None:
    """Output and log-sum-exp where the kernel's answer is the whole answer, else None.

    `forward` would give the same; a short call is spared half of its time around the kernel.
    """
    found = _plain(call, q, k, v)
    if found is None:
        return None
    qs, ks, vs = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out, lse = _forward(qs, ks, vs, is_causal=found.causal, attn_mask=found.added, scale=call.scale)
    out = out.transpose(1, 2)
    if found.guarded and not all_finite(out):
        return None  # what is hidden may have leaked
    if not with_lse:
        return out.contiguous(), lse.new_empty(0)
    if found.guarded and found.added is not None:  # the kernel gives 0 for empty rows
        lse = lse.masked_fill(found.empty(), -torch.inf)
    return out.contiguous(), lse.transpose(1, 2).contiguous()


def plain_backward(
    call: Call,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    packed: bool,
) -> list[Tensor] | None:
    """Gradients of q, k, v (or packed) where `plain` holds and copies are small, else None."""
    if q.numel() + k.numel() + v.numel() > _COPIED_INPUTS:
        return None
    found = _plain(call, q, k, v, grad, out)
    if found is None:
        return None
    if found.guarded and found.added is not None:  # exp(-inf - 0) = 0 weighs what such rows see
        lse = lse.masked_fill(lse == -torch.inf, 0.0)
    tensors = (x.transpose(1, 2) for x in (grad, q, k, v, out, lse))
    results = _backward(*tensors, 0.0, found.causal, attn_mask=found.added, scale=call.scale)
    results = [x.transpose(1, 2) for x in results]
    if found.guarded and not all_finite(results[0]):
        return None  # what is hidden may have leaked
    if not packed:
        return [x.contiguous() for x in results]
    memory = q.new_empty(*q.shape[:-2], 3, *q.shape[-2:])
    for part, x in zip(memory.unbind(-3), results, strict=True):
        part.copy_(x)  # torch.stack is slower with such strides
    return [memory]


def takes(problem: Problem) -> bool:
    """Is the fused kernel right for a call, and faster than chunks?"""
    if problem.empty or not problem.finite:
        return False
    if not fits(problem.like.device, problem.d, problem.d_v, problem.call.dropout):
        return False
    views = all(x.run for x in (problem.q, problem.k, problem.v)) and not problem.scattered
    return views or problem.n_q * problem.n_k >= LEAST_COPIED_SCORES


class _Fused:
    """A call as the fused kernel takes it: tiles, and for each what is added to its scores."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        mask, rows = problem.call.mask, problem.n_q
        plain = problem.shift is None and problem.expanded is None
        square = problem.n_q == problem.n_k
        self.causal = isinstance(mask, Causal) and mask.group == 1 and square and plain
        if self.causal or (isinstance(mask, Full) and problem.expanded is None):
            # Nothing that is as large as the scores has to be added.
            self.tiles = [Tile(slice(0, problem.n_q), slice(0, problem.n_k), whole=True)]
        else:
            if problem.n_q * problem.n_k > CHUNK_SCORES:
                rows = max(_LEAST_ROWS, CHUNK_SCORES // reach(mask, problem.n_k))
            problem.tile(rows)
            self.tiles = [tile for tile in problem.tiles if length(tile.keys)]
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def at_once(self, tokens: list[Tokens], dtype: torch.dtype) -> bool:
        """Can one call of the kernel give the whole result?"""
        problem = self.problem
        one = len(self.tiles) == 1 and not problem.bare_rows and problem.dtype == dtype
        return one and len(self.heads(self.tiles[0])) == 1 and all(x.run for x in tokens)

    def heads(self, tile: Tile) -> list[slice]:
        """Heads of one call of the kernel: their position bias is no larger than a chunk."""
        count = self.problem.heads
        if self.problem.expanded is None:
            return [slice(0, count)]
        return equal_parts(count, max(1, CHUNK_SCORES // (length(tile.rows) * length(tile.keys))))

    def blocks(self, tokens: list[Tokens], most: int) -> list[Block]:
        """Blocks of at most `most` sequences; of one stride where that pays (see `scattered`)."""
        problem = self.problem
        runs = min(x.run for x in tokens)
        most = min(most, runs) if runs and not problem.scattered else most
        if problem.shift is not None and not all(tile.whole for tile in self.tiles):
            # What keys add and what the mask hides together differ in every axis.
            largest = max(length(tile.rows) * length(tile.keys) for tile in self.tiles)
            most = min(most, CHUNK_SCORES // (problem.heads * largest))
        return blocks(tokens[0].sequence_axes, max(1, most))

    def added(self, tile: Tile, block: Block, heads: slice) -> Tensor | None:
        """What the kernel adds to the scores of a tile, broadcasting with (z, h, rows, keys)."""
        problem = self.problem
        total = None if problem.expanded is None else problem.tile_bias(tile, heads)
        if total is not None:
            total = total[None]
        if not tile.whole:
            total = self._hide(tile, block, total)
        if problem.shift is not None:
            shift = problem.shift[block.start : block.stop, heads]
            shift = select(shift, tile.keys, 3)
            total = shift if total is None else total + shift
        return total

    def _hide(self, tile: Tile, block: Block, total: Tensor | None) -> Tensor:
        if total is not None:
            return total.masked_fill(self.problem.hidden(tile, block), -torch.inf)
        found = None if tile.pattern is None else self._masks.get(tile.pattern)
        if found is None:
            zero = self.problem.like.new_zeros(())
            found = zero.masked_fill(self.problem.hidden(tile, block), -torch.inf)
            if tile.pattern is not None:
                self._masks[tile.pattern] = found
        return found


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d) and log-sum-exp (b, *grid, h), the latter empty unless asked for."""
    fused, tokens = _Fused(problem), [problem.q, problem.k, problem.v]
    at_once = fused.at_once(tokens, q.dtype)
    found = fused.blocks(tokens, problem.sequences if at_once else _most(problem))
    if at_once and len(found) == 1:
        parts, every = [x.several(found[0]) for x in tokens], slice(0, problem.heads)
        out, lse = _tile_forward(fused, fused.tiles[0], found[0], every, parts, with_lse)
        # The kernel's output has the strides of q, and so the order of the result in most layouts.
        out, lse = (_joined(problem, q, x) for x in (out, lse))
        return out, lse if with_lse else problem.like.new_empty(0)
    out = q.new_empty(q.shape)
    lse = problem.like.new_empty(q.shape[:-1] if with_lse else (0,))
    outs = problem.target(out, "out")
    lses = problem.target(lse, "lse") if with_lse else None
    for block in found:
        parts = [x.several(block) for x in tokens]
        outs.start(block, 0.0 if problem.bare_rows else None)
        if lses is not None:
            lses.start(block, -torch.inf if problem.bare_rows else None)
        for tile in fused.tiles:
            for heads in fused.heads(tile):
                o, l = _tile_forward(fused, tile, block, heads, parts, with_lse)
                outs.write(tile.rows, o, heads)
                if lses is not None:
                    lses.write(tile.rows, l, heads)
        outs.finish()
        if lses is not None:
            lses.finish()
    return out, lse


def _tile_forward(
    fused: _Fused, tile: Tile, block: Block, heads: slice, parts: list[Tensor], with_lse: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a tile. Of an empty row the kernel gives 0 for the latter."""
    q, k, v = (select(x, heads, 1) for x in parts)
    added = fused.added(tile, block, heads)
    out, lse = _forward(
        select(q, tile.rows, 2),
        select(k, tile.keys, 2),
        select(v, tile.keys, 2),
        is_causal=fused.causal,
        attn_mask=added,
        scale=fused.problem.call.scale,
    )
    if with_lse and added is not None and fused.problem.empty_rows:
        lse.masked_fill_(added.amax(-1) == -torch.inf, -torch.inf)
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
    packed: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, in this order; one of them if packed."""
    fused = _Fused(problem)
    tokens = [problem.q, problem.k, problem.v, problem.tokens(grad, "g"), problem.tokens(out, "o")]
    if problem.empty_rows:  # exp(-inf - 0) = 0 is the weight of what such rows see
        lse = lse.masked_fill(lse == -torch.inf, 0.0)
    tokens.append(problem.tokens(lse, "lse"))
    if not packed and fused.at_once(tokens, q.dtype):
        every, whole = slice(0, problem.heads), fused.blocks(tokens, problem.sequences)
        if len(whole) == 1:
            parts = [x.several(whole[0]) for x in tokens]
            found = _tile_backward(fused, fused.tiles[0], whole[0], every, parts)
            return [_joined(problem, x, dx) for x, dx in zip((q, k, v), found, strict=True)]
    if packed:
        memory = [q.new_empty(*q.shape[:-2], 3, *q.shape[-2:])]
        parts = list(memory[0].unbind(-3))
    else:
        memory = parts = [x.new_empty(x.shape) for x in (q, k, v)]
    targets = [problem.target(x, name) for x, name in zip(parts, ("dq", "dk", "dv"), strict=True)]
    for block in fused.blocks(tokens, _most(problem)):
        _block_backward(fused, block, [x.several(block) for x in tokens], targets)
    return memory


def _block_backward(
    fused: _Fused, block: Block, parts: list[Tensor], targets: list[Target]
) -> None:
    """Write the gradients of a block's q, k and v; parts are q, k, v, gradient, output and lse."""
    problem = fused.problem
    sums = None
    if len(fused.tiles) != 1:
        sums = [x.new_zeros(x.shape) for x in parts[1:3]]
    for target in targets:
        target.start(block)
    if problem.bare_rows:
        targets[0].place.zero_()
    for tile in fused.tiles:
        for heads in fused.heads(tile):
            dq, dk, dv = _tile_backward(fused, tile, block, heads, parts)
            targets[0].write(tile.rows, dq, heads)
            if sums is None:
                targets[1].write(tile.keys, dk, heads)
                targets[2].write(tile.keys, dv, heads)
            else:
                _add(select(sums[0], heads, 1), tile.keys, dk)
                _add(select(sums[1], heads, 1), tile.keys, dv)
    if sums is not None:
        for target, total in zip(targets[1:], sums, strict=True):
            target.write(slice(0, problem.n_k), total, slice(0, problem.heads))
    for target in targets:
        target.finish()


def _tile_backward(
    fused: _Fused, tile: Tile, block: Block, heads: slice, parts: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """What a tile gives to the gradients of its rows of q and its keys of k and v."""
    q, k, v, g, o, l = (select(x, heads, 1) for x in parts)
    q, g, o, l = (select(x, tile.rows, 2) for x in (q, g, o, l))
    k, v = select(k, tile.keys, 2), select(v, tile.keys, 2)
    mask, scale = fused.added(tile, block, heads), fused.problem.call.scale
    return _backward(g, q, k, v, o, l, 0.0, fused.causal, attn_mask=mask, scale=scale)


def _add(total: Tensor, keys: Index, part: Tensor) -> None:
    if isinstance(keys, slice):
        select(total, keys, 2).add_(part)
    else:
        total.index_add_(2, keys, part)


def _most(problem: Problem) -> int:
    """Sequences of a block where something is copied."""
    inputs = problem.heads * (problem.n_q + 2 * problem.n_k) * problem.q.rest[0]
    return max(1, _COPIED_INPUTS // inputs)


def _joined(problem: Problem, q: Tensor, x: Tensor) -> Tensor:
    """(sequences, h, n, ...) of all sequences -> (b, *grid, h, ...), contiguous."""
    joined = problem.call.layout.join(x.transpose(1, 2), q.shape[0], q.shape[1:-2])
    return joined.contiguous()
