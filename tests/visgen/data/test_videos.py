"""What is taken of a video, and how a video set answers."""

import pytest
import torch
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.videos import Clip, VideoData


def clip(policy: str = "first", frames: int = 4, stride: int = 1) -> Clip:
    return Clip(frames=frames, size=(8, 8), stride=stride, policy=policy)


def test_a_clip_spans_its_frames_and_the_gaps_between_them() -> None:
    assert clip(frames=16).span == 16
    assert clip(frames=16, stride=3).span == 46
    assert clip(frames=1, stride=9).span == 1


def test_a_video_as_long_as_a_clip_has_one_start() -> None:
    for policy in ("first", "random", "uniform-3"):
        assert clip(policy).start(4, 0, 0.999) == 0


def test_every_start_is_reached_at_random_the_last_one_included() -> None:
    starts = {clip("random").start(9, 0, step / 60) for step in range(60)}
    assert starts == set(range(6))
    assert clip("random").start(9, 0, 1 - 2**-24) == 5


@pytest.mark.parametrize(("length", "starts"), [(4, [0, 0, 0]), (5, [0, 1, 1]), (14, [0, 5, 10])])
def test_uniform_clips_reach_from_the_first_start_to_the_last(
    length: int, starts: list[int]
) -> None:
    assert [clip("uniform-3").start(length, number) for number in range(3)] == starts


def test_a_single_uniform_clip_is_the_first() -> None:
    assert clip("uniform-1").start(9, 0) == 0


def test_a_short_video_is_refused_in_words() -> None:
    with pytest.raises(
        DataError, match="3 frames is shorter than a clip of 2 frames with stride 3"
    ):
        clip(frames=2, stride=3).start(3, 0)


@pytest.mark.parametrize("policy", ["last", "uniform-0", "uniform", "uniform-x", "random "])
def test_unknown_policies_are_refused_with_the_list(policy: str) -> None:
    with pytest.raises(DataError, match='there are "first", "random" and "uniform-K"'):
        clip(policy)


class Counting:
    """A clip is its index, and its seed where there is one."""

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        values = indices if seeds is None else seeds
        return values.to(torch.uint8)[:, None, None, None, None].expand(-1, 4, 3, 8, 8)

    def captions(self, indices: Tensor) -> list[str] | None:
        return [f"clip {index}" for index in indices.tolist()]

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        return None


def counting(policy: str = "first") -> VideoData:
    return VideoData(
        name="counting",
        fingerprint="0",
        splits={"all": torch.arange(5)},
        clip=clip(policy),
        channels=3,
        levels=256,
        source=Counting(),
        count=5,
    )


def test_clips_come_in_the_order_of_their_indices() -> None:
    data = counting()
    videos = data.videos(torch.tensor([3, 0, 3]))
    assert videos.shape == (3, 4, 3, 8, 8)
    assert videos[:, 0, 0, 0, 0].tolist() == [3, 0, 3]
    assert data.captions(torch.tensor([2])) == ["clip 2"]
    assert data.labels(torch.tensor([2])) is None
    assert data.actions(torch.tensor([2])) is None


def test_only_random_clips_read_seeds_and_they_want_them() -> None:
    indices, seeds = torch.tensor([1, 2]), torch.tensor([7, 8])
    assert counting().videos(indices, seeds)[:, 0, 0, 0, 0].tolist() == [1, 2]
    assert counting("random").videos(indices, seeds)[:, 0, 0, 0, 0].tolist() == [7, 8]
    for wrong in (None, seeds[:1], seeds.float()):
        with pytest.raises(DataError, match="want seeds, int64"):
            counting("random").videos(indices, wrong)


def test_indices_and_splits_that_do_not_exist_are_named() -> None:
    with pytest.raises(DataError, match=r"holds clips 0\.\.4, but indices 5\.\.5"):
        counting().videos(torch.tensor([5]))
    with pytest.raises(DataError, match='no split "test"; it has all'):
        counting().split("test")
