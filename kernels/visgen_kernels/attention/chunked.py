"""Attention in chunks of queries: the CPU implementation, for every mask, bias and layout.

Scores exist for one chunk at a time (`problem.CHUNK_SCORES` of them), so that they stay in the
cache and nothing of size n x n is held across the call. The backward pass computes the weights P
again, chunk by chunk:

    dV = P^T G        dP = G V^T        dS = P o (dP - rowsum(P o dP))
    dQ = scale dS K   dK = scale dS^T Q
    d key_bias = column sums of dS      d table = sums of dS along equal differences

with P o drop in dV, and drop o dP for dP, under dropout. Chunks are summed in a fixed order: two
runs give the same bits. 16-bit tensors are computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention.problem import Call, Chunk, Problem, Scratch, length, put, take
from visgen_kernels.biases import reduce_expanded, reduce_tile_rows

# Up to this head dimension it is faster to sum over queries with the small matrix first:
# (d x rows)(rows x keys) instead of (keys x rows)(rows x d).
_TRANSPOSED_SUMS = 32


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


def forward(call: Call, q: Tensor, k: Tensor, v: Tensor, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype; log-sum-exp (b, *grid, h), empty unless asked for."""
    problem = Problem(call, q, k, v)
    scratch = Scratch(problem)
    out = problem.empty(problem.n_q, problem.heads, v.shape[-1], dtype=q.dtype)
    lse = problem.empty(problem.n_q if with_lse else 0, problem.heads)
    outs = problem.arrange(problem.zeros_if_partial(out))
    lses = problem.arrange(problem.zeros_if_partial(lse, -torch.inf))
    for chunk in problem.chunks(buffers=1):
        rows = length(chunk.rows)
        part = scratch.array("lse", chunk.items, rows) if with_lse else None
        weights = problem.weights(chunk, scratch.scores("weights", chunk), part)
        keep = problem.keep(chunk)
        if keep is not None:
            weights.mul_(keep)
        o = scratch.array("out", chunk.items, rows, v.shape[-1])
        problem.weighted_sum(weights, take(problem.v, chunk, chunk.keys), chunk, o)
        put(outs, chunk, chunk.rows, o)
        if part is not None:
            put(lses, chunk, chunk.rows, part)
    return problem.join(out), problem.join(lse) if with_lse else lse.view(-1)


def backward(
    call: Call, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, needs: Needs, packed: bool
) -> list[Tensor]:
    """Gradients of q, k, v, table, key bias: those needed, in this order, in their tensors' dtypes.

    packed: q, k and v are views of one (b, *grid, 3, h, d) tensor, whose gradient is one tensor.
    """
    problem = Problem(call, q, k, v)
    scratch = Scratch(problem)
    grads = problem.canonical(grad)
    results = InputGradients(problem, needs, packed, (q, k, v))
    for chunk in problem.chunks(buffers=2):
        weights = problem.weights(chunk, scratch.scores("weights", chunk))
        g = take(grads, chunk, chunk.rows)
        keep = problem.keep(chunk)
        if needs.v:
            dropped = weights if keep is None else weights * keep
            results.v.add(chunk, (dropped, g))
        if not needs.scores:
            continue
        ds = scratch.scores("ds", chunk)
        torch.bmm(g, take(problem.v, chunk, chunk.keys).mT, out=ds)
        if keep is not None:
            ds.mul_(keep)
        softmax_backward(problem, chunk, ds, weights)
        if needs.q:
            dq = scratch.array("dq", chunk.items, length(chunk.rows), q.shape[-1])
            problem.weighted_sum(ds, take(problem.k, chunk, chunk.keys), chunk, dq)
            put(results.q, chunk, chunk.rows, dq, call.scale)
        if needs.k:
            results.k.add(chunk, (ds, take(problem.q, chunk, chunk.rows)), scale=call.scale)
        results.bias.add(chunk, ds)
    return results.finish()


