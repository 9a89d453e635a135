"""`attention` as models call it, and the rule that picks an implementation."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal, overload

import torch
from torch import Tensor

from visgen_kernels.attention import fused_cpu
from visgen_kernels.attention.op import call_attention
from visgen_kernels.attention.problem import keeps_weights
from visgen_kernels.attention.sdpa import attention_sdpa
from visgen_kernels.biases import RelativePosition2d
from visgen_kernels.launch import INTERPRETED
from visgen_kernels.layouts import Layout, Sequence
from visgen_kernels.masks import Full, Mask, SameGroup
from visgen_kernels.masks import tensors as mask_tensors
from visgen_kernels.reference import attention_reference

IMPLEMENTATIONS = ("triton", "chunked", "sdpa", "reference")

MAX_HEAD_DIM = 256

_SEQUENCE, _FULL = Sequence(), Full()


class ImplementationUnavailable(NotImplementedError):
    """The implementation asked for cannot do this; the text says which can."""


def resolve(device: str | torch.device, *, dtype: torch.dtype = torch.float32) -> str:
    """The implementation that `implementation=None` stands for, whatever else is asked for.

    | device | answer |
    |---|---|
    | cpu | chunked |
    | meta | reference (shapes and FLOPs only) |
    | cuda (NVIDIA or ROCm) | triton; chunked for float64, which the kernels do not compute in |
    | others | chunked |
    """
    kind = torch.device(device).type
    if kind == "meta":
        return "reference"
    return "triton" if kind == "cuda" and dtype != torch.float64 else "chunked"


def unsupported(
    implementation: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    head_dims: tuple[int, int] = (64, 64),
    second_derivative: bool = False,
    dropout: float = 0.0,
    return_lse: bool = False,
) -> str | None:
    """Why an implementation cannot do this, in one sentence; None if it can.

    head_dims: of q and k, and of v. Raises ValueError for a name that does not exist.
    """
    if implementation not in IMPLEMENTATIONS:
        near = get_close_matches(implementation, IMPLEMENTATIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'unknown attention implementation "{implementation}"; nearest: "{near}" '
            f"(there are {', '.join(IMPLEMENTATIONS)})."
        )
    if implementation == "triton":
        return _unsupported_triton(torch.device(device).type, dtype, head_dims)
    if implementation != "sdpa":
        return None
    if second_derivative:
        return (
            'implementation "sdpa" has no second derivative (only torch\'s MATH backend has one); '
            'use "chunked" or, on a GPU, "triton".'
        )
    if dropout:
        return (
            'implementation "sdpa" draws its own dropout mask, which is not ours; use "chunked" '
            'or, on a GPU, "triton".'
        )
    if return_lse:
        return 'implementation "sdpa" does not return lse; use "chunked" or, on a GPU, "triton".'
    return None


def _unsupported_triton(kind: str, dtype: torch.dtype, head_dims: tuple[int, int]) -> str | None:
    if kind not in ("cuda", "meta") and not (kind == "cpu" and INTERPRETED):
        return (
            f'implementation "triton" wants a CUDA or ROCm device, the tensors are on {kind}; use '
            '"chunked" (on a CPU the kernels run in Triton\'s interpreter alone, slowly, if '
            "TRITON_INTERPRET=1 is set before Python starts)."
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return (
            f'implementation "triton" computes in float32, bfloat16 and float16, got {dtype}; '
            'use "chunked".'
        )
    if max(head_dims) > MAX_HEAD_DIM:
        return (
            f'implementation "triton" holds head dimensions up to {MAX_HEAD_DIM}, got '
            f'{max(head_dims)}; use "chunked", or more heads.'
        )
    return None


@overload
def attention(
    q: Tensor,
    k: Tensor | None = ...,
    v: Tensor | None = ...,
    *,
    layout: Layout = ...,
    mask: Mask = ...,
    key_lengths: Tensor | None = ...,
    bias: RelativePosition2d | None = ...,
    key_bias: Tensor | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    seed: Tensor | None = ...,
    implementation: str | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor | None = ...,
    v: Tensor | None = ...,
    *,
    layout: Layout = ...,
    mask: Mask = ...,
    key_lengths: Tensor | None = ...,
    bias: RelativePosition2d | None = ...,
    key_bias: Tensor | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    seed: Tensor | None = ...,
    implementation: str | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    layout: Layout = _SEQUENCE,
    mask: Mask = _FULL,
    key_lengths: Tensor | None = None,
    bias: RelativePosition2d | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of queries to keys, softmax(scale q k^T + biases) v, heads side by side.

    Args:
        q: (b, *grid, h, d), token-major; or packed (b, *grid, 3, h, d) with k = v = None, and then
            its gradient is one tensor of that shape. The last axis has stride 1.
        k: (b, *grid_k, h, d), same dtype as q (float64, float32, bfloat16 or float16).
        v: (b, *grid_k, h, d_v).
        layout: what is attended over: Sequence(), Axis(dim) or Windows(rows, cols).
        mask: what a query may see; Full() or another mask of `visgen_kernels.masks`.
        key_lengths: (b,) integers; in sample b only that many first keys are seen.
        bias: RelativePosition2d(table, (h, w)).
        key_bias: (b, *grid_k, h), added to every score of a key; -inf hides it.
        scale: factor of q k^T; d ** -0.5 if None.
        dropout: probability of dropping a weight, 0 <= dropout < 1.
        seed: int64 tensor of one element; required if dropout > 0.
        implementation: "triton", "chunked", "sdpa", "reference" or None (`resolve` decides).
        return_lse: also return the log-sum-exp of the scores; it is not differentiable.

    Returns:
        out (b, *grid, h, d_v) in q's dtype, contiguous; with return_lse also lse (b, *grid, h),
        float32 (float64 for float64). A query that sees nothing gives 0 and -inf.

    Raises:
        ValueError: shapes, strides or arguments that do not fit.
        ImplementationUnavailable: the implementation asked for cannot do this.

    q, k, v, bias.table and key_bias have first and second derivatives in "triton" and "chunked",
    first ones in "sdpa", any in "reference". On the meta device every implementation gives shapes
    and FLOPs.
    """
    _check_tensors(q, k, v)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    _check_arguments(q, k, layout, mask, key_lengths, bias, key_bias, dropout, seed)
    chosen = implementation or resolve(q.device, dtype=q.dtype)
    reason = unsupported(
        chosen,
        device=q.device,
        dtype=q.dtype,
        head_dims=(q.shape[-1], q.shape[-1] if v is None else v.shape[-1]),
        dropout=dropout,
        return_lse=return_lse,
    )
    if reason is not None:
        raise ImplementationUnavailable(reason)
    if chosen in ("triton", "chunked") or q.is_meta:
        keep = keep_lse = False
        if chosen == "chunked" and _needs_gradient(q, k, v, bias, key_bias):
            keep, keep_lse = _keeps(q, k, v, layout, mask, bias, key_bias, dropout)
        out, lse, _ = call_attention(
            q,
            k,
            v,
            None if bias is None else bias.table,
            key_bias,
            key_lengths,
            *mask_tensors(mask),
            seed,
            layout.encode(),
            mask.encode(),
            [0, 0] if bias is None else bias.encode(),  # autograd cannot take an empty list
            factor,
            dropout,
            return_lse or keep_lse,
            keep,
            chosen,
        )
        return (out, lse) if return_lse else out
    if k is None or v is None:
        q, k, v = q.unbind(-3)
    if chosen == "sdpa":
        return attention_sdpa(
            q,
            k,
            v,
            layout=layout,
            mask=mask,
            key_lengths=key_lengths,
            bias=bias,
            key_bias=key_bias,
            scale=factor,
        )
    out, lse = attention_reference(
        q,
        k,
        v,
        layout=layout,
        mask=mask,
        key_lengths=key_lengths,
        bias=bias,
        key_bias=key_bias,
        scale=factor,
        dropout=dropout,
        seed=seed,
    )
    return (out, lse.detach()) if return_lse else out


