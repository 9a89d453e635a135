"""How many tiles a program meets, counted by hand."""

import pytest

from visgen_kernels.layouts import Windows
from visgen_kernels.masks import Blocks2d, Causal, Full, Mask, SameGroup, SlidingWindow
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.passes import Passes, passes


def shape(n: int, mask: Mask | None = None, *, keys: int | None = None) -> Shape:
    made = mask or Full()
    return Shape(
        id="x", what="", batch=1, grid=(n,), heads=1, d=16, mask=lambda: made,
        key_grid=None if keys is None else (keys,), separate=True,
    )  # fmt: skip


def test_everything_visible_leaves_only_the_last_tile_to_mask() -> None:
    assert passes(shape(256), 64, 32) == Passes(4, 8, 0)
    assert passes(shape(250), 64, 32) == Passes(4, 7, 1)
    # Keys beyond the end are masked, queries beyond the end are not.
    assert passes(shape(250), 64, 32, of_keys=True) == Passes(8, 3, 1)
    assert passes(shape(64, keys=100), 16, 64) == Passes(4, 1, 1)


def test_causal_programs_meet_what_lies_before_them() -> None:
    # Rows 0-63 meet keys 0-63 in part; rows 64-127 one whole tile and one in part; and so on.
    assert passes(shape(256, Causal()), 64, 64) == Passes(4, 1.5, 1)
    assert passes(shape(256, Causal()), 64, 64, of_keys=True) == Passes(4, 1.5, 1)
    assert passes(shape(256, Causal()), 64, 32) == Passes(4, 3, 2)
    # Bottom-right: the last 64 of 128 keys' queries.
    assert passes(shape(64, Causal(), keys=128), 64, 64) == Passes(1, 1, 1)


def test_masked_tiles_are_taken_in_pieces() -> None:
    # The diagonal tile of 64 x 64 is two pieces of 32 keys, both with something visible in them.
    assert passes(shape(256, Causal()), 64, 64, piece=32) == Passes(4, 1.5, 2)
    # 16 tokens in a tile of 64 x 64: one piece of 32 of the two holds them all.
    assert passes(shape(16), 64, 64, piece=32) == Passes(1, 0, 1)
    # Listed tiles are walked to their end.
    mask = Blocks2d((8, 8), (4, 4), (0, 0))
    assert passes(shape(64, mask), 16, 16, piece=8) == Passes(4, 0, 2)


def test_a_window_meets_its_neighbours() -> None:
    # 4 tiles of 64; radius 32 touches one neighbour on each side, none of them whole.
    assert passes(shape(256, SlidingWindow(32)), 64, 64) == Passes(4, 0, (2 + 3 + 3 + 2) / 4)
    assert passes(shape(256, SlidingWindow(64)), 32, 32).whole > 0


def test_blocks_of_a_map_are_walked_block_by_block() -> None:
    # 2 x 2 blocks of 4 x 4 tokens, no flange: every block meets itself alone.
    mask = Blocks2d((8, 8), (4, 4), (0, 0))
    assert passes(shape(64, mask), 16, 16) == Passes(4, 0, 1)


def test_shifted_windows_are_masked_everywhere() -> None:
    mask = SameGroup.shifted((16, 16), (8, 8), 4)
    windows = Shape(
        id="x", what="", batch=1, grid=(16, 16), heads=1, d=16, layout=Windows(8, 8),
        mask=lambda: mask,
    )  # fmt: skip
    assert passes(windows, 32, 32) == Passes(2, 0, 2)


@pytest.mark.parametrize("id", ["P1", "P3", "I1", "I2", "T2"])
@pytest.mark.parametrize("of_keys", [False, True])
def test_no_visible_pair_is_left_out(id: str, of_keys: bool) -> None:
    found = passes(SHAPES[id], 64, 64, of_keys=of_keys)
    met = found.programs * (found.whole + found.masked) * 64 * 64
    assert met >= SHAPES[id].pairs
    assert found.programs * found.whole * 64 * 64 <= SHAPES[id].pairs
