"""The definition of attention, dense, in any float dtype.

    s_ij = scale * q_i . k_j + key_bias_j + b[rel(i, j), head]     where i may see j
    p_i  = softmax of s_i over the visible keys
    o_i  = sum_j p_ij * drop_ij * v_j           lse_i = log sum_j exp s_ij

A query that sees nothing gives o = 0 and lse = -inf. What a hidden key holds, NaN included, has no
influence. Plain autograd differentiates it, as often as one likes; it holds n x n scores, so it is
the yardstick of tests and not for use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_kernels.biases import RelativePosition2d, relative_index
from visgen_kernels.dropout import keep_factors
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Full, Mask
from visgen_kernels.masks import visible as visible_to


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: Layout,
    mask: Mask,
    key_lengths: Tensor | None = None,
    bias: RelativePosition2d | None = None,
    key_bias: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q, k (b, *grid, h, d), v (b, *grid, h, d_v) -> out (b, *grid_q, h, d_v), lse (b, *grid_q, h).

    Computed in the tensors' own dtype. Arguments as in `visgen_kernels.attention`.
    """
    batch, grid, axes = q.shape[0], q.shape[1:-2], q.ndim - 3
    qs, ks, vs = (layout.split(x, axes).transpose(1, 2) for x in (q, k, v))  # (z, h, n, d)
    n_q, n_k = qs.shape[2], ks.shape[2]
    j = torch.arange(n_k, device=q.device)
    visible = torch.ones(qs.shape[0], 1, n_q, n_k, dtype=torch.bool, device=q.device)
    if not isinstance(mask, Full):
        seen = visible_to(mask, layout, torch.arange(n_q), torch.arange(n_k), n_k - n_q)
        samples = batch if len(seen) > 1 else 1
        visible = visible & seen.to(q.device).repeat(samples, 1, 1)[:, None]
    if key_lengths is not None:
        lengths = key_lengths.repeat_interleave(layout.sequences(k.shape[1:-2]))
        visible = visible & (j < lengths.to(q.device)[:, None, None, None])
    scores = scale * (qs @ ks.mT)
    if bias is not None:
        index = relative_index(bias.size, q.device)
        scores = scores + bias.table.to(q.dtype)[index].permute(2, 0, 1)
    if key_bias is not None:
        shift = layout.split(key_bias, axes).transpose(1, 2)[:, :, None]  # (z, h, 1, n)
        visible = visible & (shift != -torch.inf)
        scores = scores + shift.masked_fill(shift == -torch.inf, 0.0).to(q.dtype)
    weights, lse = _softmax(scores.masked_fill(~visible, -torch.inf))
    if dropout:
        weights = weights * _keep(weights, seed, dropout)
    out = _weighted_sum(weights, vs, visible)
    return (
        layout.join(out.transpose(1, 2), batch, grid).contiguous(),
        layout.join(lse.transpose(1, 2), batch, grid).contiguous(),
    )


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis and its log-sum-exp; a row of -inf gives zeros and -inf."""
    top = scores.detach().amax(dim=-1, keepdim=True)
    empty = top == -torch.inf
    weights = (scores - top.masked_fill(empty, 0.0)).exp()
    total = weights.sum(dim=-1, keepdim=True).masked_fill(empty, 1.0)
    lse = (total.log() + top).squeeze(-1)
    return weights / total, lse


def _keep(weights: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    if seed is None:
        raise ValueError("dropout > 0 wants a seed (an int64 tensor of one element).")
    z, h, n_q, n_k = weights.shape
    sequences, rows, keys = (torch.arange(n, device=weights.device) for n in (z * h, n_q, n_k))
    factors = keep_factors(int(seed), sequences, rows, keys, dropout, weights.dtype)
    return factors.view(z, h, n_q, n_k)


def _weighted_sum(weights: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Weights @ v, where what is hidden has no influence even if it is not finite."""
    if v.is_meta or bool(v.isfinite().all()):
        return weights @ v
    terms = weights[..., None] * v[:, :, None]  # (z, h, n_q, n_k, d)
    return terms.masked_fill(~visible[..., None], 0.0).sum(dim=-2)
