"""Tiles of the kernels of short sequences."""
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class ShortTile:
    length: int
    items: int
    warps: int
    narrow_mfma: bool = False

    def options(self) -> dict[str, int]:
        return {"matrix_instr_nonkdim": 16} if self.narrow_mfma else {}