def _needs_gradient(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    bias: RelativePosition2d | None,
    key_bias: Tensor | None,
) -> bool:
    tensors = (q, k, v, None if bias is None else bias.table, key_bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _keeps(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    layout: Layout,
    mask: Mask,
    bias: RelativePosition2d | None,
    key_bias: Tensor | None,
    dropout: float,
) -> tuple[bool, bool]:
    """What the backward pass of "chunked" finds ready: the weights, the log-sum-exp."""
    if k is None or v is None:
        q_shape = k_shape = (*q.shape[:-3], *q.shape[-2:])
        d_v = q.shape[-1]
    else:
        q_shape, k_shape, d_v = tuple(q.shape), tuple(k.shape), v.shape[-1]
    biases = (None if bias is None else bias.table, key_bias)
    fused = fused_cpu.fits(q.device, q_shape[-1], d_v, dropout)
    fused = fused and not any(x is not None and x.requires_grad for x in biases)
    if keeps_weights(layout, mask, q_shape, k_shape, d_v, fused=fused):
        return True, False
    return False, fused


def _check_tensors(q: Tensor, k: Tensor | None, v: Tensor | None) -> None:
    """q, k, v fit each other, or q alone is packed."""
    if (k is None) != (v is None):
        raise ValueError("pass k and v both, or neither with q packed as (b, *grid, 3, h, d).")
    if k is None or v is None:
        if q.ndim < 5 or q.shape[-3] != 3:
            raise ValueError(
                f"without k and v, q is packed as (b, *grid, 3, h, d); got {tuple(q.shape)}."
            )
        tensors = {"q": q}
    else:
        tensors = {"q": q, "k": k, "v": v}
        _check_separate(q, k, v)
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}; attention wants a floating-point dtype.")
        if x.shape[-1] and x.stride(-1) != 1:
            raise ValueError(
                f"the last axis of {name} has stride {x.stride(-1)}, it must be 1; "
                f"pass {name}.contiguous()."
            )


