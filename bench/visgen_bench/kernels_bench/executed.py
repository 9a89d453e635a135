"""FLOPs that a backend executes, where that can be known."""

from __future__ import annotations

from visgen_bench.kernels_bench import work
from visgen_bench.kernels_bench.names import SDPA, split_sdpa
from visgen_bench.kernels_bench.request import Group
from visgen_kernels.shapes import Shape


def executed_flops(name: str, shape: Shape, group: Group) -> tuple[float | None, str | None]:
    """(matrix FLOPs, None), or (None, why they are not known)."""
    dense = name == "eager" or (name in SDPA and split_sdpa(name)[0] == "math")
    if name == "distances":
        return work.least_work(shape, group.direction, group.dtype).flops, None
    if dense and group.direction == "forward":
        return work.dense_flops(shape, group.direction), None
    if dense:
        # Autograd keeps P, so Q K^T is not computed again: one product with d less.
        pairs = float(shape.score_matrices * shape.n_q * shape.n_k)
        return work.dense_flops(shape, group.direction) - 2.0 * pairs * shape.d, None
    return None, f"{name} does not say which tiles it computes"
