"""Reference generators for video, on a set small enough to look at whole."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from visgen.baselines.statistical import real_subset
from visgen.baselines.video_statistics import PRESETS
from visgen.conditions import ClassLabel, FirstFrames
from visgen.data.moving_shapes import open_moving_shapes
from visgen.data.videos import Clip, VideoData
from visgen.seeds import sample_seeds

SEEDED = ("real-videos", "shuffled-videos")


def small(count: int = 24) -> VideoData:
    data = open_moving_shapes(Clip(frames=5, size=(16, 16)))
    return replace(data, splits={"train": torch.arange(100, 100 + count)})


def rows(clips: Tensor) -> list[tuple[int, ...]]:
    return sorted(map(tuple, clips.flatten(1).tolist()))


def test_real_videos_do_not_repeat_until_all_are_drawn_and_are_the_floors_clips() -> None:
    data = small()
    train = data.videos(data.split("train"))
    model = PRESETS["real-videos"].fit(data, run_seed=7)
    drawn = model.generate(sample_seeds(7, torch.arange(24)))
    assert rows(drawn) == rows(train)
    assert torch.equal(drawn[:9], data.videos(real_subset(data.split("train"), 7, 9)))
    beyond = model.generate(sample_seeds(8, torch.arange(200)))
    assert set(rows(beyond)) == set(rows(train))


@pytest.mark.parametrize("preset", SEEDED)
def test_a_sample_depends_on_its_seed_alone(preset: str) -> None:
    model = PRESETS[preset].fit(small(), run_seed=3)
    seeds = sample_seeds(3, torch.arange(10))
    together = model.generate(seeds)
    assert (together.dtype, together.shape) == (torch.uint8, (10, 5, 3, 16, 16))
    assert model.clip_size == (5, 16, 16)
    assert torch.equal(together, torch.cat([model.generate(seed[None]) for seed in seeds]))
    assert torch.equal(together, model.generate(seeds.flip(0)).flip(0))


def test_shuffled_pixels_are_the_clips_own_and_move_alike_in_all_frames() -> None:
    data = small()
    seeds = sample_seeds(3, torch.arange(10))
    real = PRESETS["real-videos"].fit(data, run_seed=3).generate(seeds).flatten(3)
    mixed = PRESETS["shuffled-videos"].fit(data, run_seed=3).generate(seeds).flatten(3)
    assert not torch.equal(real, mixed)
    for before, after in zip(real, mixed, strict=True):
        # A pixel is its 15 values over frames and channels; the multiset of pixels stays.
        assert rows(before.flatten(0, 1).T) == rows(after.flatten(0, 1).T)


def test_the_mean_clip_is_the_mean_rounded_half_up() -> None:
    data = small(130)  # more than are read at a time
    model = PRESETS["mean-clip"].fit(data)
    mean = data.videos(data.split("train")).double().mean(0)
    clips = model.generate(torch.tensor([1, 2]))
    assert torch.equal(clips[0].double(), (mean + 0.5).floor())
    assert torch.equal(clips[0], clips[1])
    assert model.clip_size == (5, 16, 16)


def test_the_last_given_frame_is_copied() -> None:
    model = PRESETS["copy-last-frame"].fit(small())
    frames = small().videos(torch.arange(3))[:, :2]
    clips = model.generate(torch.arange(3), FirstFrames(frames))
    assert torch.equal(clips[:, :2], frames)
    assert torch.equal(clips[:, 2:], frames[:, 1:].expand(-1, 3, -1, -1, -1))
    for wrong in (None, ClassLabel(torch.arange(3))):
        with pytest.raises(ValueError, match="copy-last-frame goes on from first frames"):
            model.generate(torch.arange(3), wrong)
    with pytest.raises(ValueError, match="1 to 5 frames of 16x16"):
        model.generate(torch.arange(3), FirstFrames(frames[..., :8]))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_nothing_is_trained_and_other_conditions_are_refused(preset: str) -> None:
    model = PRESETS[preset].fit(small())
    assert model.networks() == {}
    with pytest.raises(ValueError, match=r"unconditional|FirstFrames"):
        model.generate(torch.arange(3), ClassLabel(torch.arange(3)))
    if not preset.startswith("copy-last"):
        with pytest.raises(ValueError, match="no training clips"):
            PRESETS[preset].fit(small(0))
