"""Second backward pass of chunked attention, in closed form.

With G the gradient of the output and U, W, X, Y, y the cotangents of dQ, dK, dV, of the bias and of
the key bias, a the scale, and F the dropout factors (1 without dropout):

    M = a (U K^T + Q W^T) + Y + y      N = P o (M - rowsum(P o M))      R = F o (G X^T)
    D = F o (G V^T) - rowsum(G o O)    dS = P o D
    Z = D o N + P o R                  gS = Z - P o rowsum(Z)
    gG = (F o N) V + (F o P) X         gV = (F o N)^T G
    gQ = a (dS W + gS K)               gK = a (dS^T U + gS^T Q)
    g table = sums of gS along equal differences            g key_bias = column sums of gS

which is the derivative through q, k, v, table and key bias in full: the saved output counts as a
function of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention import single
from visgen_kernels.attention.chunk import Block, Chunk, Target, Tokens, select
from visgen_kernels.attention.chunked import softmax_backward
from visgen_kernels.attention.gradients import Cotangents, InputGradients, Needs
from visgen_kernels.attention.problem import Call, Loaded, Problem, part
from visgen_kernels.biases import expand_table


@dataclass(slots=True, eq=False)
class _Given:
    """What belongs to a block beside q, k and v: gradient, rowsum(G o O), cotangents."""

    g: Tensor  # (items, n_q, d_v)
    delta: Tensor  # (items, n_q, 1)
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    table: Tensor | None  # expanded, of all blocks alike
    shift: Tensor | None  # (items, 1, n_k)


class _Cotangents:
    """Gradient and cotangents by blocks."""

    def __init__(self, problem: Problem, given: Cotangents, grad: Tensor, out: Tensor) -> None:
        def tokens(x: Tensor | None, name: str) -> Tokens | None:
            return None if x is None else problem.tokens(x, name)

        self.g, self.out = problem.tokens(grad, "g"), problem.tokens(out, "o")
        self.q, self.k, self.v = tokens(given.q, "u"), tokens(given.k, "w"), tokens(given.v, "x")
        self.table = self.shift = None
        if given.table is not None and problem.call.size is not None:
            self.table = expand_table(given.table, problem.call.size, problem.dtype)
        if given.key_bias is not None:
            split = problem.call.layout.split(given.key_bias.to(problem.dtype), problem.axes)
            self.shift = split.transpose(1, 2).contiguous()[:, :, None]

    def load(self, block: Block) -> _Given:
        """Of one block."""
        g, shift = self.g.load(block), None
        delta = (g * self.out.load(block)).sum(-1, keepdim=True)
        if self.shift is not None:
            shift = block.part(self.shift)
        q, k, v = (None if x is None else x.load(block) for x in (self.q, self.k, self.v))
        return _Given(g, delta, q, k, v, self.table, shift)


def double_backward(
    call: Call,
    cotangents: Cotangents,
    grad: Tensor,
    out: Tensor,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    needs_grad: bool,
    needs: Needs,
    packed: bool,
) -> list[Tensor]:
    """Gradients of grad, q (or packed), k, v, table, key bias: those needed, in this order."""
    if kept.ndim == 4 and single.takes(call, q, k, v):
        found = single.double_backward(
            call,
            cotangents,
            grad,
            out,
            kept,
            q,
            k,
            v,
            needs_grad=needs_grad,
            needs=needs,
            packed=packed,
        )
        if found is not None:
            return found
    problem = Problem(call, q, k, v, buffers=4, kept=kept)
    memory = grad.new_empty(grad.shape if needs_grad else (0,))
    first = [memory] if needs_grad else []
    results = InputGradients(problem, needs, packed, (q, k, v))
    if problem.empty:
        memory.zero_()
        return first + results.finish()
    given = _Cotangents(problem, cotangents, grad, out)
    grad_grads = None
    if needs_grad:
        grad_grads = problem.target(memory, "gg")
    for block in problem.blocks():
        loaded, here = problem.load(block), given.load(block)
        results.open(block)
        if grad_grads is not None:
            grad_grads.open(block, zero=problem.bare_rows)
        for chunk in problem.chunks(block):
            _add_chunk(problem, loaded, here, chunk, results, grad_grads)
        results.close()
        if grad_grads is not None:
            grad_grads.close()
    return first + results.finish()


def _add_chunk(
    problem: Problem,
    loaded: Loaded,
    given: _Given,
    chunk: Chunk,
    results: InputGradients,
    grad_grads: Target | None,
) -> None:
    """Everything that one chunk of scores contributes."""
    needs, scratch = results.needs, problem.scratch
    g, v = part(given.g, chunk, chunk.rows), part(loaded.v, chunk, chunk.keys)
    x = None if given.v is None else part(given.v, chunk, chunk.keys)
    factors = problem.keep(loaded, chunk)
    p = problem.weights(loaded, chunk)
    n = _score_cotangent(problem, loaded, given, chunk)
    softmax_backward(problem, loaded, chunk, n, p)
    dropped_n = n if factors is None else n * factors
    if needs.v:
        results.v.add(chunk, (dropped_n, g))
    if grad_grads is not None:
        out = grad_grads.room(chunk, chunk.rows)
        problem.weighted_sum(dropped_n, v, loaded, chunk, out)
        if x is not None:
            torch.baddbmm(out, p if factors is None else p * factors, x, out=out)
        grad_grads.put(chunk, chunk.rows, out)
    if not needs.scores:
        return

    d = scratch.scores("d", chunk)
    torch.bmm(g, v.mT, out=d)
    if factors is not None:
        d.mul_(factors)
    d.sub_(part(given.delta, chunk, chunk.rows))
    if not problem.finite:
        d.masked_fill_(problem.hidden_scores(loaded, chunk), 0.0)
    z = n.mul_(d)
    ds = d.mul_(p)
    if x is not None:
        r = scratch.scores("r", chunk)
        torch.bmm(g, x.mT, out=r)
        z.addcmul_(r if factors is None else r.mul_(factors), p)
    gs = z.addcmul_(p, z.sum(-1, keepdim=True), value=-1.0)
    _add_scores(problem, loaded, given, chunk, ds, gs, results)


def _add_scores(
    problem: Problem,
    loaded: Loaded,
    given: _Given,
    chunk: Chunk,
    ds: Tensor,
    gs: Tensor,
    results: InputGradients,
) -> None:
    """What dS and gS of a chunk give to q, k, table and key bias."""
    needs, scale = results.needs, problem.call.scale
    if needs.q:
        out = results.q.room(chunk, chunk.rows)
        k = part(loaded.k, chunk, chunk.keys)
        problem.weighted_sum(gs, k, loaded, chunk, out, scale)
        if given.k is not None:
            w = part(given.k, chunk, chunk.keys)
            torch.baddbmm(out, ds, w, alpha=scale, out=out)
        results.q.put(chunk, chunk.rows, out)
    if needs.k:
        pairs = [(gs, part(loaded.q, chunk, chunk.rows))]
        if given.q is not None:
            pairs.append((ds, part(given.q, chunk, chunk.rows)))
        results.k.add(chunk, *pairs, scale=scale)
    results.bias.add(loaded.block, chunk, gs)


def _score_cotangent(problem: Problem, loaded: Loaded, given: _Given, chunk: Chunk) -> Tensor:
    """M (items, rows, keys): the cotangent of the scores' gradient."""
    m = problem.scratch.scores("m", chunk)
    beta, scale = 0.0, problem.call.scale
    if given.table is not None:
        problem.add_bias(chunk, given.table, m)
        beta = 1.0
    if given.q is not None:
        u, k = part(given.q, chunk, chunk.rows), part(loaded.k, chunk, chunk.keys)
        torch.baddbmm(m, u, k.mT, beta=beta, alpha=scale, out=m)
        beta = 1.0
    if given.k is not None:
        q, w = part(loaded.q, chunk, chunk.rows), part(given.k, chunk, chunk.keys)
        torch.baddbmm(m, q, w.mT, beta=beta, alpha=scale, out=m)
        beta = 1.0
    if not beta:
        m.zero_()
    if given.shift is not None:
        shift = given.shift if chunk.count == given.shift.shape[0] else given.shift[chunk.items]
        m.add_(select(shift, chunk.keys, 2))
    return m
