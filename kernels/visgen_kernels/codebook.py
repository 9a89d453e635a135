"""Vector quantisation: the nearest code of every vector, and the sums that move the codes.

    nearest_code    argmin_e |z - e|^2, of equal distances the lowest index
    code_sums       n_e = how many vectors chose e,   s_e = their sum

(van den Oord et al. 2017, arXiv:1711.00937; n and s feed the moving averages of its appendix A.1.)
A matrix of all distances, or of one-hot rows, is never made. The straight-through estimator is
z + (e - z).detach() and needs no kernel.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils.flop_counter import register_flop_formula

from visgen_kernels.attention import DENSE_FLOPS, ImplementationUnavailable
from visgen_kernels.launch import INTERPRETED

IMPLEMENTATIONS = ("triton", "chunked", "reference")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SCORES = 2**19  # of a chunk on a CPU: 2 MB in float32, which stays in the cache
_ROWS = 64  # fewer rows would make slow products
_TOGETHER = 64  # vectors of a code that are added one by one; such sums are added in turn


@overload
def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    *,
    precision: str | None = ...,
    implementation: str | None = ...,
    return_distances: Literal[False] = ...,
) -> Tensor: ...


@overload
def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    *,
    precision: str | None = ...,
    implementation: str | None = ...,
    return_distances: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    *,
    precision: str | None = None,
    implementation: str | None = None,
    return_distances: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The index of the code that is nearest to each vector.

    Args:
        vectors: (..., d), float64, float32, bfloat16 or float16, finite. A last axis of another
            stride than 1 costs one copy.
        codebook: (k, d). A code that is not finite is never chosen.
        precision: of float32 products in "triton": "tf32x3" (NVIDIA's default, error 2^-21), "ieee"
            (AMD's default), "tf32" (faster, and near ties may flip). Products of 16-bit vectors and
            codes are exact, and so is "chunked" in float32, whatever is asked for here.
        implementation: "triton" (GPUs), "chunked" (any device, float64 too), "reference" (the
            definition, a matrix of distances) or None: chunked on a CPU and for float64, else
            triton.
        return_distances: also return |z - e|^2 of the chosen code, from the difference itself;
            differentiable with respect to vectors and codebook.

    Returns:
        int64 (...), of equal distances the lowest index; with return_distances also (...) in
        float32 (float64 if either is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        ImplementationUnavailable: the implementation asked for cannot do this.
    """
    _check(vectors, codebook)
    wide = torch.float64 in (vectors.dtype, codebook.dtype)
    chosen = implementation or _default(vectors.device, wide)
    reason = _unsupported(chosen, precision, vectors.device, wide)
    if reason is not None:
        raise ImplementationUnavailable(reason)
    inputs = (vectors.detach(), codebook.detach())
    if chosen == "reference" and not vectors.is_meta:
        indices = nearest_code_reference(*inputs)
    else:
        indices = nearest_code_op(*inputs, precision or "", chosen)
    if not return_distances:
        return indices
    dtype = torch.float64 if wide else torch.float32
    difference = vectors.to(dtype) - codebook[indices].to(dtype)
    return indices, difference.square().sum(-1)