def softmax_backward(problem: Problem, chunk: Chunk, grad: Tensor, weights: Tensor) -> None:
    """Grad becomes weights o (grad - rowsum(weights o grad)), in place."""
    if not problem.finite:
        grad.masked_fill_(problem.hidden_scores(chunk), 0.0)
    # The operator behind softmax's own derivative: one pass over both instead of three.
    torch.ops.aten._softmax_backward_data.out(grad, weights, -1, grad.dtype, grad_input=grad)


class KeySums:
    """Sums over all queries, sum_i weights_ij x_i, written to target (outer, inner, n_k, d)."""

    def __init__(self, problem: Problem, target: Tensor) -> None:
        self.problem = problem
        self.target = target
        self.scratch = Scratch(problem)
        self.sums: Tensor | None = None
        self.transposed = target.shape[-1] <= _TRANSPOSED_SUMS

    def add(self, chunk: Chunk, *pairs: tuple[Tensor, Tensor], scale: float = 1.0) -> None:
        """Add scale * sum of weights^T (keys, rows) @ x (rows, d) over the pairs."""
        whole = length(chunk.keys) == self.problem.n_k
        if whole and length(chunk.rows) == self.problem.n_q:
            product = self._product(chunk, pairs, scale)
            put(self.target, chunk, chunk.keys, product)
            return
        if self.sums is None:
            outer, inner, n_k, d = self.target.shape
            shape = (d, n_k) if self.transposed else (n_k, d)
            self.sums = self.problem.q.new_zeros(outer, inner, *shape)
        sums = self.sums[chunk.outer, chunk.inner]
        if whole and isinstance(chunk.keys, slice):
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
        keys, d = length(chunk.keys), self.target.shape[-1]
        shape = (d, keys) if self.transposed else (keys, d)
        out = self.scratch.array("product", chunk.items, *shape)
        for number, (weights, x) in enumerate(pairs):
            first, second = (x.mT, weights) if self.transposed else (weights.mT, x)
            torch.baddbmm(out, first, second, beta=float(number > 0), alpha=scale, out=out)
        return out.mT if self.transposed else out

    def finish(self) -> None:
        if self.sums is not None:
            self.target.copy_(self.sums.mT if self.transposed else self.sums)


class BiasSums:
    """Sums of the scores' gradient: along equal differences (table), over queries (key bias)."""

    def __init__(self, problem: Problem, table: bool, key_bias: bool) -> None:
        self.problem = problem
        self.expanded = None
        if table and problem.expanded is not None:
            self.expanded = torch.zeros_like(problem.expanded)
        self.shift = None
        if key_bias:
            self.shift = problem.q.new_zeros(problem.outer, problem.inner, problem.n_k)
        self.tile: Tensor | None = None

    def add(self, chunk: Chunk, ds: Tensor) -> None:
        """Add the gradient of a chunk's scores (items, rows, keys)."""
        if self.shift is not None:
            self.shift[chunk.outer, chunk.inner][:, chunk.keys] += ds.sum(dim=1)
        if self.expanded is None or self.problem.call.size is None:
            return
        if not self.problem.heads_outer:  # the items are heads: each has its own table
            tile, heads = ds, chunk.inner
        else:
            tile, heads = self._tile(chunk, ds), slice(chunk.outer, chunk.outer + 1)
        if tile is not None:
            reduce_tile_rows(
                tile, self.expanded[heads], self.problem.call.size, chunk.rows, chunk.keys
            )

    def _tile(self, chunk: Chunk, ds: Tensor) -> Tensor | None:
        """The tile's sum over sequences, (1, rows, keys), once its last chunk has come."""
        part = ds.sum(dim=0, keepdim=True) if chunk.items > 1 else ds
        if chunk.first_of_tile:
            self.tile = part if chunk.last_of_tile or chunk.items > 1 else part.clone()
        elif self.tile is not None:
            self.tile += part
        return self.tile if chunk.last_of_tile else None


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
        for memory in self.memory:
            problem.zeros_if_partial(memory)
        self.q = problem.arrange(parts[0])
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
