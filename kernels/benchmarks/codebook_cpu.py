"""nearest_code and code_sums on a CPU against VideoGPT's own way, in turns within one process.

    python kernels/benchmarks/codebook_cpu.py
    python kernels/benchmarks/codebook_cpu.py --vectors 32768 --codes 2048 --width 256 --rounds 5
    python kernels/benchmarks/codebook_cpu.py --threads 2

"distances" makes the matrix |z|^2 - 2 z.e + |e|^2 of all vectors and codes and takes its argmin;
"one-hot" makes a row for every vector with a 1 at its code and multiplies it with the vectors;
"index_add" is torch's. All ways start from the same vectors, codes and indices.
"""

from __future__ import annotations

import argparse

import torch
from pairs import OURS, report, timed
from torch import Tensor
from torch.nn.functional import one_hot

from visgen_kernels import code_sums, nearest_code


def search_by_distances(vectors: Tensor, codes: Tensor) -> Tensor:
    """The index of the nearest code, from a matrix (vectors, codes)."""
    distances = vectors.square().sum(1, keepdim=True) - 2 * vectors @ codes.T
    return (distances + codes.square().sum(1)).min(1).indices


def sums_by_one_hot(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Counts and sums, from a matrix (vectors, codes)."""
    rows = one_hot(indices, codes).type_as(vectors)
    return rows.sum(0), rows.T @ vectors


def sums_by_index_add(vectors: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Counts and sums, by adding rows to rows."""
    counts = torch.bincount(indices, minlength=codes)
    return counts, vectors.new_zeros(codes, vectors.shape[1]).index_add_(0, indices, vectors)


def main() -> None:
    """Parse the command line, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=32_768)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    k = arguments.codes
    vectors = torch.randn(arguments.vectors, arguments.width, generator=generator)
    codes = torch.randn(k, arguments.width, generator=generator)
    indices = nearest_code(vectors, codes)
    size = f"{arguments.vectors} x {k} x {arguments.width}"
    search = {
        OURS: lambda: nearest_code(vectors, codes),
        "distances": lambda: search_by_distances(vectors, codes),
    }
    report(f"nearest code, {size}", timed(search, arguments.rounds))
    sums = {
        OURS: lambda: code_sums(vectors, indices, k),
        "one-hot": lambda: sums_by_one_hot(vectors, indices, k),
        "index_add": lambda: sums_by_index_add(vectors, indices, k),
    }
    report(f"sums, {size}", timed(sums, arguments.rounds))


if __name__ == "__main__":
    main()