def nearest_code_reference(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The definition: all distances, (..., k), in float32 or float64."""
    wide = torch.float64 in (vectors.dtype, codebook.dtype)
    dtype = torch.float64 if wide else torch.float32
    rows, codes = vectors.reshape(-1, vectors.shape[-1]).to(dtype), codebook.to(dtype)
    distances = (rows[:, None] - codes).square().sum(-1)
    distances = distances.masked_fill(~codes.isfinite().all(-1), torch.inf)
    return distances.argmin(-1).view(vectors.shape[:-1])


@torch.no_grad()
def code_sums(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sums.

    Vectors are sorted by code and added in a fixed order, 64 at a time and then those sums: two
    calls give the same bits on any device, there are no atomics, and a code that is chosen by all
    takes no longer. Nothing is said to the host.

    Args:
        vectors: (..., d).
        indices: (...) int64 or int32 in 0 .. codes. On a CPU another index raises; a GPU leaves
            its vector out.
        codes: size of the codebook.

    Returns:
        counts (codes,) int64 and sums (codes, d) in float32 (float64 for float64). No gradient.

    Raises:
        ValueError: shapes or indices that do not fit.
    """
    if vectors.shape[:-1] != indices.shape or indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "indices has one int64 or int32 for each vector; got vectors "
            f"{tuple(vectors.shape)}, indices {tuple(indices.shape)} of {indices.dtype}."
        )
    rows = vectors.reshape(-1, vectors.shape[-1])
    rows = (rows if rows.dtype == torch.float64 else rows.float()).contiguous()
    chosen = indices.reshape(-1).long()
    if chosen.numel() == 0:
        return chosen.new_zeros(codes), rows.new_zeros(codes, rows.shape[-1])
    if chosen.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(chosen, codes)
    ordered, order = chosen.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(codes + 1, device=chosen.device))
    counts = starts.diff()
    # Pieces of at most 64 vectors of one code. There are no more than `pieces`, so no shape depends
    # on the content; those that are too many hold nothing.
    pieces = codes + chosen.numel() // _TOGETHER
    last = ((counts + _TOGETHER - 1) // _TOGETHER).cumsum(0)  # one past a code's last piece
    first = torch.cat([last.new_zeros(1), last])
    piece = torch.arange(pieces + 1, device=chosen.device)
    code = torch.searchsorted(last, piece, right=True).clamp(max=codes - 1)
    begin = torch.minimum(starts[code] + (piece - first[code]) * _TOGETHER, starts[code + 1])
    partial = _sums(rows, order, begin)
    return counts, _sums(partial, piece[:-1], first)


def _sums(rows: Tensor, order: Tensor, begin: Tensor) -> Tensor:
    """Sums of rows[order[begin[i] : begin[i + 1]]], each added in order by one thread."""
    return embedding_bag(order, rows, begin, mode="sum", include_last_offset=True)


def _check_range(chosen: Tensor, codes: int) -> None:
    low, high = (int(x) for x in chosen.aminmax())
    if low < 0 or high >= codes:
        raise ValueError(
            f"indices run from {low} to {high}, and there are {codes} codes, 0 to {codes - 1}."
        )


def _check(vectors: Tensor, codebook: Tensor) -> None:
    fits = codebook.ndim == 2 and vectors.ndim >= 1 and vectors.shape[-1] == codebook.shape[-1]
    if not fits or 0 in codebook.shape:
        raise ValueError(
            "vectors are (..., d) and the codebook is (k, d), with at least one code and one "
            f"column; got {tuple(vectors.shape)} and {tuple(codebook.shape)}."
        )
    if vectors.dtype not in _DTYPES or codebook.dtype not in _DTYPES:
        raise ValueError(
            "vectors and codebook are float64, float32, bfloat16 or float16; got "
            f"{vectors.dtype} and {codebook.dtype}."
        )
    if vectors.device != codebook.device:
        raise ValueError(
            f"vectors and codebook lie on one device; got {vectors.device} and {codebook.device}."
        )


def _default(device: torch.device, wide: bool) -> str:
    return "chunked" if wide or device.type in ("cpu", "meta") else "triton"


def _unsupported(
    implementation: str, precision: str | None, device: torch.device, wide: bool
) -> str | None:
    """Why an implementation cannot do this; None if it can."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'unknown implementation "{implementation}" of nearest_code; there are '
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    if precision not in (None, "tf32x3", "ieee", "tf32"):
        raise ValueError(f'precision="{precision}"; there are "tf32x3", "ieee" and "tf32".')
    if implementation != "triton" or device.type == "meta":
        return None
    if device.type == "cpu" and not INTERPRETED:
        return (
            'implementation "triton" wants a CUDA or ROCm device (or Triton\'s interpreter, '
            'TRITON_INTERPRET=1), the tensors are on the CPU; use "chunked".'
        )
    if wide:
        return 'implementation "triton" has no float64; use "chunked".'
    return None


def _nearest(vectors: Tensor, codebook: Tensor, precision: str, implementation: str) -> Tensor:
    rows = vectors.reshape(-1, vectors.shape[-1])
    find = _nearest_triton if implementation == "triton" else _nearest_chunked
    return find(rows, codebook, precision).view(vectors.shape[:-1])


def _half_norms(codes: Tensor) -> Tensor:
    """|e|^2 / 2; inf for a code that is not finite, or whose square is not."""
    half = codes.square().sum(-1) * 0.5
    return half.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _nearest_chunked(rows: Tensor, codebook: Tensor, _: str) -> Tensor:
    """Scores of one chunk of vectors at a time."""
    wide = torch.float64 in (rows.dtype, codebook.dtype)
    dtype = torch.float64 if wide else torch.float32
    codes = codebook.to(dtype)
    half = _half_norms(codes)
    codes = codes.masked_fill(half.isinf()[:, None], 0.0).mT  # inf - 0, and not inf - nan
    size = max(_ROWS, _SCORES // codebook.shape[0])
    scores = codes.new_empty(min(size, rows.shape[0]), codebook.shape[0])
    indices = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
    for start in range(0, rows.shape[0], size):
        chunk = rows[start : start + size].to(dtype)
        part = scores[: chunk.shape[0]]
        torch.addmm(half, chunk, codes, alpha=-1, out=part)
        torch.argmin(part, dim=1, out=indices[start : start + size])
    return indices


def _nearest_triton(rows: Tensor, codebook: Tensor, precision: str) -> Tensor:
    # Imported here: they need Triton, which nobody pays for on a CPU.
    from visgen_kernels.attention.tiles import target_of
    from visgen_kernels.codebook_kernel import default_precision, nearest_launch, precisions
    from visgen_kernels.decode import multiprocessors

    target = target_of(rows.device)
    if precision and precision not in precisions(target):
        raise ImplementationUnavailable(
            f'{target} has no precision "{precision}"; use {" or ".join(precisions(target))}.'
        )
    if rows.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=rows.device)
    # Products are made in the codes' dtype, which therefore has to hold the vectors.
    codes = codebook if codebook.dtype == rows.dtype else codebook.float()
    rows, codes = (x if x.stride(-1) == 1 else x.contiguous() for x in (rows, codes))
    best, launch = nearest_launch(
        rows,
        codes,
        _half_norms(codes.float()),
        target=target,
        precision=precision or default_precision(target),
        multiprocessors=multiprocessors(rows.device),
    )
    launch.run()
    return best.amin(0) & 0xFFFFFFFF


def _nearest_fake(vectors: Tensor, *rest: Any) -> Tensor:
    return vectors.new_empty(vectors.shape[:-1], dtype=torch.int64)


def _flops(vectors: Tensor, codebook: Tensor, *rest: Any, **kwargs: Any) -> int:
    """2 d for every vector and code."""
    return 2 * vectors.numel() * codebook.shape[0]


_flops._get_raw = True  # type: ignore[attr-defined]  # FlopCounterMode then passes tensors

_LIBRARY = torch.library.Library("visgen", "FRAGMENT")
_LIBRARY.define(
    "nearest_code(Tensor vectors, Tensor codebook, str precision, str implementation) -> Tensor"
)
_LIBRARY.impl("nearest_code", _nearest, "CompositeExplicitAutograd")
torch.library.register_fake("visgen::nearest_code", _nearest_fake, lib=_LIBRARY)
nearest_code_op = torch.ops.visgen.nearest_code.default
register_flop_formula(torch.ops.visgen.nearest_code, get_raw=True)(_flops)
DENSE_FLOPS[torch.ops.visgen.nearest_code] = _flops
