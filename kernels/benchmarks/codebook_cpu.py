"""nearest_code and code_sums on a CPU against VideoGPT's own way, in turns within one process.

    python kernels/benchmarks/codebook_cpu.py
    python kernels/benchmarks/codebook_cpu.py --vectors 32768 --codes 2048 --width 256 --rounds 5
    python kernels/benchmarks/codebook_cpu.py --threads 2

"distances" makes the matrix |z|^2 - 2 z.e + |e|^2 of all vectors and codes and takes its argmin;
"one-hot" makes a row for every vector with a 1 at its code and multiplies it with the vectors;
"index_add" is torch's. All ways start from the same vectors, codes and indices. A way's peak memory
is how far a process that does nothing else grows by it (VmHWM). The exit code is 1 if "one-hot" is
not 20 times slower than our sums, or our search takes a matrix of that size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

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


def ways(vectors: int, codes: int, width: int) -> dict[str, dict[str, Callable[[], object]]]:
    """All ways of the search and of the sums, on the same random vectors and codes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(vectors, width, generator=generator)
    codebook = torch.randn(codes, width, generator=generator)
    indices = torch.randint(0, codes, (vectors,), generator=generator)
    return {
        "nearest code": {
            OURS: partial(nearest_code, rows, codebook),
            "distances": partial(search_by_distances, rows, codebook),
        },
        "sums": {
            OURS: partial(code_sums, rows, indices, codes),
            "one-hot": partial(sums_by_one_hot, rows, indices, codes),
            "index_add": partial(sums_by_index_add, rows, indices, codes),
        },
    }


def peak(what: str, way: str, size: list[int]) -> int:
    """Bytes by which a process of its own grows when it goes one way once."""
    command = [sys.executable, __file__, "--peak", what, way, "--threads", "1"]
    for name, value in zip(("--vectors", "--codes", "--width"), size, strict=True):
        command += [name, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def growth(work: Callable[[], object]) -> int:
    """Bytes of VmHWM above what is resident now."""

    def kibibytes(name: str) -> int:
        return int(Path("/proc/self/status").read_text("utf-8").split(f"{name}:")[1].split()[0])

    before = kibibytes("VmRSS")
    work()
    return max(0, kibibytes("VmHWM") - before) * 1024


def main() -> int:
    """Print a table; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=32_768)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "WAY"), help="of one way, in bytes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = [arguments.vectors, arguments.codes, arguments.width]
    found = ways(*size)
    if arguments.peak:
        what, way = arguments.peak
        sys.stdout.write(f"{growth(found[what][way])}\n")
        return 0
    missed = False
    for what, several in found.items():
        times = timed(several, arguments.rounds)
        report(f"{what}, {' x '.join(map(str, size))}", times)
        peaks = {way: peak(what, way, size) for way in several}
        for way, taken in peaks.items():
            sys.stdout.write(f"{what:34} {way:26} {taken / 2**20:10.1f} MiB\n")
        matrix = arguments.vectors * arguments.codes * 4
        missed |= what == "nearest code" and peaks[OURS] >= matrix / 4
        missed |= what == "sums" and times.faster("one-hot")[0] < 20
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
