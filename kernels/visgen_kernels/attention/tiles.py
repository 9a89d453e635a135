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
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 144, 256)


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


def _same(*tiles: Tile) -> dict[int, tuple[Tile, Tile]]:
    return {width: (tile, tile) for width, tile in zip(WIDTHS, tiles, strict=True)}


def _rows(*pairs: tuple[Tile, Tile]) -> dict[int, tuple[Tile, Tile]]:
    return dict(zip(WIDTHS, pairs, strict=True))


_WIDE = Tile(128, 64, 8, 2)
_WIDE_16 = Tile(128, 64, 8, 2, 16)
_HALF = Tile(128, 32, 8, 2)
_HALF_16 = Tile(128, 32, 8, 2, 16)
_SQUARE = Tile(64, 64, 4, 2)
_SPREAD, _SPREAD_16 = Tile(64, 64, 8, 2), Tile(64, 64, 8, 2, 16)
_SPREAD_HALF, _SPREAD_KEYS = Tile(64, 32, 8, 2), Tile(32, 64, 8, 2)
_KEYS = Tile(64, 128, 8, 2)
_KEYS_HALF = Tile(32, 128, 8, 2)
_KEYS_THIN = Tile(16, 128, 8, 2)
_BLOCK, _CORNER = Tile(32, 32, 4, 2), Tile(16, 16, 2, 2)
_LOW, _LOW_KEYS = Tile(16, 32, 4, 2), Tile(16, 64, 4, 1)
# Where a part of the head dimension has 16 columns (16, 48, 80): few warps, and masked tiles in one
# piece, or a lane has less than 16 bytes of a row to load.
_THIN, _THIN_SQUARE = Tile(128, 64, 4, 2, 64), Tile(64, 64, 4, 2, 64)
_THIN_KEYS, _THIN_TABLE = Tile(32, 64, 2, 2), Tile(64, 32, 2, 2)
_TABLE, _TABLE_HALF, _TABLE_SMALL = Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 2, 2)
_SECOND, _SECOND_HALF, _SECOND_THIN = (
    Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 16, 4, 2, 16)
)  # fmt: skip
_SECOND_FLAT, _SPREAD_THIN = Tile(128, 16, 8, 2, 16), Tile(64, 16, 8, 2, 16)
_SECOND_KEYS, _SECOND_KEYS_THIN = Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)
_AMD = Tile(128, 64, 4, 2)
_AMD_THIN = Tile(128, 64, 2, 2, 64)
_AMD_THIN_SQUARE = Tile(64, 64, 2, 2, 64)
_AMD_HALF, _AMD_HALF_16 = Tile(128, 32, 4, 2), Tile(128, 32, 4, 2, 16)
_AMD_KEYS = Tile(32, 128, 4, 2)
_AMD_NARROW = Tile(64, 32, 4, 2, 32, narrow_mfma=True)
_AMD_NARROW_16 = Tile(64, 32, 4, 2, 16, narrow_mfma=True)
_AMD_NARROW_KEYS = Tile(32, 64, 4, 2, 32, narrow_mfma=True)
_AMD_SQUARE = Tile(64, 64, 4, 2, 32, narrow_mfma=True)
_AMD_TABLE = Tile(64, 64, 4, 1, 32, narrow_mfma=True)
_AMD_SMALL = Tile(64, 32, 4, 1, 32, narrow_mfma=True)
_AMD_SMALL_16 = Tile(64, 32, 4, 1, 16, narrow_mfma=True)
_AMD_SECOND_KEYS = Tile(32, 64, 4, 1, 32, narrow_mfma=True)
_AMD_SECOND_KEYS_THIN = Tile(16, 64, 4, 1, 32, narrow_mfma=True)

