"""Clips of videos whose every pixel is the number of the frame."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visgen.data.clip_frames import BrokenVideo
from visgen.data.dataset import DataError
from visgen.data.stored_videos import Inspected, Plan, StoredVideo, video_set
from visgen.data.videos import Clip, VideoData


class Numbered:
    def frames(self, wanted: range) -> Iterator[Tensor]:
        for number in wanted:
            if number >= 100:
                raise BrokenVideo(f"frame {number} cannot be decoded")
            yield torch.full((3, 6, 8), number, dtype=torch.uint8)


def video(name: str, length: int, rate: float | None = None, grey: bool = False) -> StoredVideo:
    digest = name.encode() * 4
    source = Numbered()
    return StoredVideo(name=name, digest=digest, length=length, grey=grey, source=source, rate=rate)


def plan(videos: Sequence[StoredVideo]) -> Plan:
    numbers = torch.arange(len(videos))
    return Plan(
        splits={"all": numbers, "test": numbers[1:]},
        classes=("a", "b", "c", "d"),
        targets=numbers + 1,
    )


def numbered(clip: Clip, *videos: StoredVideo) -> VideoData:
    found = Inspected(list(videos), [("x.mp4", "the file is empty")])
    return video_set(found, clip, plan, name="numbered", where=Path("here"))


def test_clips_take_every_so_many_th_frame_from_their_start() -> None:
    clip = Clip(frames=3, size=(4, 4), stride=2, policy="uniform-3")
    data = numbered(clip, video("a", 5), video("b", 9))
    clips = data.videos(torch.tensor([3, 4, 5, 0]))
    assert clips.shape == (4, 3, 3, 4, 4)
    assert clips[:, :, 0, 0, 0].tolist() == [[0, 2, 4], [2, 4, 6], [4, 6, 8], [0, 2, 4]]


def test_splits_and_labels_count_clips() -> None:
    clip = Clip(frames=2, size=(4, 4), policy="uniform-2")
    data = numbered(clip, video("a", 5), video("b", 9))
    labels = data.labels(torch.arange(4))
    assert len(data) == 4
    assert data.split("test").tolist() == [2, 3]
    assert labels is not None
    assert labels.tolist() == [1, 1, 2, 2]


def test_short_videos_are_named_and_the_plan_is_asked_about_the_others() -> None:
    clip = Clip(frames=3, size=(4, 4), stride=3)
    data = numbered(clip, video("a", 6), video("b", 7))
    assert data.short == (("a", "6 frames; a clip spans 7"),)
    assert data.broken == (("x.mp4", "the file is empty"),)
    assert data.split("all").tolist() == [0]
    with pytest.raises(
        DataError, match=r"none of the 2 videos in here .*: a: 6 frames; a clip spans 7; x\.mp4:"
    ):
        numbered(clip, video("a", 6))


def test_random_clips_follow_their_seeds_and_reach_every_start() -> None:
    data = numbered(Clip(frames=2, size=(4, 4), policy="random"), video("a", 5))
    seeds = torch.arange(60)
    clips = data.videos(torch.zeros(60, dtype=torch.int64), seeds)
    starts = clips[:, 0, 0, 0, 0]
    assert set(starts.tolist()) == {0, 1, 2, 3}
    again = data.videos(torch.zeros(1, dtype=torch.int64), seeds[7:8])
    assert torch.equal(again[0], clips[7])


def test_rates_are_counted_and_colours_told() -> None:
    clip = Clip(frames=2, size=(4, 4))
    data = numbered(clip, video("a", 5, 25.0), video("b", 5, 29.97002997), video("c", 5, 25.0))
    assert data.frame_rates == {25.0: 2, 29.97: 1}
    assert data.channels == 3
    assert numbered(clip, video("a", 5, grey=True)).channels == 1


def test_the_fingerprint_follows_content_name_and_kind_of_clip() -> None:
    kinds = [
        Clip(frames=2, size=(4, 4)),
        Clip(frames=3, size=(4, 4)),
        Clip(frames=2, size=(4, 5)),
        Clip(frames=2, size=(4, 4), stride=2),
        Clip(frames=2, size=(4, 4), policy="random"),
    ]
    marks = [numbered(clip, video("a", 5)).fingerprint for clip in kinds]
    marks.append(numbered(kinds[0], video("b", 5)).fingerprint)
    assert len(set(marks)) == 6
    assert numbered(kinds[0], video("a", 5)).fingerprint == marks[0]


def test_damage_that_shows_late_names_the_file_and_the_clip() -> None:
    data = numbered(Clip(frames=2, size=(4, 4), policy="uniform-2"), video("a.mp4", 102))
    assert data.videos(torch.tensor([0])).shape == (1, 2, 3, 4, 4)
    with pytest.raises(DataError, match=r"a\.mp4: the clip from frame 100 on .*frame 100 cannot"):
        data.videos(torch.tensor([1]))


def test_no_clips_are_an_empty_batch() -> None:
    data = numbered(Clip(frames=2, size=(4, 4)), video("a", 5))
    assert data.videos(torch.empty(0, dtype=torch.int64)).shape == (0, 2, 3, 4, 4)
    assert data.captions(torch.tensor([0])) is None
    assert data.actions(torch.tensor([0])) is None
