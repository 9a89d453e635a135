"""Attention through `torch.nn.functional.scaled_dot_product_attention`.

The peer and the route on devices without a kernel of ours. A mask or a bias is materialised, n x n,
and layouts that are not views are copied: that is the price of a call with one layout.

It has a first derivative only. Of torch's backends MATH alone can be differentiated twice, so
create_graph=True raises here unless the other backends are switched off by the caller:

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH): ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visgen_kernels.biases import RelativePosition2d, relative_index
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Causal, Full, Mask
from visgen_kernels.masks import visible as visible_to


def attention_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: Layout,
    mask: Mask,
    key_lengths: Tensor | None,
    bias: RelativePosition2d | None,
    key_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """q, k (b, *grid, h, d), v (b, *grid, h, d_v) -> (b, *grid_q, h, d_v)."""
    batch, grid, axes = q.shape[0], q.shape[1:-2], q.ndim - 3
    qs, ks, vs = (layout.split(x, axes).transpose(1, 2) for x in (q, k, v))  # (z, h, n, d)
    n_q, n_k = qs.shape[2], ks.shape[2]
    causal = isinstance(mask, Causal) and mask.group == 1 and n_q == n_k
    plain = key_lengths is None and bias is None and key_bias is None
    if plain and (causal or isinstance(mask, Full)):
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=causal, scale=scale)
    else:
        visible = _visible(mask, key_lengths, layout, k, n_q, n_k)
        added = _added(visible, bias, key_bias, layout, axes, q.dtype)
        out = scaled_dot_product_attention(qs, ks, vs, attn_mask=added, scale=scale)
    out = layout.join(out.transpose(1, 2), batch, grid).contiguous()
    return out if _only_math() else _FirstDerivative.apply(out)


def _visible(
    mask: Mask, key_lengths: Tensor | None, layout: Layout, k: Tensor, n_q: int, n_k: int
) -> Tensor | None:
    """(z or 1, 1, n_q, n_k) bool, or None where everything is visible."""
    visible = None
    if not isinstance(mask, Full):
        seen = visible_to(mask, layout, torch.arange(n_q), torch.arange(n_k), n_k - n_q)
        samples = k.shape[0] if len(seen) > 1 else 1
        visible = seen.to(k.device).repeat(samples, 1, 1)[:, None]
    if key_lengths is not None:
        lengths = key_lengths.to(k.device).repeat_interleave(layout.sequences(k.shape[1:-2]))
        inside = torch.arange(n_k, device=k.device) < lengths[:, None, None, None]
        visible = inside.expand(-1, 1, n_q, n_k) if visible is None else inside & visible
    return visible


def _added(
    visible: Tensor | None,
    bias: RelativePosition2d | None,
    key_bias: Tensor | None,
    layout: Layout,
    axes: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """The mask argument: bool where nothing is added, else float with -inf where hidden."""
    if bias is None and key_bias is None:
        return visible
    terms = []
    if bias is not None:
        index = relative_index(bias.size, bias.table.device)
        terms.append(bias.table[index].permute(2, 0, 1)[None])
    if key_bias is not None:
        terms.append(layout.split(key_bias, axes).transpose(1, 2)[:, :, None])
    total = sum(terms[1:], terms[0]).to(dtype)
    return total if visible is None else total.masked_fill(~visible, -torch.inf)


def _only_math() -> bool:
    """Has the caller left only the backend that can be differentiated twice?"""
    cuda = torch.backends.cuda
    return not (
        cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()
    )


class _FirstDerivative(torch.autograd.Function):
    """The identity; its backward refuses to be recorded, in words, where torch would fail later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'implementation="sdpa" has no second derivative (create_graph=True was asked for); '
                'use implementation="chunked", or only the backend that has one: '
                "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."
            )
        return grads[0]
