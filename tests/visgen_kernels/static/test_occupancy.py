"""Resident blocks, by hand."""

import pytest

from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.occupancy import Occupancy, occupancy
from visgen_kernels.static.targets import TARGETS, find_target


def made(target: str, registers: int, shared: int, warps: int, columns: int = 0) -> Compiled:
    return Compiled(TARGETS[target], warps, "", registers, 0, shared, tensor_memory=columns)


@pytest.mark.parametrize(
    ("compiled", "expected"),
    [
        # 65,536 registers / (128 x 128 threads) = 4 blocks.
        (made("sm_80", 128, 0, 4), Occupancy(4, 16, "registers")),
        # 255 rounds up to 256 a thread: two blocks.
        (made("sm_80", 255, 0, 4), Occupancy(2, 8, "registers")),
        # 228 KiB hold two blocks of 96 KiB + 1 KiB.
        (made("sm_90", 64, 96 * 1024, 4), Occupancy(2, 8, "shared memory")),
        (made("sm_90", 32, 0, 4), Occupancy(16, 64, "warps")),
        (made("sm_90", 16, 0, 1), Occupancy(32, 32, "blocks")),
        # 512 columns hold two blocks of 192, which take 256 each.
        (made("sm_100", 64, 0, 4, columns=192), Occupancy(2, 8, "tensor memory")),
        (made("sm_100", 64, 0, 4, columns=576), Occupancy(0, 0, "tensor memory")),
        # 512 registers a lane hold two waves of 256 on each of four SIMDs.
        (made("gfx942", 256, 0, 4), Occupancy(2, 8, "registers")),
        (made("gfx942", 64, 40 * 1024, 4), Occupancy(1, 4, "shared memory")),
        (made("gfx942", 64, 80 * 1024, 4), Occupancy(0, 0, "shared memory")),
    ],
)
def test_occupancy_by_hand(compiled: Compiled, expected: Occupancy) -> None:
    assert occupancy(compiled) == expected


def test_a_block_that_does_not_fit_is_found_though_the_compiler_says_nothing() -> None:
    assert not made("gfx942", 64, 80 * 1024, 4).fits
    assert made("gfx942", 64, 64 * 1024, 4).fits
    assert not made("sm_100", 64, 0, 4, columns=576).fits
    assert made("sm_100", 64, 0, 4, columns=512).fits


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ValueError, match='unknown target "sm90"; nearest: "sm_90"'):
        find_target("sm90")
