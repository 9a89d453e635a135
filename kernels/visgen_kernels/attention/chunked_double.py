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

from visgen_kernels.attention.chunk import Chunk, Parts, Scratch, length, select
from visgen_kernels.attention.chunked import softmax_backward
from visgen_kernels.attention.gradients import InputGradients, Needs
from visgen_kernels.attention.problem import Call, Problem
from visgen_kernels.biases import expand_table


@dataclass(frozen=True)
class Cotangents:
    """Cotangents of the first backward's results; None where there is none."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    table: Tensor | None
    key_bias: Tensor | None


class _Cotangents:
    """The cotangents in the problem's canonical form."""

    def __init__(self, problem: Problem, given: Cotangents) -> None:
        def canonical(x: Tensor | None) -> Parts | None:
            return None if x is None else problem.canonical(x)

        self.q, self.k, self.v = canonical(given.q), canonical(given.k), canonical(given.v)
        self.expanded = self.shift = None
        if given.table is not None and problem.call.size is not None:
            self.expanded = expand_table(given.table, problem.call.size, problem.dtype)
        if given.key_bias is not None:
            split = problem.call.layout.split(given.key_bias.to(problem.dtype), problem.axes)
            self.shift = Parts(problem.arrange(split)[:, :, None, :])


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
    problem = Problem(call, q, k, v, buffers=4, kept=kept)
    scratch = Scratch(problem.like)
    grads = problem.canonical(grad)
    products = grads.whole * problem.canonical(out).whole
    delta = Parts(products.sum(-1, keepdim=True))  # (outer, inner, n_q, 1)
    given = _Cotangents(problem, cotangents)
    results = InputGradients(problem, needs, packed, (q, k, v))
    memory = problem.empty(problem.n_q, problem.heads, v.shape[-1], dtype=grad.dtype)
    grad_grads = Parts(problem.arrange(memory)) if needs_grad else None
    for chunk in problem.chunks():
        _add_chunk(problem, scratch, chunk, given, grads, delta, results, grad_grads)
    first = [problem.join(memory)] if needs_grad else []
    return first + results.finish()


def _add_chunk(
    problem: Problem,
    scratch: Scratch,
    chunk: Chunk,
    given: _Cotangents,
    grads: Parts,
    delta: Parts,
    results: InputGradients,
    grad_grads: Parts | None,
) -> None:
    """Everything that one chunk of scores contributes."""
    needs = results.needs
    g, v = grads.take(chunk, chunk.rows), problem.v.take(chunk, chunk.keys)
    x = None if given.v is None else given.v.take(chunk, chunk.keys)
    factors = problem.keep(chunk)
    p = problem.weights(chunk, scratch)
    n = _score_cotangent(problem, scratch, chunk, given)
    softmax_backward(problem, chunk, n, p)
    dropped_n = n if factors is None else n * factors
    if needs.v:
        results.v.add(chunk, (dropped_n, g))
    if grad_grads is not None:
        out = scratch.array("gg", chunk.items, length(chunk.rows), g.shape[-1])
        problem.weighted_sum(dropped_n, v, chunk, out)
        if x is not None:
            torch.baddbmm(out, p if factors is None else p * factors, x, out=out)
        grad_grads.put(chunk, chunk.rows, out)
    if not needs.scores:
        return

    d = scratch.scores("d", chunk)
    torch.bmm(g, v.mT, out=d)
    if factors is not None:
        d.mul_(factors)
    d.sub_(delta.take(chunk, chunk.rows))
    if not problem.finite:
        d.masked_fill_(problem.hidden_scores(chunk), 0.0)
    z = n.mul_(d)
    ds = d.mul_(p)
    if x is not None:
        r = scratch.scores("r", chunk)
        torch.bmm(g, x.mT, out=r)
        z.addcmul_(r if factors is None else r.mul_(factors), p)
    gs = z.addcmul_(p, z.sum(-1, keepdim=True), value=-1.0)
    _add_scores(problem, scratch, chunk, given, ds, gs, results)


def _add_scores(
    problem: Problem,
    scratch: Scratch,
    chunk: Chunk,
    given: _Cotangents,
    ds: Tensor,
    gs: Tensor,
    results: InputGradients,
) -> None:
    """What dS and gS of a chunk give to q, k, table and key bias."""
    needs, scale = results.needs, problem.call.scale
    if needs.q:
        out = scratch.array("gq", chunk.items, length(chunk.rows), problem.q.whole.shape[-1])
        problem.weighted_sum(gs, problem.k.take(chunk, chunk.keys), chunk, out)
        if given.k is not None:
            torch.baddbmm(out, ds, given.k.take(chunk, chunk.keys), out=out)
        results.q.put(chunk, chunk.rows, out, scale)
    if needs.k:
        pairs = [(gs, problem.q.take(chunk, chunk.rows))]
        if given.q is not None:
            pairs.append((ds, given.q.take(chunk, chunk.rows)))
        results.k.add(chunk, *pairs, scale=scale)
    results.bias.add(chunk, gs)


def _score_cotangent(
    problem: Problem, scratch: Scratch, chunk: Chunk, given: _Cotangents
) -> Tensor:
    """M (items, rows, keys): the cotangent of the scores' gradient."""
    m = scratch.scores("m", chunk)
    beta = 0.0
    if given.expanded is not None:
        heads = chunk.outer if problem.heads_outer else chunk.inner
        tile = problem.bias_tile(chunk.rows, chunk.keys, heads, given.expanded)
        if tile is not None:
            m.view(chunk.shape).copy_(tile)
            beta = 1.0
    scale = problem.call.scale
    if given.q is not None:
        u, k = given.q.take(chunk, chunk.rows), problem.k.take(chunk, chunk.keys)
        torch.baddbmm(m, u, k.mT, beta=beta, alpha=scale, out=m)
        beta = 1.0
    if given.k is not None:
        q, w = problem.q.take(chunk, chunk.rows), given.k.take(chunk, chunk.keys)
        torch.baddbmm(m, q, w.mT, beta=beta, alpha=scale, out=m)
        beta = 1.0
    if not beta:
        m.zero_()
    if given.shift is not None:
        m.add_(select(given.shift.items(chunk), chunk.keys, 2))
    return m
