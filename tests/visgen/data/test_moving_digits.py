"""Flying digits: which scans they are, where they go, and that each clip stands alone."""

import numpy as np
import pytest
import torch

from visgen.data.dataset import DataError
from visgen.data.digits import read_values, to_pixels, upsample
from visgen.data.drawn import DrawnClips, Flight
from visgen.data.moving_digits import (
    MovingDigits,
    digit_side,
    enlarge,
    open_moving_digits,
)
from visgen.data.videos import Clip, VideoData

FIRST_64 = torch.arange(64)


def opened(side: int = 32, frames: int = 16, digits: int = 2, seed: int = 0) -> VideoData:
    return open_moving_digits(Clip(frames=frames, size=(side, side)), digits=digits, seed=seed)


def source_of(data: VideoData) -> MovingDigits:
    assert isinstance(data.source, MovingDigits)
    return data.source


@pytest.mark.parametrize(("side", "variance"), [(64, 0.0470), (32, 0.0455)])
def test_first_clips_have_the_mean_and_variance_of_the_definition(
    side: int, variance: float
) -> None:
    videos = opened(side).videos(FIRST_64)
    assert videos.shape == (64, 16, 3, side, side)
    assert videos.dtype == torch.uint8
    x = videos.double() / 255
    assert x.mean().item() == pytest.approx(0.0807, abs=5e-5)
    assert x.var(unbiased=False).item() == pytest.approx(variance, abs=5e-5)


def test_the_first_clip_shows_a_six_and_an_eight() -> None:
    assert source_of(opened()).classes_of(torch.tensor([0])).tolist() == [[6, 8]]


def test_a_clip_is_the_same_alone_and_in_any_batch() -> None:
    data = opened()
    together = data.videos(torch.tensor([11_023, 5, 5, 10_000]))
    for row, index in enumerate((11_023, 5, 5, 10_000)):
        assert torch.equal(data.videos(torch.tensor([index]))[0], together[row])
    assert not torch.equal(together[0], together[1])


def test_a_short_clip_begins_the_long_one() -> None:
    assert torch.equal(
        opened(frames=5).videos(FIRST_64[:4]), opened(frames=9).videos(FIRST_64[:4])[:, :5]
    )


def test_splits_follow_each_other_and_draw_from_other_scans() -> None:
    data = opened()
    train, test = data.split("train"), data.split("test")
    assert (len(data), len(train), len(test)) == (11_024, 10_000, 1_024)
    assert torch.equal(torch.cat((train, test)), torch.arange(11_024))
    source = source_of(data)
    trained, tested = (set(source.scans_of(part).flatten().tolist()) for part in (train, test))
    order = np.random.RandomState(0).permutation(1797).tolist()
    assert trained == set(order[:1437])
    assert tested < set(order[1437:])
    assert len(tested) == 358  # 2,048 draws of 360 miss one or two


def test_generators_are_seeded_by_the_place_in_the_split() -> None:
    clips = DrawnClips(7, {"train": 3, "test": 2})
    drawn = [(split, rng.randint(10**9)) for split, rng in clips.generators(range(5))]
    places = [("train", 0), ("train", 1), ("train", 2), ("test", 0), ("test", 1)]
    assert [clips.place(index) for index in range(5)] == places
    for (split, place), (told, value) in zip(places, drawn, strict=True):
        seed = 1_000_003 * 7 + (500_000_007 if split == "test" else 0) + place
        assert told == split
        assert value == np.random.RandomState(seed % (2**32 - 1)).randint(10**9)


@pytest.mark.parametrize("side", [16, 40])
def test_a_digit_is_whole_in_every_frame(side: int) -> None:
    # Its pixels always have the same sum: none is cut off by the frame.
    mass = opened(side, frames=40, digits=1).videos(FIRST_64[:16]).long().sum(dim=(2, 3, 4))
    assert torch.equal(mass, mass[:, :1].expand(-1, 40))
    assert mass.min() > 0


