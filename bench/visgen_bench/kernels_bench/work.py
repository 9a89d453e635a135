"""What a call has to do at least, and the memory that it will want, from its shape alone."""

from __future__ import annotations

from pathlib import Path

from visgen_bench.kernels_bench.names import SDPA, split_sdpa
from visgen_kernels.roofline import Work
from visgen_kernels.shapes import Shape
from visgen_kernels.static.work import direction_work

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# n x n arrays that live at a time where all of them exist, counted from autograd's own graph.
_SQUARES = {"forward": 3, "backward": 5, "double_backward": 14}
MARGIN = 0.8  # of what is free; the rest is for the allocator and for others


def least_work(shape: Shape, direction: str, dtype: str) -> Work:
    """FLOPs of visible pairs, bytes with every tensor moved once, one exponential a pair."""
    if shape.kind != "codebook":
        return direction_work(direction, shape, itemsize=ITEMSIZE[dtype])
    vectors, codes = shape.n_q * shape.batch, shape.n_k
    moved = ITEMSIZE[dtype] * (vectors + codes) * shape.d + 8 * vectors  # an index is int64
    return Work(flops=2.0 * vectors * codes * shape.d, bytes=float(moved), exponentials=0.0)


def dense_flops(shape: Shape, direction: str) -> float:
    """As if every pair were visible."""
    least = least_work(shape, direction, "bf16").flops
    if shape.kind == "codebook":
        return least
    return least * shape.n_q * shape.n_k / shape.pairs


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
