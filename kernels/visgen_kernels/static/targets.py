"""Architectures that code is compiled for, and what one multiprocessor of them holds.

NVIDIA: limits as in `cuda_occupancy.h` of the CUDA toolkit and the programming guide's table of
technical specifications. gfx942: waves of 64, 512 vector registers a lane and SIMD, 64 KiB of LDS.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Target:
    """An architecture.

    Attributes:
        name: `sm_90`, `gfx942`.
        backend: Of Triton.
        arch: As Triton's backend names it.
        warp: Lanes of a warp (AMD: of a wave).
        shared_limit: Bytes of shared memory that one block may use.
        shared: Bytes that a multiprocessor has.
        warps: That a multiprocessor holds at most.
        blocks: That a multiprocessor holds at most.
        tensor_memory: Columns of tensor memory that a multiprocessor has, all of them for one block
            if it likes; 0: it has none.
    """

    name: str
    backend: str
    arch: int | str
    warp: int
    shared_limit: int
    shared: int
    warps: int
    blocks: int
    tensor_memory: int = 0

    @property
    def is_amd(self) -> bool:
        """Whether its code is AMD's."""
        return self.backend == "hip"


_KIB = 1024
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 * _KIB, 164 * _KIB, 64, 32),
        Target("sm_90", "cuda", 90, 32, 227 * _KIB, 228 * _KIB, 64, 32),
        Target("sm_100", "cuda", 100, 32, 227 * _KIB, 228 * _KIB, 64, 32, 512),
        Target("gfx942", "hip", "gfx942", 64, 64 * _KIB, 64 * _KIB, 32, 32),
    )
}


def find_target(name: str) -> Target:
    """A target by its name.

    Raises:
        ValueError: naming the nearest one.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = get_close_matches(name, TARGETS, n=1, cutoff=0.0)[0]
    raise ValueError(f'unknown target "{name}"; nearest: "{near}" (known: {", ".join(TARGETS)}).')
