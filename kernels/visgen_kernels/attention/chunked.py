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

from visgen_kernels.attention import fused_cpu, single
from visgen_kernels.attention.chunk import Chunk
from visgen_kernels.attention.gradients import InputGradients, Needs
from visgen_kernels.attention.problem import Call, Loaded, Problem, all_finite, part


def forward(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (b, *grid, h, d_v) in q's dtype, log-sum-exp (b, *grid, h), weights for the backward.

    The weights (sequences, heads, n_q, n_k) come before dropout. lse and weights are empty unless
    asked for.
    """
    none = q.new_empty(0)
    if keep and single.takes(call, q, k, v):
        results = single.forward(call, q, k, v, with_lse=with_lse)
        if results is not None:
            return results
    answer = None if keep else fused_cpu.plain(call, q, k, v, with_lse=with_lse)
    if answer is not None:
        return *answer, none
    problem = Problem(call, q, k, v, buffers=1, kept=none, trusting=True)
    results = _forward(problem, q, k, v, with_lse=with_lse, keep=keep)
    if problem.guarded and not all_finite(results[0]):
        # What is hidden may have leaked, as 0 * NaN. That always shows: only then is it looked for.
        problem = Problem(call, q, k, v, buffers=1, kept=none)
        if not problem.finite:
            return _forward(problem, q, k, v, with_lse=with_lse, keep=keep)
    return results


def _forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not keep and fused_cpu.takes(problem):
        out, lse = fused_cpu.forward(problem, q, k, v, with_lse=with_lse)
        return out, lse, problem.like.new_empty(0)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    lse = problem.like.new_empty(q.shape[:-1] if with_lse else (0,))
    kept = problem.like.new_empty(problem.scores if keep else (0,))
    if problem.empty:
        return out.zero_(), lse.fill_(-torch.inf), kept.zero_()
    outs = problem.target(out, "out")
    lses = problem.target(lse, "lse") if with_lse else None
    for block in problem.blocks():
        loaded = problem.load(block)
        outs.open(block, zero=problem.bare_rows)
        if lses is not None:
            lses.open(block)
            lses.part.fill_(-torch.inf)
        weights = problem.kept_part(kept, block) if keep else None
        for chunk in problem.chunks(block):
            if weights is None:
                memory = problem.scratch.scores("weights", chunk)
            else:
                memory = part(weights, chunk, chunk.rows)
            room = None if lses is None else lses.room(chunk, chunk.rows)
            p = problem.softmax(loaded, chunk, memory, room)
            factors = problem.keep(loaded, chunk)
            if factors is not None:
                p = p * factors
            o = outs.room(chunk, chunk.rows)
            problem.weighted_sum(p, part(loaded.v, chunk, chunk.keys), loaded, chunk, o)
            outs.put(chunk, chunk.rows, o)
            if lses is not None and room is not None:
                lses.put(chunk, chunk.rows, room)
        outs.close()
        if lses is not None:
            lses.close()
    return out, lse, kept


def backward(
    call: Call,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
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
    if lse.numel() and kept.ndim != 4 and not (needs.table or needs.key_bias):
        found = _fused_backward(call, grad, out, lse, q, k, v, packed=packed)
        if found is not None:
            wanted = (needs.q,) if packed else (needs.q, needs.k, needs.v)
            return [x for x, needed in zip(found, wanted, strict=True) if needed]
    if kept.ndim == 4 and single.takes(call, q, k, v):
        found = single.backward(call, grad, kept, q, k, v, needs=needs, packed=packed)
        if found is not None:
            return found
    problem = Problem(call, q, k, v, buffers=2, kept=kept)
    grads = problem.tokens(grad, "g")
    results = InputGradients(problem, needs, packed, (q, k, v))
    for block in problem.blocks():
        loaded, g = problem.load(block), grads.load(block)
        results.open(block)
        for chunk in problem.chunks(block):
            _add_chunk(problem, loaded, g, chunk, results)
        results.close()
    return results.finish()


def _fused_backward(
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
    """Gradients of q, k, v (or packed) by torch's kernel; None if it cannot, or NaN has leaked."""
    found = fused_cpu.plain_backward(call, grad, out, lse, q, k, v, packed=packed)
    if found is not None:
        return found
    problem = Problem(call, q, k, v, buffers=2, kept=q.new_empty(0), trusting=True)
    if not fused_cpu.takes(problem):
        return None
    found = fused_cpu.backward(problem, grad, out, lse, q, k, v, packed=packed)
    # What is hidden leaks into the gradient of q wherever it leaks.
    leaked = problem.guarded and not all_finite(found[0]) and not all_finite(k, v)
    return None if leaked else found


def _add_chunk(
    problem: Problem, loaded: Loaded, grad: Tensor, chunk: Chunk, results: InputGradients
) -> None:
    """Everything that one chunk of scores contributes."""
    needs, scale = results.needs, problem.call.scale
    weights = problem.weights(loaded, chunk)
    g = part(grad, chunk, chunk.rows)
    factors = problem.keep(loaded, chunk)
    if needs.v:
        results.v.add(chunk, (weights if factors is None else weights * factors, g))
    if not needs.scores:
        return
    ds = problem.scratch.scores("ds", chunk)
    torch.bmm(g, part(loaded.v, chunk, chunk.keys).mT, out=ds)
    if factors is not None:
        ds.mul_(factors)
    softmax_backward(problem, loaded, chunk, ds, weights)
    if needs.q:
        results.put_q(loaded, chunk, ds, part(loaded.k, chunk, chunk.keys), scale)
    if needs.k:
        results.k.add(chunk, (ds, part(loaded.q, chunk, chunk.rows)), scale=scale)
    results.bias.add(loaded.block, chunk, ds)


def softmax_backward(
    problem: Problem, loaded: Loaded, chunk: Chunk, grad: Tensor, weights: Tensor
) -> None:
    """Grad becomes weights o (grad - rowsum(weights o grad)), in place."""
    if not problem.finite:
        grad.masked_fill_(problem.hidden_scores(loaded, chunk), 0.0)
    single.softmax_backward(grad, weights)
