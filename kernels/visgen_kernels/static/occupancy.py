"""How many blocks a multiprocessor holds at once, and what stops it from holding more.

NVIDIA: the rules of `cuda_occupancy.h` (registers are given out to warps in 256s, shared memory in
128-byte granules with 1 KiB kept back, columns of tensor memory in powers of two from 32). AMD
gfx942: waves share 512 vector registers per lane, in eights, on each of four SIMDs; the LDS is the
compute unit's.
"""

from __future__ import annotations

from dataclasses import dataclass

from visgen_kernels.static.compile import Compiled

_REGISTERS, _REGISTER_GRANULE, _PARTITIONS = 65536, 256, 4
_SHARED_GRANULE, _SHARED_RESERVED = 128, 1024
_AMD_SIMDS, _AMD_WAVES, _AMD_REGISTERS, _AMD_GRANULE = 4, 8, 512, 8


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one multiprocessor, and the limiter's name."""

    blocks: int
    warps: int
    limiter: str


def occupancy(compiled: Compiled) -> Occupancy:
    """Blocks that fit at once; 0 if not even one does."""
    limits = _amd_limits(compiled) if compiled.target.is_amd else _nvidia_limits(compiled)
    limiter = min(limits, key=lambda name: limits[name])
    blocks = limits[limiter]
    return Occupancy(blocks, blocks * compiled.warps, limiter)


def _nvidia_limits(compiled: Compiled) -> dict[str, int]:
    target = compiled.target
    warp_registers = _round_up(max(compiled.registers, 1) * target.warp, _REGISTER_GRANULE)
    # Each of the four partitions has a quarter of the registers.
    warps_by_registers = _PARTITIONS * (_REGISTERS // _PARTITIONS // warp_registers)
    shared = _round_up(compiled.shared + _SHARED_RESERVED, _SHARED_GRANULE)
    limits = {
        "blocks": target.blocks,
        "warps": target.warps // compiled.warps,
        "registers": warps_by_registers // compiled.warps,
        "shared memory": target.shared // shared,
    }
    if compiled.tensor_memory:  # given out in powers of two
        columns = 1 << max(5, (compiled.tensor_memory - 1).bit_length())
        limits["tensor memory"] = target.tensor_memory // columns
    return limits


def _amd_limits(compiled: Compiled) -> dict[str, int]:
    registers = _round_up(max(compiled.registers, 1), _AMD_GRANULE)
    waves = _AMD_SIMDS * min(_AMD_WAVES, _AMD_REGISTERS // registers)
    return {
        "warps": _AMD_SIMDS * _AMD_WAVES // compiled.warps,
        "registers": waves // compiled.warps,
        "shared memory": compiled.target.shared // max(compiled.shared, 1),
    }


def _round_up(value: int, granule: int) -> int:
    return -(-value // granule) * granule
