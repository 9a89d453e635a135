"""Tiles of the kernels of short sequences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShortTile:
    """What one program holds.

    Attributes:
        length: Queries and keys of a block, 16, 32 or 64.
        blocks: Blocks of a program; 1 is multiplied by plain products, several by batched ones.
        warps: Of a program.
        narrow_mfma: Ask for AMD's 16 x 16 matrix instructions, which want 16 rows a wave, not 32.
    """

    length: int
    blocks: int
    warps: int
    narrow_mfma: bool = False

    def pack(self, length: int) -> int:
        """Sequences of at most `length` tokens that share a block: 4, 2 or 1."""
        if self.blocks == 1 or self.length != 16 or length > 8:
            return 1
        return 4 if length <= 4 else 2

    def options(self) -> dict[str, int]:
        """What a launch passes to the compiler beside warps and stages."""
        return {"matrix_instr_nonkdim": 16} if self.narrow_mfma else {}


# Up to this padded head dimension every tile below is clean on sm_90, both ways: no spills, no work
# repeated, at least two blocks on a multiprocessor. Beyond it the backward pass spills; K1 and K2
# take such calls.
MAX_WIDTH = 128


def short_tile(length: int, width: int, size: int, target: str) -> ShortTile:
    """The tile for sequences of at most `length` tokens, 1 to 64.

    Args:
        length: The longer of queries and keys.
        width: The larger padded head dimension, of q and k or of v.
        size: Bytes of a number, 2 or 4.
        target: As `tiles.target_of` gives it.
    """
    narrow = target == "gfx942"
    if length <= 16:
        return ShortTile(16, 4 if width <= 64 and size == 2 else 2, 2)
    if length <= 32:
        return ShortTile(32, 2, 2) if width <= 64 and size == 2 else ShortTile(32, 1, 2, narrow)
    return ShortTile(64, 1, 4, narrow)
