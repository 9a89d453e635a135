"""Moving shapes: what the pixels do is what the sentence says."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from visgen.data.dataset import DataError
from visgen.data.moving_shapes import (
    CLASSES,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    SIZES,
    TURNS,
    Fact,
    MovingShapes,
    caption_of,
    is_held_out,
    open_moving_shapes,
    path,
)
from visgen.data.videos import Clip, VideoData

FIRST_64 = torch.arange(64)


def opened(side: int = 64, frames: int = 16, seed: int = 0) -> VideoData:
    return open_moving_shapes(Clip(frames=frames, size=(side, side)), seed=seed)


def source_of(data: VideoData) -> MovingShapes:
    assert isinstance(data.source, MovingShapes)
    return data.source


def centroids(video: torch.Tensor) -> NDArray[np.float64]:
    """Of the shape in each frame, (t, 2), y and x: the ground is grey, so colour is the shape."""
    weight = (video.amax(dim=1).double() - video.amin(dim=1).double()).numpy()
    places = np.arange(video.shape[-1])
    mass = weight.sum(axis=(1, 2))
    return np.stack((weight.sum(axis=2) @ places, weight.sum(axis=1) @ places), 1) / mass[:, None]


def test_first_clips_have_the_mean_variance_and_caption_of_the_definition() -> None:
    data = opened()
    videos = data.videos(FIRST_64)
    assert videos.shape == (64, 16, 3, 64, 64)
    assert videos.dtype == torch.uint8
    x = videos.double() / 255
    assert x.mean().item() == pytest.approx(0.1416, abs=5e-5)
    assert x.var(unbiased=False).item() == pytest.approx(0.0139, abs=5e-5)
    assert data.captions(torch.tensor([0])) == ["a large magenta square moving left"]
    labels = data.labels(FIRST_64)
    assert labels is not None
    assert len(labels.unique()) == 18


def test_classes_count_shapes_within_motions() -> None:
    data = opened()
    assert data.classes == CLASSES
    assert CLASSES[0] == "left circle"
    assert CLASSES[3 * 4 + 2] == "clockwise triangle"
    every = torch.arange(0, len(data), 37)
    labels = data.labels(every)
    assert labels is not None
    for fact, label in zip(source_of(data).facts(every), labels.tolist(), strict=True):
        assert CLASSES[label] == f"{fact.motion} {fact.shape}"


def test_captions_say_the_facts() -> None:
    assert caption_of(Fact("small", "red", "circle", "up")) == "a small red circle moving up"
    turning = Fact("large", "cyan", "triangle", "counterclockwise")
    assert caption_of(turning) == "a large cyan triangle circling counterclockwise"
    everything = itertools.product(SIZES, COLOURS, SHAPES, MOTIONS)
    assert len({caption_of(Fact(*words)) for words in everything}) == 216


def test_sixteen_of_108_combinations_are_shown_only_in_test_comp() -> None:
    every = set(itertools.product(range(6), range(3), range(6)))
    held_out = {drawn for drawn in every if is_held_out(*drawn)}
    assert len(held_out) == 16
    data = opened()
    names = tuple(COLOURS)
    seen = {}
    for split in ("train", "test", "test_comp"):
        facts = source_of(data).facts(data.split(split)[:1024])
        seen[split] = {
            (names.index(f.colour), SHAPES.index(f.shape), MOTIONS.index(f.motion)) for f in facts
        }
    assert seen["train"] == every - held_out
    assert seen["test"] == every - held_out
    assert seen["test_comp"] == held_out


def test_splits_follow_each_other() -> None:
    data = opened()
    ranges = [(part[0].item(), len(part)) for part in map(data.split, data.splits)]
    assert list(data.splits) == ["train", "test", "test_comp"]
    assert ranges == [(0, 10_000), (10_000, 1_024), (11_024, 1_024)]
    assert len(data) == 12_048


def test_shapes_move_as_their_captions_say() -> None:
    data = opened()
    scenes = source_of(data).scenes(FIRST_64)
    captions = data.captions(FIRST_64)
    assert captions is not None
    videos = data.videos(FIRST_64)
    seen = set()
    for video, scene, caption in zip(videos, scenes, captions, strict=True):
        steps = np.diff(centroids(video), axis=0)  # (t - 1, 2)
        motion = caption.split()[-1]
        seen.add(motion)
        if motion in DIRECTIONS:
            direction = np.array(DIRECTIONS[motion])
            period = 63 - 2 * scene.radius
            # What is left of a step after the one that the caption says: whole periods, and a
            # twentieth of a pixel by which the coverage of a slanted edge is off.
            rest = (steps - scene.speed * direction + period / 2) % period - period / 2
            assert np.abs(rest).max() < 0.1
        else:
            chord = 2 * scene.orbit * np.sin(scene.speed / scene.orbit / 2)
            assert np.allclose(np.linalg.norm(steps, axis=1), chord, atol=0.1)
            # y points down, so a clockwise path turns from right to down.
            turns = steps[:-1, 1] * steps[1:, 0] - steps[:-1, 0] * steps[1:, 1]
            assert (np.sign(turns) == TURNS[motion]).all()
    assert seen == set(MOTIONS)


def test_sizes_are_told_by_the_coverage() -> None:
    data = opened(frames=1)
    videos, facts = data.videos(FIRST_64), source_of(data).facts(FIRST_64)
    areas: dict[tuple[str, str], list[float]] = {}
    for video, fact in zip(videos, facts, strict=True):
        colour = COLOURS[fact.colour]
        chroma = (video[0].amax(dim=0).double() - video[0].amin(dim=0)).sum().item()
        area = chroma / (max(colour) - min(colour))
        areas.setdefault((fact.shape, fact.size), []).append(area)
    for shape in SHAPES:
        assert max(areas[shape, "small"]) < min(areas[shape, "large"])
    assert min(areas["circle", "small"]) > np.pi * 5.9**2
    assert max(areas["circle", "large"]) < np.pi * 11.1**2


@pytest.mark.parametrize("side", [16, 33, 64])
def test_pixels_are_those_of_the_formula_over_the_whole_frame(side: int) -> None:
    data = opened(side, frames=6)
    indices = torch.arange(40)
    videos = data.videos(indices).numpy()
    y, x = np.mgrid[:side, :side].astype(np.float64)
    for video, scene in zip(videos, source_of(data).scenes(indices), strict=True):
        down, right = (y - side / 2) * scene.slope[0], (x - side / 2) * scene.slope[1]
        ground = (scene.ground + down + right).clip(0, 255)
        r, h = scene.radius, 0.6735 * scene.radius
        colour = np.array(COLOURS[scene.fact.colour])[:, None, None]
        for frame, centre in zip(video, path(scene, 6, side), strict=True):
            dy, dx = y - centre[0], x - centre[1]
            distance = {
                "circle": np.sqrt(dy**2 + dx**2) - r,
                "square": np.maximum(abs(dy), abs(dx)) - 0.886 * r,
                "triangle": np.maximum(dy - 0.8 * h, 0.894 * abs(dx) - 0.447 * (dy + 1.2 * h)),
            }[scene.fact.shape]
            alpha = (0.5 - distance).clip(0, 1)
            expected = np.floor(ground * (1 - alpha) + colour * alpha + 0.5)
            assert np.array_equal(frame, expected.astype(np.uint8))


@pytest.mark.parametrize("side", [16, 64])
def test_shapes_stay_whole_within_the_frame(side: int) -> None:
    data = opened(side, frames=50)
    for scene in source_of(data).scenes(torch.arange(0, len(data), 100)):
        places = path(scene, 50, side)
        assert places.min() >= scene.radius - 1e-9
        assert places.max() <= side - 1 - scene.radius + 1e-9


def test_a_clip_is_the_same_alone_and_in_any_batch() -> None:
    data = opened(32)
    indices = (12_047, 5, 5, 10_000)
    together = data.videos(torch.tensor(indices))
    captions = data.captions(torch.tensor(indices))
    assert captions is not None
    for row, index in enumerate(indices):
        assert torch.equal(data.videos(torch.tensor([index]))[0], together[row])
        assert data.captions(torch.tensor([index])) == [captions[row]]
    assert torch.equal(opened(32, frames=5).videos(torch.tensor(indices)), together[:, :5])


def test_fingerprint_and_clips_depend_on_the_seed_and_the_kind_of_clip() -> None:
    first, other = opened(), opened(seed=1)
    prints = {data.fingerprint for data in (first, other, opened(32), opened(frames=8))}
    assert len(prints) == 4
    assert first.fingerprint == opened().fingerprint
    assert first.captions(FIRST_64) != other.captions(FIRST_64)
    assert first.actions(FIRST_64) is None


def test_clips_that_cannot_be_drawn_are_refused_in_words() -> None:
    with pytest.raises(DataError, match=r"moving-shapes draws square clips .* got 64x32"):
        open_moving_shapes(Clip(frames=4, size=(64, 32)))
    with pytest.raises(DataError, match="16 pixels or more; got 8x8"):
        opened(8)
    with pytest.raises(DataError, match='policy "uniform-2"'):
        open_moving_shapes(Clip(frames=4, size=(64, 64), policy="uniform-2"))
