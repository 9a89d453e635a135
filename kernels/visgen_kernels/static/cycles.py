"""Issue model: how many cycles a multiprocessor needs for a stretch of code, pipe by pipe.

Every pipe takes `lanes` results a cycle (`devices.toml`), the schedulers issue one instruction a
cycle each. A block alone works its pipes one after the other, because its matrix products, maxima,
exponentials and sums wait for each other and its warps meet at barriers (only shared memory is read
beside the products); b resident blocks fill each other's gaps:

    alone     = max(mma, shared) + exp + vector + alu + shuffle
    cycles(b) = largest + (max(alone, largest) - largest) / b     per pass of one block

The form of cycles(b) is fitted, and ranks; expect 30 % at best. For the plain loop it gives on an
H100 455 TFLOP/s at 64 channels (published for Triton: 340 to 403) and 436 at 128 (323 to 477), on
an A100 187 and 162 (FlashAttention-2: 225). Latencies, bank conflicts and caches are left out; what
wgmma and tcgen05 read from shared memory themselves is not in the code's text and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visgen_kernels.roofline import Device
from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.report import Counts

# AMD issues scalar, memory and branch instructions beside vector ones, from other waves.
_AMD_ISSUED = ("alu", "mufu", "mma")


@dataclass(frozen=True)
class Cycles:
    """Cycles of one multiprocessor for one pass of one block, by pipe; `issue` is the slots."""

    pipes: Mapping[str, float]

    @property
    def binding(self) -> str:
        """The pipe with most work."""
        return max(self.pipes, key=lambda name: self.pipes[name])

    @property
    def alone(self) -> float:
        """Of a block that has the multiprocessor to itself."""
        get = self.pipes.get
        rest = sum(get(pipe, 0.0) for pipe in ("exp", "vector", "alu", "shuffle"))
        return max(get("mma", 0.0), get("shared", 0.0)) + rest

    def of(self, blocks: int) -> float:
        """Cycles per pass and block with so many blocks resident."""
        largest = self.pipes[self.binding]
        return largest + max(self.alone - largest, 0.0) / max(blocks, 1)


def cycles(
    counts: Counts,
    compiled: Compiled,
    device: Device,
    *,
    flops: float | None = None,
    dtype: str = "bf16",
) -> Cycles:
    """The issue model of a stretch of code that all warps of a block run once.

    flops: matrix FLOPs of the pass, used where the instructions carry no shape (tcgen05).
    """
    lanes = compiled.warps * compiled.target.warp
    amd = compiled.target.is_amd
    pipes = counts.pipes
    executed = counts.matrix_flops
    matrix = flops or 0.0 if executed is None else executed * compiled.warps
    issued = sum(pipes.get(p, 0) for p in _AMD_ISSUED) if amd else counts.total
    vector = pipes.get("alu", 0) if amd else pipes.get("fma", 0)
    found = {
        "issue": issued * lanes / device.lanes["issue"],
        "mma": matrix / device.mma_per_cycle(dtype),
        "exp": pipes.get("mufu", 0) * lanes / device.lanes["exp"],
        "vector": vector * lanes / device.lanes["vector"],
        "shared": counts.shared * lanes / device.lanes["shared"],
        "shuffle": pipes.get("shfl", 0) * lanes / device.lanes["shuffle"],
    }
    if not amd:
        found["alu"] = pipes.get("alu", 0) * lanes / device.lanes["alu"]
    return Cycles(found)


@dataclass(frozen=True)
class Launched:
    """How a grid fills a device.

    waves: full fillings of all multiprocessors, the last one perhaps partly. tail: share of the
    block places of all waves that stay empty.
    """

    waves: float
    tail: float


def launched(programs: int, blocks: int, device: Device) -> Launched:
    """Waves of a grid with `blocks` resident blocks a multiprocessor.

    Raises:
        ValueError: if no block fits.
    """
    if blocks < 1:
        raise ValueError("not even one block fits on a multiprocessor.")
    places = blocks * device.units
    waves = programs / places
    whole = -(-programs // places)
    return Launched(waves, 1 - waves / whole if whole else 0.0)


def grid_cycles(
    programs: int, blocks: int, device: Device, passes: Sequence[tuple[Cycles, float]]
) -> float:
    """Cycles until a grid is done: full waves, then a tail with fewer resident blocks.

    passes: stretches of code, and how often one program goes through each.
    """

    def one(resident: int) -> float:
        return sum(times * stretch.of(resident) for stretch, times in passes)

    full, rest = divmod(programs, blocks * device.units)
    total = full * blocks * one(blocks)
    if rest:
        resident = -(-rest // device.units)
        total += resident * one(resident)
    return total
