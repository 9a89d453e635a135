"""Where the gradients of one call are summed up.

Sums over queries (k, v, key bias, table) collect what every chunk adds, in the chunks' order, so
that two runs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Block, Chunk, Target, length, select
from visgen_kernels.attention.problem import Loaded, Problem
from visgen_kernels.biases import reduce_expanded, reduce_tile_bias

# Up to this head dimension it is faster to sum over queries with the small matrix first:
# (d x rows)(rows x keys) instead of (keys x rows)(rows x d), measured up to 4 times.
_TRANSPOSED_SUMS = 16


@dataclass(frozen=True)
class Needs:
    """Which gradients are asked for."""

    q: bool
    k: bool
    v: bool
    table: bool
    key_bias: bool

    @property
    def scores(self) -> bool:
        """Is the gradient of the scores needed at all?"""
        return self.q or self.k or self.table or self.key_bias


@dataclass(frozen=True)
class Cotangents:
    """Cotangents of the first backward's results; None where there is none."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    table: Tensor | None
    key_bias: Tensor | None


class KeySums:
    """Sums over all queries of a block, sum_i weights_ij x_i, written to a target of keys."""

    def __init__(self, problem: Problem, target: Target) -> None:
        self.problem, self.target = problem, target
        self.d = target.rest[0]
        self.transposed = self.d <= _TRANSPOSED_SUMS and 4 * self.d <= problem.n_k
        self.sums: Tensor | None = None

    def open(self, block: Block) -> None:
        """Start a block."""
        self.target.open(block)
        self.sums, self.block, self.written = None, block, False

    def add(self, chunk: Chunk, *pairs: tuple[Tensor, Tensor], scale: float = 1.0) -> None:
        """Add scale * sum of weights^T (keys, rows) @ x (rows, d) over the pairs."""
        problem = self.problem
        if chunk.covers(problem.n_q, problem.n_k):
            room = None if self.transposed else self.target.room(chunk, chunk.keys)
            self.target.put(chunk, chunk.keys, self._product(chunk, pairs, scale, room))
            self.written = True
            return
        if self.sums is None:
            shape = (self.d, problem.n_k) if self.transposed else (problem.n_k, self.d)
            heads = self.block.heads(problem.heads)
            items = self.block.count * (heads.stop - heads.start)
            self.sums = problem.scratch.array(f"{self.target.name} sums", items, *shape).zero_()
        sums = self.sums if chunk.count == self.sums.shape[0] else self.sums[chunk.items]
        if isinstance(chunk.keys, slice):  # a run of keys has the strides of a matrix
            place = select(sums, chunk.keys, 2 if self.transposed else 1)
            for weights, x in pairs:
                first, second = (x.mT, weights) if self.transposed else (weights.mT, x)
                torch.baddbmm(place, first, second, alpha=scale, out=place)
            return
        # Keys of one tile are distinct, so no entry is added to twice.
        view = sums.mT if self.transposed else sums
        view[:, chunk.keys] += self._product(chunk, pairs, scale, None)

    def _product(
        self,
        chunk: Chunk,
        pairs: tuple[tuple[Tensor, Tensor], ...],
        scale: float,
        out: Tensor | None,
    ) -> Tensor:
        keys, d = length(chunk.keys), self.d
        if out is None:
            shape = (d, keys) if self.transposed else (keys, d)
            out = self.problem.scratch.array("product", chunk.count, *shape)
        for number, (weights, x) in enumerate(pairs):
            first, second = (x.mT, weights) if self.transposed else (weights.mT, x)
            torch.baddbmm(out, first, second, beta=float(number > 0), alpha=scale, out=out)
        return out.mT if self.transposed else out

    def close(self) -> None:
        """End the block: the target holds the sums."""
        if self.sums is not None:
            self.target.part.copy_(self.sums.mT if self.transposed else self.sums)
        elif not self.written:  # no chunk at all
            self.target.part.zero_()
        self.target.close()


