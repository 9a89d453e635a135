"""What a call has to do at least, and the memory that it will want, from its shape alone."""

from __future__ import annotations

from pathlib import Path

from visgen_bench.kernels_bench.names import SDPA, split_sdpa
from visgen_kernels.roofline import Work
from visgen_kernels.shapes import Shape

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# Products of each direction that contract or yield the head dimension of q and k, of v: README of
# visgen_kernels, "FLOPs".
_PRODUCTS = {"forward": (1, 1), "backward": (3, 2), "double_backward": (7, 5)}
# How often tensors like q, k, v and o move at least, and numbers per query in float32.
#   forward          q k v -> o, lse
#   backward         q k v o dO lse delta -> dq dk dv
#   double_backward  q k v dO, their cotangents u w x, o, lse delta -> ddq ddk ddv ddO
_MOVED = {
    "forward": (1, 1, 1, 1, 1),
    "backward": (2, 2, 2, 2, 2),
    "double_backward": (3, 3, 3, 3, 2),
}
# n x n arrays that live at a time where all of them exist, counted from autograd's own graph.
_SQUARES = {"forward": 3, "backward": 5, "double_backward": 14}
MARGIN = 0.8  # of what is free; the rest is for the allocator and for others


def least_work(shape: Shape, direction: str, dtype: str) -> Work:
    """FLOPs of visible pairs, bytes with every tensor moved once, one exponential a pair."""
    with_d, with_d_v = _PRODUCTS[direction]
    d, d_v, heads = shape.d, shape.d_v, shape.score_matrices
    if shape.kind == "codebook":
        vectors, codes = shape.n_q * shape.batch, shape.n_k
        moved = ITEMSIZE[dtype] * (vectors + codes) * d + 8 * vectors  # an index is int64
        return Work(flops=2.0 * vectors * codes * d, bytes=float(moved), exponentials=0.0)
    q, k, v, o, rows = _MOVED[direction]
    numbers = q * shape.n_q * d + k * shape.n_k * d + v * shape.n_k * d_v + o * shape.n_q * d_v
    return Work(
        flops=2.0 * heads * shape.pairs * (with_d * d + with_d_v * d_v),
        bytes=float(heads * (ITEMSIZE[dtype] * numbers + 4 * rows * shape.n_q)),
        exponentials=float(heads * shape.pairs),
    )


def dense_flops(shape: Shape, direction: str) -> float:
    """As if every pair were visible."""
    with_d, with_d_v = _PRODUCTS[direction]
    if shape.kind == "codebook":
        return least_work(shape, direction, "bf16").flops
    pairs = float(shape.score_matrices * shape.n_q * shape.n_k)
    return 2.0 * pairs * (with_d * shape.d + with_d_v * shape.d_v)


def needed_bytes(backend: str, shape: Shape, direction: str, dtype: str) -> int:
    """Memory that a backend is likely to want at its peak, leaves and gradients included.

    Eager code and SDPA's MATH backend hold several n x n arrays for every head of every sequence;
    fused ones hold at most the mask, one for all sequences, or for each if they differ.
    """
    size = ITEMSIZE[dtype]
    if shape.kind == "codebook":
        vectors, codes = shape.n_q * shape.batch, shape.n_k
        matrix = vectors * codes if backend == "distances" else 0
        return size * ((vectors + codes) * shape.d + 2 * matrix)
    square, heads = shape.n_q * shape.n_k, shape.score_matrices
    numbers = heads * (shape.n_q * (shape.d + shape.d_v) + shape.n_k * (shape.d + shape.d_v))
    copies = {"forward": 3, "backward": 6, "double_backward": 12}[direction]
    total = size * numbers * copies
    dense = backend == "eager" or (backend in SDPA and split_sdpa(backend)[0] == "math")
    if dense:
        return total + size * heads * square * _SQUARES[direction]
    if backend in SDPA or backend.startswith(("sdpa-", "xformers")):
        total += _mask_bytes(shape, size)
    return total


def _mask_bytes(shape: Shape, size: int) -> int:
    """Of the mask or bias that SDPA is given, and its gradient."""
    per_sequence = shape.key_lengths or shape.extras.startswith("shifted")
    copies = shape.sequences if per_sequence else 1
    square = shape.n_q * shape.n_k
    if shape.bias:
        return 2 * size * square * shape.heads * copies
    return 0 if shape.extras in ("full", "causal") else square * copies


def reference_bytes(shape: Shape, direction: str) -> int:
    """Memory of the definition in float64 on one sample."""
    matrices = shape.heads * shape.layout.sequences(shape.grid)
    return 8 * matrices * shape.n_q * shape.n_k * (_SQUARES[direction] + 2)


def free_bytes(device: str) -> int:
    """Memory that can still be had on the device; of a CPU also what the container grants."""
    if device.partition(":")[0] == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(psutil.virtual_memory().available, _container_bytes())


def _container_bytes() -> int:
    """What is left of the control group's limit; huge where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
        return 2**62 if limit == "max" else int(limit) - used
    except (OSError, ValueError):
        return 2**62


def too_large(backend: str, shape: Shape, direction: str, dtype: str, free: int) -> str | None:
    """Why a backend is not tried at this size, or None."""
    need = needed_bytes(backend, shape, direction, dtype)
    if need <= MARGIN * free:
        return None
    return (
        f"needs about {need / 2**30:.1f} GiB at batch {shape.batch}, {MARGIN * free / 2**30:.1f} "
        "GiB may be used here; --batch takes fewer samples"
    )