# Kernel and target -> width -> the tile of plain calls (no mask or a causal one, nothing added, no
# dropout), and that of all others. For 16-bit types.
TILES: dict[tuple[str, str], dict[int, tuple[Tile, Tile]]] = {
    ("forward", "sm_80"): _rows(
        (_THIN, _THIN_SQUARE),
        (_WIDE, _SQUARE),
        (_THIN_SQUARE, _SQUARE),
        (_WIDE, _WIDE),
        (_WIDE, Tile(64, 32, 4, 1)),
        (_WIDE, Tile(64, 32, 4, 1)),
        (_HALF_16, _HALF_16),
        (_HALF_16, _SECOND_THIN),
        (_SPREAD, _SPREAD),
    ),
    ("forward", "sm_90"): _rows(
        (_THIN, _THIN),
        (_WIDE, _WIDE),
        (_THIN, _THIN_SQUARE),
        (_WIDE, _WIDE),
        (_THIN_SQUARE, _SQUARE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE_16),
        (_WIDE_16, _HALF_16),
    ),
    ("forward", "sm_100"): _rows(
        (_THIN_SQUARE, _THIN_SQUARE),
        (_WIDE, _WIDE_16),
        (_THIN_SQUARE, _THIN_SQUARE),
        (_WIDE, _THIN_SQUARE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE_16),
        (_WIDE_16, _HALF_16),
    ),
    ("forward", "gfx942"): _rows(
        (_AMD_THIN, _AMD_THIN),
        (_AMD, _AMD),
        (_AMD_THIN, _AMD_THIN_SQUARE),
        (_AMD, _AMD),
        (_AMD_THIN, _AMD),
        (_AMD, _AMD),
        (_AMD, _AMD),
        (_AMD, _AMD_HALF),
        (_AMD_HALF_16, _AMD_HALF_16),
    ),
    ("queries", "sm_80"): _rows(
        (_THIN, _THIN),
        (_WIDE, _WIDE),
        (_THIN_SQUARE, _SQUARE),
        (_WIDE, Tile(64, 32, 4, 2)),
        (_WIDE, _SECOND_THIN),
        (_WIDE, _SECOND_THIN),
        (_SQUARE, _SQUARE),
        (Tile(64, 16, 4, 1, 16), Tile(64, 16, 4, 1, 16)),
        (_SPREAD_16, _SPREAD_16),
    ),
    ("queries", "sm_90"): _rows(
        (_THIN, _THIN),
        (_WIDE, _WIDE),
        (_THIN, _THIN_SQUARE),
        (_WIDE, _WIDE),
        (_THIN_SQUARE, _THIN_SQUARE),
        (_WIDE, _WIDE),
        (_WIDE, _WIDE),
        (_WIDE, _HALF),
        (_HALF_16, Tile(32, 32, 4, 2, 16)),
    ),
    ("queries", "sm_100"): _rows(
        (_THIN, _THIN_SQUARE),
        (_WIDE, _WIDE),
        (_THIN, _WIDE),
        (_WIDE, _WIDE),
        (_WIDE, _SQUARE),
        (_WIDE, _SQUARE),
        (_SQUARE, _WIDE_16),
        (_WIDE, _HALF),
        (_HALF_16, _HALF_16),
    ),
    ("queries", "gfx942"): _rows(
        (_AMD_THIN, _AMD_THIN_SQUARE),
        (_AMD, _AMD),
        (_AMD_THIN_SQUARE, _AMD),
        (_AMD, _AMD),
        (_AMD, _AMD),
        (_AMD, _AMD),
        (_AMD, _AMD_HALF),
        (_AMD_HALF, _AMD_NARROW),
        (_AMD_NARROW_16, _AMD_NARROW_16),
    ),
    ("keys", "sm_80"): _rows(
        (_THIN_KEYS, _THIN_KEYS),
        (_KEYS, _KEYS_HALF),
        (_THIN_SQUARE, Tile(32, 64, 4, 1)),
        (_KEYS_HALF, Tile(32, 64, 4, 1)),
        (_KEYS_HALF, _LOW_KEYS),
        (_KEYS_HALF, _LOW_KEYS),
        (_SQUARE, Tile(32, 64, 4, 2)),
        (_LOW_KEYS, _LOW_KEYS),
        (Tile(32, 64, 4, 2), _SPREAD),
    ),
    ("keys", "sm_90"): _rows(
        (_THIN_KEYS, _THIN_KEYS),
        (_KEYS, _KEYS),
        (_THIN_SQUARE, _KEYS),
        (_KEYS, _KEYS),
        (_THIN_SQUARE, _KEYS_HALF),
        (_KEYS_HALF, _KEYS_HALF),
        (_KEYS, _KEYS),
        (_KEYS, _KEYS_HALF),
        (_KEYS_THIN, Tile(32, 32, 4, 1)),
    ),
    ("keys", "sm_100"): _rows(
        (_THIN_SQUARE, _THIN_SQUARE),
        (_KEYS, _KEYS),
        (_THIN_SQUARE, _KEYS),
        (_KEYS, _KEYS),
        (_KEYS_HALF, _KEYS_HALF),
        (_SQUARE, _KEYS_HALF),
        (_KEYS, _SQUARE),
        (_KEYS, Tile(32, 64, 4, 2)),
        (_KEYS_THIN, _KEYS_THIN),
    ),
    ("keys", "gfx942"): _rows(
        (_AMD_KEYS, _AMD_KEYS),
        (_AMD_KEYS, _AMD_KEYS),
        (_AMD_SQUARE, _AMD_KEYS),
        (_AMD_SQUARE, _AMD_KEYS),
        (_AMD_NARROW_KEYS, _AMD_NARROW_KEYS),
        (_AMD_NARROW_KEYS, _AMD_NARROW_KEYS),
        (_AMD_NARROW_KEYS, _AMD_TABLE),
        (_AMD_NARROW_KEYS, _AMD_TABLE),
        (_AMD_SECOND_KEYS, _AMD_SECOND_KEYS),
    ),
    ("table", "sm_80"): _same(
        _THIN_TABLE,
        _TABLE_HALF,
        _TABLE,
        _TABLE,
        _TABLE_HALF,
        _TABLE_HALF,
        _TABLE_HALF,
        _TABLE_HALF,
        _TABLE_HALF,
    ),
    ("table", "sm_90"): _same(
        _THIN_TABLE,
        _TABLE_HALF,
        _TABLE,
        _TABLE,
        _TABLE,
        _TABLE,
        _TABLE_HALF,
        _TABLE_HALF,
        _SPREAD_HALF,
    ),
    ("table", "sm_100"): _same(
        _TABLE,
        _TABLE,
        _SPREAD,
        _SPREAD,
        _SPREAD,
        _SPREAD,
        _TABLE_HALF,
        _SPREAD,
        _SPREAD_HALF,
    ),
    ("table", "gfx942"): _same(
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL_16,
    ),
    ("double_rows", "sm_80"): _rows(
        (_SECOND_THIN, Tile(32, 16, 2, 2)),
        (_SECOND_THIN, Tile(32, 16, 2, 2)),
        (Tile(32, 16, 2, 2), Tile(64, 16, 4, 1, 16)),
        (_BLOCK, _BLOCK),
        (Tile(64, 16, 4, 1, 16), Tile(32, 16, 2, 1, 16)),
        (_CORNER, _CORNER),
        (_LOW, _LOW),
        (Tile(64, 16, 4, 1, 16), Tile(32, 16, 2, 1, 16)),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_rows", "sm_90"): _rows(
        (_THIN_SQUARE, _THIN_SQUARE),
        (_SECOND, _SECOND_HALF),
        (_SECOND, _SECOND_HALF),
        (_SECOND, _SECOND_HALF),
        (_HALF, _SECOND_THIN),
        (_HALF, _SECOND_THIN),
        (_SECOND_THIN, _LOW),
        (_SECOND_THIN, _SECOND_FLAT),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_rows", "sm_100"): _rows(
        (_SECOND, _SECOND),
        (_SECOND, _LOW),
        (_SECOND_THIN, _SECOND_THIN),
        (_SECOND, _LOW),
        (_SECOND_THIN, _SECOND_THIN),
        (_LOW, _LOW),
        (_LOW, _SPREAD_HALF),
        (_SPREAD_HALF, _SPREAD_THIN),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_rows", "gfx942"): _same(
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
    ),
    ("double_queries", "sm_80"): _rows(
        (_SECOND, _SECOND_HALF),
        (_SECOND, _SECOND_HALF),
        (Tile(32, 16, 2, 2), Tile(32, 16, 2, 2)),
        (_BLOCK, _BLOCK),
        (_SECOND_THIN, Tile(64, 16, 4, 1, 16)),
        (_CORNER, _CORNER),
        (_LOW, _LOW),
        (Tile(16, 64, 8, 2, 16), Tile(32, 16, 2, 1, 16)),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_queries", "sm_90"): _rows(
        (_THIN, _THIN_SQUARE),
        (_SECOND, _WIDE),
        (_SECOND, _SECOND_HALF),
        (_SECOND, _SECOND_HALF),
        (_WIDE, _SECOND_THIN),
        (_WIDE, _SECOND_THIN),
        (_SECOND_THIN, _SECOND_FLAT),
        (_SECOND_THIN, _SECOND_FLAT),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_queries", "sm_100"): _rows(
        (_SECOND, _WIDE),
        (_SECOND, _WIDE),
        (_SECOND, _SECOND_FLAT),
        (_SECOND, _SECOND_HALF),
        (_SECOND_THIN, _SECOND_THIN),
        (_SPREAD_HALF, _LOW),
        (_LOW, _SPREAD_HALF),
        (_SECOND_FLAT, _SPREAD_THIN),
        (Tile(16, 64, 8, 2, 16), Tile(16, 64, 8, 2, 16)),
    ),
    ("double_queries", "gfx942"): _same(
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
        _AMD_SMALL_16,
    ),
    ("double_keys", "sm_80"): _rows(
        (_SECOND_KEYS, _SECOND_KEYS_THIN),
        (_SECOND_KEYS, _SECOND_KEYS_THIN),
        (_SECOND_KEYS, _SECOND_KEYS_THIN),
        (_SECOND_KEYS, _BLOCK),
        (_SECOND_KEYS_THIN, _LOW_KEYS),
        (_SECOND_KEYS_THIN, _CORNER),
        (_CORNER, _CORNER),
        (_CORNER, _CORNER),
        (_CORNER, _CORNER),
    ),
    ("double_keys", "sm_90"): _rows(
        (_THIN_TABLE, _SECOND_KEYS),
        (_SECOND_KEYS, _SECOND_KEYS),
        (_SECOND_KEYS, _KEYS_HALF),
        (_SECOND_KEYS, _KEYS_HALF),
        (_SECOND_KEYS, _KEYS_THIN),
        (_SECOND_KEYS_THIN, _KEYS_THIN),
        (_KEYS_THIN, Tile(64, 16, 8, 2)),
        (_KEYS_THIN, _KEYS_THIN),
        (Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
    ),
    ("double_keys", "sm_100"): _rows(
        (_SPREAD_KEYS, _SECOND_KEYS),
        (_SPREAD_KEYS, _SPREAD_KEYS),
        (_SPREAD_KEYS, _SPREAD_KEYS),
        (_SPREAD_KEYS, _SPREAD_KEYS),
        (_SPREAD_KEYS, _SPREAD_KEYS),
        (Tile(32, 16, 4, 2), Tile(32, 16, 4, 2)),
        (_SPREAD_KEYS, _SPREAD_KEYS),
        (Tile(16, 64, 8, 2), Tile(16, 64, 8, 2)),
        (Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
    ),
    ("double_keys", "gfx942"): _same(
        _AMD_SECOND_KEYS,
        _AMD_SECOND_KEYS,
        _AMD_SECOND_KEYS,
        _AMD_SECOND_KEYS,
        _AMD_SECOND_KEYS_THIN,
        _AMD_SECOND_KEYS_THIN,
        _AMD_SECOND_KEYS_THIN,
        _AMD_SECOND_KEYS_THIN,
        _AMD_SECOND_KEYS_THIN,
    ),
    ("double_table", "sm_80"): _same(
        _TABLE_HALF,
        _TABLE_HALF,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
    ),
    ("double_table", "sm_90"): _same(
        _TABLE_SMALL,
        _TABLE_HALF,
        _TABLE_HALF,
        _TABLE_HALF,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
    ),
    ("double_table", "sm_100"): _same(
        _TABLE_SMALL,
        _TABLE_SMALL,
        Tile(64, 32, 4, 1),
        _SPREAD_HALF,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
        _LOW,
    ),
    ("double_table", "gfx942"): _same(
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_TABLE,
        _AMD_SMALL,
        _AMD_SMALL,
        _AMD_SMALL_16,
    ),
}
# Entries that are not clean: the tile above is the least bad, and this is what is wrong, with the
# mask or bias that is worst. Tried (rows x keys) on sm_80 for K1 and K2: 128x64, 64x64, 128x32,
# 64x32, 128x16, 32x64, 32x32, 16x64, 64x16, with 2 to 8 warps; for K5 on NVIDIA's targets: 64x64,
# 128x16, 64x32, 32x64, 32x32, 64x16, 32x16, 16x128, 16x64, 16x32, 16x16, with 1 to 8 warps.
UNCLEAN: dict[tuple[str, str, int, bool], str] = {
    ("forward", "sm_80", 144, False): "exponentials x 1.25",
    ("forward", "sm_80", 256, True): "exponentials x 1.50",
    ("forward", "sm_80", 256, False): "exponentials x 1.50",
    ("queries", "sm_80", 144, True): "spills 8 bytes",
    ("queries", "sm_80", 144, False): "spills 24 bytes",
    ("double_rows", "sm_80", 80, True): "spills 16 bytes",
    ("double_rows", "sm_80", 80, False): "spills 104 bytes",
    ("double_rows", "sm_80", 144, True): "spills 928 bytes",
    ("double_rows", "sm_80", 144, False): "spills 1104 bytes",
    ("double_rows", "sm_80", 256, True): "spills 120 bytes",
    ("double_rows", "sm_80", 256, False): "spills 288 bytes",
    ("double_queries", "sm_80", 80, True): "spills 8 bytes",
    ("double_queries", "sm_80", 80, False): "spills 152 bytes",
    ("double_queries", "sm_80", 144, True): "spills 768 bytes",
    ("double_queries", "sm_80", 144, False): "spills 1064 bytes",
    ("double_queries", "sm_80", 256, True): "spills 120 bytes",
    ("double_queries", "sm_80", 256, False): "spills 344 bytes",
    ("double_keys", "sm_80", 144, True): "spills 32 bytes",
    ("double_keys", "sm_80", 144, False): "spills 4144 bytes",
    ("double_keys", "sm_80", 256, False): "spills 240 bytes",
    ("double_table", "sm_80", 144, False): "spills 24 bytes",
    ("double_table", "sm_80", 256, False): "spills 24 bytes",
    ("double_rows", "sm_90", 144, True): "spills 112 bytes",
    ("double_rows", "sm_90", 144, False): "spills 240 bytes",
    ("double_rows", "sm_90", 256, True): "spills 128 bytes",
    ("double_rows", "sm_90", 256, False): "spills 304 bytes",
    ("double_queries", "sm_90", 128, False): "spills 40 bytes",
    ("double_queries", "sm_90", 144, True): "spills 40 bytes",
    ("double_queries", "sm_90", 144, False): "spills 152 bytes",
    ("double_queries", "sm_90", 256, True): "spills 152 bytes",
    ("double_queries", "sm_90", 256, False): "spills 336 bytes",
    ("double_keys", "sm_90", 144, True): "spills 80 bytes",
    ("double_keys", "sm_90", 144, False): "spills 192 bytes",
    ("double_keys", "sm_90", 256, False): "spills 8 bytes",
    ("double_table", "sm_90", 256, False): "spills 48 bytes",
    ("forward", "sm_100", 16, False): "spills 8 bytes with dropout",
    ("double_rows", "sm_100", 80, False): "spills 24 bytes",
    ("double_rows", "sm_100", 128, False): "spills 8 bytes",
    ("double_rows", "sm_100", 144, False): "spills 40 bytes",
    ("double_rows", "sm_100", 256, True): "spills 352 bytes",
    ("double_rows", "sm_100", 256, False): "spills 448 bytes",
    ("double_queries", "sm_100", 80, False): "spills 16 bytes",
    ("double_queries", "sm_100", 128, False): "spills 8 bytes",
    ("double_queries", "sm_100", 144, False): "spills 8 bytes",
    ("double_queries", "sm_100", 256, True): "spills 312 bytes",
    ("double_queries", "sm_100", 256, False): "spills 408 bytes",
    ("double_keys", "sm_100", 80, False): "spills 56 bytes",
    ("double_keys", "sm_100", 144, True): "spills 120 bytes",
    ("double_keys", "sm_100", 144, False): "spills 168 bytes",
    ("double_keys", "sm_100", 256, False): "spills 24 bytes",
    ("double_table", "sm_100", 256, False): "spills 112 bytes",
    ("double_rows", "gfx942", 256, True): "spills 68 bytes",
    ("double_rows", "gfx942", 256, False): "spills 696 bytes",
    ("double_queries", "gfx942", 256, True): "spills 220 bytes",
    ("double_queries", "gfx942", 256, False): "spills 836 bytes",
    ("double_keys", "gfx942", 144, False): "spills 8 bytes",
    ("double_keys", "gfx942", 256, False): "spills 16 bytes",
    ("double_table", "gfx942", 256, False): "spills 4 bytes",
}

# float32 takes twice the registers. On NVIDIA's targets its products have no matrix units unless
# TF32 is allowed (torch.set_float32_matmul_precision): a lane then holds whole rows of both
# factors, so that only small tiles for many lanes do not spill. Judged at 64 columns.
_FLOAT32_NVIDIA = {
    "forward": Tile(32, 32, 8, 1, 16),
    "queries": Tile(32, 32, 8, 1, 16),
    "keys": Tile(32, 32, 8, 1),
    "table": Tile(32, 32, 8, 1),
    "double_rows": Tile(16, 16, 8, 1, 16),
    "double_queries": Tile(16, 16, 8, 1, 16),
    "double_keys": Tile(16, 16, 8, 1),
    "double_table": Tile(16, 16, 8, 1),
}
_FLOAT32_AMD = {
    "forward": Tile(64, 64, 4, 1, 16, narrow_mfma=True),
    "queries": _AMD_SMALL_16,
    "keys": _AMD_SECOND_KEYS,
    "table": _AMD_SMALL_16,
    "double_rows": Tile(64, 16, 4, 1, 16, narrow_mfma=True),
    "double_queries": Tile(64, 16, 4, 1, 16, narrow_mfma=True),
    "double_keys": _AMD_SECOND_KEYS_THIN,
    "double_table": Tile(64, 16, 4, 1, 16, narrow_mfma=True),
}
FLOAT32_TILES: dict[tuple[str, str], Tile] = {
    **{(k, t): tile for t in ("sm_80", "sm_90", "sm_100") for k, tile in _FLOAT32_NVIDIA.items()},
    **{(kernel, "gfx942"): tile for kernel, tile in _FLOAT32_AMD.items()},
    ("keys", "sm_80"): Tile(16, 32, 8, 1),
}


def tile_for(
    kernel: str,
    target: str,
    parts: tuple[int, int],
    value_parts: tuple[int, int],
    *,
    size: int,
    plain: bool,
) -> Tile:
    """The tile of a kernel.

    Args:
        kernel: A first name of `TILES`.
        target: As `target_of` gives it.
        parts: Head dimension of q and k in parts (`arguments.head_parts`).
        value_parts: That of v.
        size: Bytes of a number, 2 or 4.
        plain: No mask or a causal one, nothing added, no dropout.
    """
    if size == 4:
        return FLOAT32_TILES[kernel, target]
    width = max(sum(parts), sum(value_parts))
    found = TILES[kernel, target][next(w for w in WIDTHS if width <= w)]
    return found[0] if plain else found[1]