def test_a_flight_is_the_straight_line_folded_at_the_sides() -> None:
    flight = Flight.draw(np.random.RandomState(3), 64, 40)
    start, velocity = np.array(flight.place), np.array(flight.velocity)
    assert 2 <= np.linalg.norm(velocity) <= 5
    hits = 0
    for frame in range(100):
        straight = start + velocity * frame
        folded = 40 - np.abs(straight % 80 - 40)
        assert np.allclose(flight.place, folded, atol=1e-9)
        assert np.allclose(np.abs(flight.velocity), np.abs(velocity))
        assert flight.corner() == tuple(np.floor(np.array(flight.place) + 0.5))
        hits += flight.move()
    assert hits >= 2


def test_the_brighter_digit_wins_where_two_meet() -> None:
    data, source = opened(64, frames=1), source_of(opened(64, frames=1))
    rng = np.random.RandomState(0)
    expected = np.zeros((64, 64), dtype=np.uint8)
    for scan in source.scans_of(torch.tensor([0]))[0].tolist():
        rng.randint(1437)
        y, x = (int(rng.uniform(0, 40) + 0.5) for _ in range(2))
        rng.uniform(size=2)
        pixels = enlarge(source.values[scan], 24)
        expected[y : y + 24, x : x + 24] = np.maximum(expected[y : y + 24, x : x + 24], pixels)
    assert np.array_equal(data.videos(torch.tensor([0]))[0, 0, 0].numpy(), expected)


def test_enlarging_by_two_is_the_exact_bilinear_one() -> None:
    values = read_values()[0][:50]
    expected = to_pixels(upsample(values, 16))[:, 0].numpy()
    assert np.array_equal(np.stack([enlarge(v, 16) for v in values[:, 0].numpy()]), expected)


def test_a_third_of_eight_sixteenths_rounds_up() -> None:
    values = np.full((8, 8), 8.0)
    values[:, 0] = 0  # column 2 of 24 lies a third of the way to the next value: 42.5 of 255
    assert enlarge(values, 24)[:, :5].tolist() == [[0, 0, 43, 85, 128]] * 24


@pytest.mark.parametrize(("side", "digit"), [(64, 24), (32, 12), (16, 6), (20, 8), (40, 15)])
def test_a_digit_takes_three_eighths_of_the_side(side: int, digit: int) -> None:
    assert digit_side(side) == digit


def test_one_digit_is_the_label_and_two_have_none() -> None:
    single, pair = opened(digits=1), opened()
    labels = single.labels(torch.arange(11_024))
    assert labels is not None
    assert single.classes == tuple("0123456789")
    assert torch.equal(labels, source_of(single).classes_of(torch.arange(11_024))[:, 0])
    assert len(labels.unique()) == 10
    assert pair.labels(FIRST_64) is None
    assert pair.captions(FIRST_64) is None
    assert pair.actions(FIRST_64) is None
    assert (pair.channels, pair.levels) == (1, 256)


def test_fingerprint_and_clips_depend_on_the_seed_and_the_kind_of_clip() -> None:
    first = opened()
    others = [opened(64), opened(frames=8), opened(digits=1), opened(seed=1)]
    assert first.fingerprint == opened().fingerprint
    assert len({data.fingerprint for data in (first, *others)}) == 5
    assert not torch.equal(first.videos(FIRST_64[:1]), others[3].videos(FIRST_64[:1]))


def test_clips_that_cannot_be_drawn_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="square clips with sides of 16 pixels or more; got 32x48"):
        open_moving_digits(Clip(frames=4, size=(32, 48)))
    with pytest.raises(DataError, match="16 pixels or more; got 15x15"):
        opened(15)
    with pytest.raises(DataError, match="got stride 2"):
        open_moving_digits(Clip(frames=4, size=(32, 32), stride=2))
    with pytest.raises(DataError, match='got stride 1, policy "random"'):
        open_moving_digits(Clip(frames=4, size=(32, 32), policy="random"))
    with pytest.raises(DataError, match="1 digit or more, got 0"):
        opened(digits=0)
