"""Where the gradients of one call are summed up.

Sums over queries (k, v, key bias, table) collect what every chunk adds, in the chunks' order, so
that two runs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Chunk, Parts, Scratch, length
from visgen_kernels.attention.problem import Problem
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


class KeySums:
    """Sums over all queries, sum_i weights_ij x_i, written to target (outer, inner, n_k, d)."""

    def __init__(self, problem: Problem, target: Tensor) -> None:
        self.problem = problem
        self.target = Parts(target)
        self.scratch = Scratch(problem.like)
        self.sums: Parts | None = None
        self.d = target.shape[-1]
        self.transposed = self.d <= _TRANSPOSED_SUMS and 4 * self.d <= problem.n_k

    def add(self, chunk: Chunk, *pairs: tuple[Tensor, Tensor], scale: float = 1.0) -> None:
        """Add scale * sum of weights^T (keys, rows) @ x (rows, d) over the pairs."""
        if chunk.covers(self.problem.n_q, self.problem.n_k):
            product = self._product(chunk, pairs, scale)
            self.target.put(chunk, chunk.keys, product)
            return
        if self.sums is None:
            outer, inner, n_k, d = self.target.whole.shape
            shape = (d, n_k) if self.transposed else (n_k, d)
            self.sums = Parts(self.problem.like.new_zeros(outer, inner, *shape))
        sums = self.sums.items(chunk)
        if isinstance(chunk.keys, slice) and chunk.shape[3] == self.problem.n_k:
            for weights, x in pairs:
                first, second = (x.mT, weights) if self.transposed else (weights.mT, x)
                torch.baddbmm(sums, first, second, alpha=scale, out=sums)
            return
        # Keys of one tile are distinct, so no entry is added to twice.
        view = sums.mT if self.transposed else sums
        view[:, chunk.keys] += self._product(chunk, pairs, scale)

    def _product(
        self, chunk: Chunk, pairs: tuple[tuple[Tensor, Tensor], ...], scale: float
    ) -> Tensor:
        keys, d = length(chunk.keys), self.d
        shape = (d, keys) if self.transposed else (keys, d)
        out = self.scratch.array("product", chunk.items, *shape)
        for number, (weights, x) in enumerate(pairs):
            first, second = (x.mT, weights) if self.transposed else (weights.mT, x)
            torch.baddbmm(out, first, second, beta=float(number > 0), alpha=scale, out=out)
        return out.mT if self.transposed else out

    def finish(self) -> None:
        if self.sums is not None:
            sums = self.sums.whole
            self.target.whole.copy_(sums.mT if self.transposed else sums)


class BiasSums:
    """Sums of the scores' gradient: along equal differences (table), over queries (key bias)."""

    def __init__(self, problem: Problem, table: bool, key_bias: bool) -> None:
        self.problem = problem
        self.expanded = None
        if table and problem.call.size is not None:
            height, width = problem.call.size
            shape = (problem.heads, width, (2 * height - 1) * width)
            self.expanded = problem.like.new_zeros(shape)
        self.shift = None
        if key_bias:
            self.shift = problem.like.new_zeros(problem.outer, problem.inner, problem.n_k)
        self.tile = problem.like.new_empty(0)

    def add(self, chunk: Chunk, ds: Tensor) -> None:
        """Add the gradient of a chunk's scores (items, rows, keys)."""
        if self.shift is not None:
            sums = ds.sum(dim=1).unflatten(0, chunk.shape[:2])
            self.shift[chunk.outer, chunk.inner, chunk.keys] += sums
        if self.expanded is None or self.problem.call.size is None:
            return
        if self.problem.heads_outer:
            self._add_sequences(chunk, ds)
            if not chunk.last:
                return
            tile, heads = self.tile, chunk.together
        else:
            tile, heads = ds.view(chunk.shape).sum(dim=0), chunk.inner
        reduce_tile_bias(tile, self.expanded[heads], self.problem.call.size, chunk.rows, chunk.keys)

    def _add_sequences(self, chunk: Chunk, ds: Tensor) -> None:
        """Add to the tile's sum over sequences, (heads that are reduced together, rows, keys)."""
        start = chunk.together.start
        if chunk.inner.start == 0 and chunk.outer.start == start:
            count = chunk.together.stop - start
            self.tile = ds.new_empty(count, *chunk.shape[2:])
        heads = self.tile[chunk.outer.start - start : chunk.outer.stop - start]
        part = ds.view(chunk.shape)
        if chunk.inner.start == 0:
            torch.sum(part, dim=1, out=heads)
        else:
            heads += part.sum(dim=1)


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
        heads = problem.heads
        if packed:
            self.memory = [problem.empty(problem.n_q, 3, heads, q.shape[-1], dtype=q.dtype)]
            parts = list(self.memory[0].unbind(2))
        else:
            self.memory = parts = [
                problem.empty(n if needed else 0, heads, x.shape[-1], dtype=x.dtype)
                for n, x, needed in (
                    (problem.n_q, q, needs.q),
                    (problem.n_k, k, needs.k),
                    (problem.n_k, v, needs.v),
                )
            ]
        self.q = Parts(problem.arrange(parts[0]))
        self.k = KeySums(problem, problem.arrange(parts[1]))
        self.v = KeySums(problem, problem.arrange(parts[2]))
        self.bias = BiasSums(problem, needs.table, needs.key_bias)

    def finish(self) -> list[Tensor]:
        """The needed gradients in the user's layout: q (or packed), k, v, table, key bias."""
        self.k.finish()
        self.v.finish()
        problem, call = self.problem, self.problem.call
        results = []
        if self.packed:
            results.append(problem.join(self.memory[0]))
        else:
            needed = (self.needs.q, self.needs.k, self.needs.v)
            for number, (memory, wanted) in enumerate(zip(self.memory, needed, strict=True)):
                if wanted:
                    results.append(problem.join(memory, of_keys=number > 0))
        if self.bias.expanded is not None and call.table is not None and call.size is not None:
            table = reduce_expanded(self.bias.expanded, call.size)
            results.append(table.to(call.table.dtype))
        if self.bias.shift is not None and call.key_bias is not None:
            shift = self.bias.shift  # (outer, inner, n_k)
            shift = shift.permute(1, 2, 0) if problem.heads_outer else shift.transpose(1, 2)
            results.append(problem.join(shift, of_keys=True).to(call.key_bias.dtype))
        return results