class BiasSums:
    """Sums of the scores' gradient: along equal differences (table), over queries (key bias)."""

    def __init__(self, problem: Problem, table: bool, key_bias: bool) -> None:
        self.problem = problem
        self.expanded = self.square = self.shift = None
        if table and problem.call.size is not None:
            height, width = problem.call.size
            shape = (problem.heads, width, (2 * height - 1) * width)
            self.expanded = problem.like.new_zeros(shape)
        if key_bias:
            sequences, heads, _, n_k = problem.scores
            self.shift = problem.like.new_zeros(sequences, heads, n_k)

    def add(self, block: Block, chunk: Chunk, ds: Tensor) -> None:
        """Add the gradient of a chunk's scores (items, rows, keys)."""
        if self.shift is not None:
            shift = block.part(self.shift)
            shift = shift if chunk.count == shift.shape[0] else shift[chunk.items]
            if isinstance(chunk.keys, slice):
                select(shift, chunk.keys, 1).add_(ds.sum(dim=1))
            else:
                shift[:, chunk.keys] += ds.sum(dim=1)
        if self.expanded is None or self.problem.call.size is None:
            return
        if len(self.problem.tiles) == 1:
            self._add_square(chunk, ds)
            return
        tile = ds if chunk.shape[0] == 1 else ds.view(chunk.shape).sum(dim=0)
        expanded = self.expanded[chunk.heads]
        reduce_tile_bias(tile, expanded, self.problem.call.size, chunk.rows, chunk.keys)

    def _add_square(self, chunk: Chunk, ds: Tensor) -> None:
        """Sum over sequences first where one tile holds all scores: heads * n_q * n_k numbers."""
        if self.square is None:
            self.square = ds.new_zeros(self.problem.heads, *chunk.shape[2:])
            self.tile = (chunk.rows, chunk.keys)
        if chunk.shape[0] == 1:
            self.square[chunk.heads].add_(ds)
        else:
            self.square[chunk.heads].add_(ds.view(chunk.shape).sum(dim=0))

    def table(self) -> Tensor | None:
        """The table's gradient ((2h-1)(2w-1), heads)."""
        size = self.problem.call.size
        if self.expanded is None or size is None:
            return None
        if self.square is not None:
            reduce_tile_bias(self.square, self.expanded, size, *self.tile)
        return reduce_expanded(self.expanded, size)


class InputGradients:
    """Memory for the gradients of one call, and what is summed into it."""

    def __init__(
        self,
        problem: Problem,
        needs: Needs,
        packed: bool,
        tensors: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        self.problem, self.needs, self.packed = problem, needs, packed
        q, k, v = tensors
        if packed:
            self.memory = [q.new_empty(*q.shape[:-2], 3, *q.shape[-2:])]
            parts = list(self.memory[0].unbind(-3))
        else:
            wanted = ((q, needs.q), (k, needs.k), (v, needs.v))
            self.memory = parts = [
                x.new_empty(x.shape if needed else (0,) * x.ndim) for x, needed in wanted
            ]
        if problem.empty:
            for memory in self.memory:
                memory.zero_()
        targets = [
            problem.target(x if x.numel() or problem.empty else like, name)
            for x, like, name in zip(parts, tensors, ("dq", "dk", "dv"), strict=True)
        ]
        self.q = targets[0]
        self.k, self.v = KeySums(problem, targets[1]), KeySums(problem, targets[2])
        self.bias = BiasSums(problem, needs.table, needs.key_bias)

    def open(self, block: Block) -> None:
        """Start a block of sequences."""
        if self.needs.q:
            self.q.open(block, zero=self.problem.bare_rows)
        if self.needs.k:
            self.k.open(block)
        if self.needs.v:
            self.v.open(block)

    def close(self) -> None:
        """End the block."""
        if self.needs.q:
            self.q.close()
        if self.needs.k:
            self.k.close()
        if self.needs.v:
            self.v.close()

    def put_q(self, loaded: Loaded, chunk: Chunk, ds: Tensor, k: Tensor, scale: float) -> None:
        """Gradient rows scale * dS K of the chunk's queries."""
        room = self.q.room(chunk, chunk.rows)
        self.problem.weighted_sum(ds, k, loaded, chunk, room, scale)
        self.q.put(chunk, chunk.rows, room)

    def finish(self) -> list[Tensor]:
        """The needed gradients in the user's layout: q (or packed), k, v, table, key bias."""
        call = self.problem.call
        results = []
        if self.packed:
            results.append(self.memory[0])
        else:
            needed = (self.needs.q, self.needs.k, self.needs.v)
            results += [x for x, wanted in zip(self.memory, needed, strict=True) if wanted]
        table = self.bias.table()
        if table is not None and call.table is not None:
            results.append(table.to(call.table.dtype))
        if self.bias.shift is not None and call.key_bias is not None:
            shift = self.bias.shift.transpose(1, 2)  # (sequences, n_k, heads)
            grid = call.key_bias.shape[1:-1]
            joined = call.layout.join(shift, call.key_bias.shape[0], grid).contiguous()
            results.append(joined.to(call.key_bias.dtype))
        return results
