"""Which tile each kernel uses on each target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Rows of queries, of keys, warps and pipeline stages of one program.

    `narrow_mfma` asks for AMD's 16 x 16 matrix instructions, which want 16 rows a wave, not 32.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    narrow_mfma: bool = False

    def options(self) -> dict[str, int]:
        """What a launch passes to the compiler beside warps and stages."""
        return {"matrix_instr_nonkdim": 16} if self.narrow_mfma else {}
