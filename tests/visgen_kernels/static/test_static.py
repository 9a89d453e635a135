"""What K1 costs on four targets, read from its machine code.

Compiles in this process, where Triton's interpreter is off.
"""

import pytest

from visgen_kernels.attention.launch import Tile
from visgen_kernels.masks import Blocks1d, Causal, SlidingWindow
from visgen_kernels.static.report import Report, report
from visgen_kernels.static.specimens import Kernel, compile_kernel, forward_kernel, plain_kernel
from visgen_kernels.static.targets import TARGETS


def read(kernel: Kernel, target: str) -> Report:
    constants = kernel.constants
    scores = constants["block_m"] * constants["block_n"]
    parts = [constants.get(name, 0) for name in ("d0", "d1", "dv0", "dv1")]
    width = sum(parts) or 2 * constants["d"]
    return report(compile_kernel(kernel, TARGETS[target]), scores=scores, flops=2 * scores * width)


def instructions(found: Report) -> float:
    """Of the loop over whole tiles, for each score."""
    assert found.interior.instructions is not None
    return found.interior.instructions


TILES = {
    ("sm_80", 64): Tile(64, 64, 4, 2),
    ("sm_90", 64): Tile(64, 64, 4, 2),
    ("sm_90", 128): Tile(128, 64, 8, 2),
    ("sm_100", 64): Tile(64, 64, 4, 2),
    ("gfx942", 64): Tile(128, 64, 4, 2),
}
MASKED = {
    "causal": {"mask": Causal()},
    "window": {"mask": SlidingWindow(32, 1)},
    "1-D blocks": {"mask": Blocks1d(256)},
    "key lengths": {"key_lengths": True},
}


@pytest.mark.parametrize(("target", "d"), list(TILES))
def test_k1_uses_matrix_units_without_spills_or_repeated_work(target: str, d: int) -> None:
    found = read(forward_kernel(TILES[target, d], d), target)
    assert found.compiled.stack == 0
    assert found.whole.counts.local == 0
    assert found.compiled.fits
    assert found.whole.counts.matrix
    assert found.occupancy.blocks >= 1
    assert len(found.loops) == 2  # whole tiles, and the last one
    for loop in found.loops:
        assert loop.exponentials is not None
        assert loop.exponentials <= 1.1
        assert loop.mma_ratio in (None, pytest.approx(1.0))
    assert found.whole.counts.accesses[0].width == 16


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_nine_tenths_of_the_bytes_move_sixteen_at_a_time(target: str) -> None:
    share = read(forward_kernel(TILES[target, 64], 64), target).whole.counts.wide_share(16)
    assert share is not None
    assert share >= 0.9


@pytest.mark.parametrize(("target", "d"), [("sm_80", 64), ("sm_90", 64), ("sm_90", 128)])
def test_k1_costs_at_most_a_tenth_more_than_the_plain_loop(target: str, d: int) -> None:
    tile = TILES[target, d]
    plain, own = (read(kernel(tile, d), target) for kernel in (plain_kernel, forward_kernel))
    assert plain.compiled.stack == own.compiled.stack == 0
    assert instructions(own) <= 1.10 * instructions(plain)


def test_masks_are_free_in_whole_tiles_and_the_position_bias_is_cheap() -> None:
    tile = TILES["sm_90", 64]
    plain = instructions(read(forward_kernel(tile, 64), "sm_90"))
    for name, fields in MASKED.items():
        found = read(forward_kernel(tile, 64, **fields), "sm_90")
        assert found.compiled.stack == 0, name
        assert instructions(found) <= 1.10 * plain, name
    bias = read(forward_kernel(tile, 64, bias=(16, 16), inner=16), "sm_90")
    assert instructions(bias) <= 1.35 * plain


def test_wgmma_is_what_hopper_multiplies_with() -> None:
    found = read(forward_kernel(TILES["sm_90", 64], 64), "sm_90")
    assert "HGMMA" in found.compiled.code
    assert "HMMA.16816" not in found.compiled.code


def test_a_head_stride_that_is_no_multiple_of_16_keeps_loads_wide() -> None:
    found = read(forward_kernel(Tile(64, 64, 4, 2), 72), "sm_90")
    widths = {access.width for access in found.whole.counts.accesses}
    assert min(widths - {4}) == 16  # 4 bytes: the log-sum-exp, a number a row
