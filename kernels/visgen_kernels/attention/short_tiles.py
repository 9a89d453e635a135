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


# Wider calls are K1's and K2's: the backward pass spills beyond. So are float32 ones, whose batched
# products have no matrix units and spill kilobytes.
MAX_WIDTH = 128

# (kernel, target, length, padded width) of what is not clean: the tile below is the least bad, and
# this is what is wrong.
SHORT_UNCLEAN: dict[tuple[str, str, int, int], str] = {
    ("short_backward", "sm_80", 64, 64): "spills 8 bytes with a window and a key bias",
}


def short_tile(
    length: int, width: int, size: int, target: str, *, backward: bool
) -> ShortTile | None:
    """The tile for sequences of at most `length` tokens, 1 to 64; None where K1 and K2 are better.

    `static/short_entries.py` says what was asked of a tile; `make kernels` checks every one.

    Args:
        length: The longer of queries and keys.
        width: The larger padded head dimension, of q and k or of v.
        size: Bytes of a number, 2 or 4.
        target: As `tiles.target_of` gives it.
        backward: The backward pass, which holds more than twice as much.
    """
    if width > MAX_WIDTH or size != 2:
        return None
    narrow = target == "gfx942"
    if target == "sm_80":
        if length > 32 and width > 64 and backward:
            return ShortTile(64, 1, 8) if width > 96 else None
        if 16 < length <= 32 and width > 96 and not backward:
            return ShortTile(32, 1, 4)
    if backward and not narrow:
        if length <= 8 and 16 < width <= 32:
            return ShortTile(16, 4, 4)
        if 16 < length <= 32 and width > 32:
            return ShortTile(32, 1, 2)
    if length <= 16:
        return ShortTile(16, 4 if width <= 64 else 2, 2)
    if length <= 32:
        return ShortTile(32, 2, 2) if width <= 64 else ShortTile(32, 1, 2, narrow)
    return ShortTile(64, 1, 4, narrow)
