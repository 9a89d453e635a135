"""What is written comes back through the reader."""

from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.video_hdf5 import open_video_hdf5
from visgen.data.video_hdf5_writing import write_video_hdf5
from visgen.data.videos import Clip, VideoData


class Drawn:
    """Clips of noise by their index; `width` actions a clip, none if it is 0."""

    def __init__(self, clip: Clip, width: int) -> None:
        self.clip, self.width = clip, width

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        clips = []
        for index in indices.tolist():
            random = torch.Generator().manual_seed(index)
            shape = (self.clip.frames, 3, *self.clip.size)
            clips.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=random))
        return torch.stack(clips)

    def captions(self, indices: Tensor) -> list[str] | None:
        return [f"Bild Nº {index}" for index in indices.tolist()] if self.width else None

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        steps = torch.arange(self.width) / 7
        return indices[:, None] + steps if self.width else None


def drawn(width: int = 0, policy: str = "first", frames: int = 4) -> VideoData:
    clip = Clip(frames=frames, size=(5, 6), policy=policy)
    return VideoData(
        name="drawn",
        fingerprint="0",
        splits={
            "train": torch.arange(3, 40),
            "test": torch.tensor([2, 0]),
            "none": torch.empty(0, dtype=torch.int64),
        },
        clip=clip,
        channels=1,
        levels=17,
        source=Drawn(clip, width),
        count=40,
        classes=("left", "right", "größer") if width else (),
        targets=torch.arange(40) % 4 - 1 if width else None,
    )


@pytest.mark.parametrize("width", [0, 8, 9])
def test_what_is_written_comes_back(tmp_path: Path, width: int) -> None:
    data = drawn(width)  # 8 actions are two a frame, 9 are three a gap between frames
    write_video_hdf5(tmp_path / "a.h5", data, splits=("train", "test", "none"))
    back = open_video_hdf5(tmp_path / "a.h5", data.clip, name="back")
    assert (back.channels, back.levels, back.classes) == (1, 17, data.classes)
    assert (len(back), back.short) == (39, ())
    for split in ("train", "test", "none"):
        assert len(back.split(split)) == len(data.split(split))
    for split in ("train", "test"):
        ours, theirs = data.split(split), back.split(split)
        assert torch.equal(back.videos(theirs), data.videos(ours))
        assert back.captions(theirs) == data.captions(ours)
        for given, read in (
            (data.labels(ours), back.labels(theirs)),
            (data.actions(ours), back.actions(theirs)),
        ):
            assert (given is None) == (read is None) == (width == 0)
            if given is not None and read is not None:
                assert torch.equal(given, read)


def test_the_layout_is_the_clean_one(tmp_path: Path) -> None:
    write_video_hdf5(tmp_path / "a.h5", drawn(8), splits=["test"])
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    with h5py.File(tmp_path / "a.h5") as file:
        for key in map(str, file):
            values = file[key]
            assert isinstance(values, h5py.Dataset)
            shapes[key] = str(values.dtype), values.shape
            if key == "test_idx":
                assert values[:].tolist() == [0, 4]
    assert shapes == {
        "classes": ("object", (3,)),
        "test_actions": ("float32", (8, 2)),
        "test_captions": ("object", (2,)),
        "test_data": ("uint8", (8, 5, 6, 3)),
        "test_idx": ("int64", (2,)),
        "test_labels": ("int64", (2,)),
    }


def test_shorter_clips_of_what_was_written_have_their_own_actions(tmp_path: Path) -> None:
    write_video_hdf5(tmp_path / "a.h5", drawn(8), splits=["test"])
    clip = Clip(frames=2, size=(5, 6), policy="uniform-2")
    back = open_video_hdf5(tmp_path / "a.h5", clip, name="back")
    whole, part = drawn(8).actions(torch.tensor([2])), back.actions(torch.tensor([1]))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[:, 4:])


def test_a_file_appears_only_once_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("what was there")
    with pytest.raises(DataError, match=r"7 actions a clip of 4 frames; .* multiple of 4 .* or 3"):
        write_video_hdf5(tmp_path / "a.h5", drawn(7), splits=["test"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_text() == "what was there"


def test_what_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='opened with the policy "random"'):
        write_video_hdf5(tmp_path / "a.h5", drawn(policy="random"), splits=["test"])
    with pytest.raises(DataError, match='no split "val"'):
        write_video_hdf5(tmp_path / "a.h5", drawn(), splits=["val"])
    with pytest.raises(DataError, match="name each split to be written once"):
        write_video_hdf5(tmp_path / "a.h5", drawn(), splits=["test", "test"])
    assert list(tmp_path.iterdir()) == []
