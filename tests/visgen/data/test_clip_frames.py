import math

import pytest
import torch
from torch.nn.functional import interpolate

from visgen.data.clip_frames import (
    MOST_SIDE,
    BrokenVideo,
    check_clip,
    check_sides,
    clip_starts,
    fit_frames,
)
from visgen.data.dataset import DataError
from visgen.data.videos import Clip


def noise(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, rows, columns), dtype=torch.uint8, generator=generator)


def test_frames_of_the_size_are_left_as_they_are() -> None:
    frames = noise(5, 7)
    assert torch.equal(fit_frames(frames, (5, 7)), frames)


def test_halving_takes_the_middle_of_two_pixels_and_rounds_half_up() -> None:
    # Half-pixel centres at scale 2 fall between two pixels: weights 1/2, without antialiasing.
    frames = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    frames[..., 0], frames[..., 1] = 1, 2
    frames[..., 2], frames[..., 3] = 10, 20
    assert fit_frames(frames, (1, 2))[0, 0].tolist() == [[2, 15]]


def test_a_square_is_cut_as_videogpt_cuts_it() -> None:
    frames = noise(24, 32)
    scaled = interpolate(frames.float(), size=(9, 12), mode="bilinear", align_corners=False)
    expected = (scaled + 0.5).floor().to(torch.uint8)[..., 1:10]
    assert torch.equal(fit_frames(frames, (9, 9)), expected)
    turned = fit_frames(frames.transpose(2, 3), (9, 9)).transpose(2, 3)
    assert torch.equal(turned, expected)


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (40, 3), (3, 40), (1, 1)])
@pytest.mark.parametrize("shape", [(24, 32), (31, 17), (1, 1), (7, 7)])
def test_the_other_side_is_never_too_short(size: tuple[int, int], shape: tuple[int, int]) -> None:
    fitted = fit_frames(noise(*shape), size)
    assert fitted.shape == (2, 3, *size)
    assert fitted.dtype == torch.uint8


def test_the_longer_side_is_rounded_up_in_integers() -> None:
    # 15 * 100 / 12 is 125, but in floats 15 * (100 / 12) is above it, and its ceiling is 126.
    rows, columns, side = 12, 15, 100
    assert math.ceil(columns * (side / rows)) == -(-columns * side // rows) + 1
    frames = noise(rows, columns)
    exact = -(-columns * side // rows)
    scaled = interpolate(frames.float(), size=(side, exact), mode="bilinear", align_corners=False)
    left = (exact - side) // 2
    expected = (scaled + 0.5).floor().to(torch.uint8)[..., left : left + side]
    assert torch.equal(fit_frames(frames, (side, side)), expected)


def test_a_flat_picture_stays_flat() -> None:
    for value in (0, 128, 255):
        frames = torch.full((1, 3, 13, 29), value, dtype=torch.uint8)
        assert fit_frames(frames, (32, 32)).unique().tolist() == [value]


@pytest.mark.parametrize("sides", [(0, 5), (5, 0), (MOST_SIDE + 1, 1), (1, MOST_SIDE + 1)])
def test_frames_without_pixels_or_with_too_many_are_refused(sides: tuple[int, int]) -> None:
    with pytest.raises(BrokenVideo, match=rf"{sides[1]}x{sides[0]}; sides of 1 to {MOST_SIDE}"):
        check_sides(*sides)
    check_sides(MOST_SIDE, 1)


def test_a_clip_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(DataError, match="Take fewer frames or a smaller size"):
        check_clip(Clip(frames=10_000_000, size=(64, 64)))


def test_every_start_is_drawn_and_the_same_seed_draws_the_same() -> None:
    clip = Clip(frames=3, size=(4, 4), policy="random")
    indices, seeds = torch.zeros(200, dtype=torch.int64), torch.arange(200)
    starts = clip_starts(clip, indices, [6], seeds)
    assert {start for _, start in starts} == {0, 1, 2, 3}
    assert starts == clip_starts(clip, indices, [6], seeds)
    assert starts[:7] == clip_starts(clip, indices[:7], [6], seeds[:7])


def test_clips_of_one_video_follow_each_other() -> None:
    clip = Clip(frames=2, size=(4, 4), policy="uniform-3")
    starts = clip_starts(clip, torch.tensor([5, 0, 2, 3]), [6, 4], None)
    assert starts == [(1, 2), (0, 0), (0, 4), (1, 0)]