def _check_separate(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.ndim == k.ndim == v.ndim or q.ndim < 4:
        raise ValueError(
            "q, k, v are (b, *grid, h, d) with equally many axes, at least 4; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    same = q.shape[0] == k.shape[0] == v.shape[0] and q.shape[-2] == k.shape[-2] == v.shape[-2]
    if not same or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            "q (b, *grid, h, d), k (b, *grid_k, h, d) and v (b, *grid_k, h, d_v) do not fit: "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(
            "q, k, v must share dtype and device; got "
            f"{q.dtype} {q.device}, {k.dtype} {k.device}, {v.dtype} {v.device}."
        )


def _check_arguments(
    q: Tensor,
    k: Tensor | None,
    layout: Layout,
    mask: Mask,
    key_lengths: Tensor | None,
    bias: RelativePosition2d | None,
    key_bias: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> None:
    """Layout, mask, biases and dropout fit the tensors."""
    grid = q.shape[1:-3] if k is None else q.shape[1:-2]
    key_grid = grid if k is None else k.shape[1:-2]
    layout.check(grid)
    layout.check(key_grid)
    if layout.sequences(grid) != layout.sequences(key_grid):
        raise ValueError(
            f"{layout} makes {layout.sequences(grid)} sequences of the queries' grid {tuple(grid)} "
            f"and {layout.sequences(key_grid)} of the keys' {tuple(key_grid)}; they must be equal."
        )
    n_q, n_k = layout.length(grid), layout.length(key_grid)
    mask.check(n_q, n_k)
    if isinstance(mask, SameGroup):
        mask.check_grid(grid, key_grid)
    if bias is not None:
        bias.check(n_q, n_k, q.shape[-2])
    if key_lengths is not None and tuple(key_lengths.shape) != (q.shape[0],):
        raise ValueError(
            f"key_lengths has one length per sample, shape ({q.shape[0]},); "
            f"got {tuple(key_lengths.shape)}."
        )
    wanted = (q.shape[0], *key_grid, q.shape[-2])
    if key_bias is not None and tuple(key_bias.shape) != wanted:
        raise ValueError(
            f"key_bias has the shape {wanted} of the keys without d; got {tuple(key_bias.shape)}."
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout}: a probability of 0 or more, below 1.")
    if dropout and (seed is None or seed.numel() != 1 or seed.dtype != torch.int64):
        raise ValueError("dropout > 0 wants seed, an int64 tensor of one element.")
