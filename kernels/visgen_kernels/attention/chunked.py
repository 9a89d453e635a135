"""Attention in chunks of queries: the CPU implementation, for every mask, bias and layout.

Scores exist for one chunk at a time (`problem.CHUNK_SCORES` of them), so that they stay in the
cache and nothing of size n x n is held across the call. The backward pass computes the weights P
again, chunk by chunk (but see `problem.keeps_weights`):

    dV = P^T G        dP = G V^T        dS = P o (dP - rowsum(P o dP))
    dQ = scale dS K   dK = scale dS^T Q
    d key_bias = column sums of dS      d table = sums of dS along equal differences

with P o drop in dV, and drop o dP for dP, under dropout. Chunks are summed in a fixed order: two
runs give the same bits. 16-bit tensors are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Chunk, Parts, Scratch, length
from visgen_kernels.attention.gradients import InputGradients, Needs
from visgen_kernels.attention.problem import Call, Problem


def forward(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype, log-sum-exp (b, *grid, h), weights for the backward.

    The weights (outer, inner, n_q, n_k) of `problem` come before dropout. lse and weights are empty
    unless asked for.
    """
    problem = Problem(call, q, k, v, buffers=1, kept=q.new_empty(0))
    scratch = Scratch(problem.like)
    out = problem.empty(problem.n_q, problem.heads, v.shape[-1], dtype=q.dtype)
    lse = problem.empty(problem.n_q, problem.heads).fill_(-torch.inf) if with_lse else None
    outs = Parts(problem.arrange(out))
    lses = None if lse is None else Parts(problem.arrange(lse))
    kept = Parts(problem.like.new_empty(problem.scores)) if keep else None
    for chunk in problem.chunks():
        rows = length(chunk.rows)
        part = None if lses is None else scratch.array("lse", chunk.items, rows)
        memory = scratch.scores("weights", chunk) if kept is None else kept.items(chunk)
        weights = problem.softmax(chunk, memory, part)
        factors = problem.keep(chunk)
        if factors is not None:
            weights = weights * factors
        o = scratch.array("out", chunk.items, rows, v.shape[-1])
        problem.weighted_sum(weights, problem.v.take(chunk, chunk.keys), chunk, o)
        outs.put(chunk, chunk.rows, o)
        if lses is not None and part is not None:
            lses.put(chunk, chunk.rows, part)
    joined = problem.like.new_empty(0) if lse is None else problem.join(lse)
    weights = problem.like.new_empty(0) if kept is None else kept.whole
    return problem.join(out), joined, weights


def backward(
    call: Call,
    grad: Tensor,
    kept: Tensor,
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
    problem = Problem(call, q, k, v, buffers=2, kept=kept)
    scratch = Scratch(problem.like)
    grads = problem.canonical(grad)
    results = InputGradients(problem, needs, packed, (q, k, v))
    for chunk in problem.chunks():
        weights = problem.weights(chunk, scratch)
        g = grads.take(chunk, chunk.rows)
        factors = problem.keep(chunk)
        if needs.v:
            dropped = weights if factors is None else weights * factors
            results.v.add(chunk, (dropped, g))
        if not needs.scores:
            continue
        ds = scratch.scores("ds", chunk)
        torch.bmm(g, problem.v.take(chunk, chunk.keys).mT, out=ds)
        if factors is not None:
            ds.mul_(factors)
        softmax_backward(problem, chunk, ds, weights)
        if needs.q:
            dq = scratch.array("dq", chunk.items, length(chunk.rows), q.shape[-1])
            problem.weighted_sum(ds, problem.k.take(chunk, chunk.keys), chunk, dq)
            results.q.put(chunk, chunk.rows, dq, call.scale)
        if needs.k:
            results.k.add(chunk, (ds, problem.q.take(chunk, chunk.rows)), scale=call.scale)
        results.bias.add(chunk, ds)
    return results.finish()


def softmax_backward(problem: Problem, chunk: Chunk, grad: Tensor, weights: Tensor) -> None:
    """Grad becomes weights o (grad - rowsum(weights o grad)), in place."""
    if not problem.finite:
        grad.masked_fill_(problem.hidden_scores(chunk), 0.0)
    # The operator behind softmax's own derivative: one pass over both instead of three.
    torch.ops.aten._softmax_backward_data.out(grad, weights, -1, grad.dtype, grad_input=grad)
