import os
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visgen.data.clip_frames import fit_frames
from visgen.data.dataset import DataError
from visgen.data.stored_videos import StoredClips
from visgen.data.video_files import open_video_file, open_video_folder
from visgen.data.videos import Clip, VideoData

Writer = Callable[..., Path]
CLIP = Clip(frames=4, size=(16, 16))


def names(data: VideoData) -> list[str]:
    assert isinstance(data.source, StoredClips)
    return [video.name for video in data.source.videos]


def array(seed: int, shape: tuple[int, ...] = (6, 8, 10, 3)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def save_array(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array(seed))


def save_pictures(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")


def open_folder(path: Path, clip: Clip = CLIP) -> VideoData:
    return open_video_folder(path, clip, name=f"videos:{path}")


def fitted(frames: np.ndarray) -> Tensor:
    return fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), CLIP.size)


def test_encoded_files_arrays_and_folders_of_pictures_are_one_set(
    tmp_path: Path, write_video: Writer
) -> None:
    frames = array(0)
    np.save(tmp_path / "b.npy", frames)
    np.savez(tmp_path / "c.NPZ.npz", np.stack([frames, 255 - frames]))
    save_pictures(tmp_path / "d" / "e", frames)
    video = write_video(tmp_path / "a.mp4", "libx264")
    data = open_folder(tmp_path)
    assert names(data) == ["a.mp4", "b.npy", "c.NPZ.npz[0]", "c.NPZ.npz[1]", "d/e"]
    clips = data.videos(torch.arange(5))
    assert clips.shape == (5, 4, 3, 16, 16)
    for number in (1, 2, 4):
        assert torch.equal(clips[number], fitted(frames[:4]))
    with av.open(str(video)) as container:
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert torch.equal(clips[0], fitted(np.stack(decoded[:4])))
    assert data.frame_rates == {25.0: 1}


def test_frame_folders_are_folders_of_pictures_without_a_video(
    tmp_path: Path, write_video: Writer
) -> None:
    save_pictures(tmp_path / "frames", array(0))
    save_pictures(tmp_path / "beside", array(1))
    write_video(tmp_path / "beside" / "a.avi")
    save_pictures(tmp_path / "lonely", array(2)[:1])
    assert names(open_folder(tmp_path)) == ["beside/a.avi", "frames"]
    assert names(open_folder(tmp_path / "frames")) == ["."]


def test_broken_and_short_files_are_named_and_the_others_usable(
    tmp_path: Path, write_video: Writer
) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "one.mp4", frames=1)
    cut = write_video(tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / os.fsdecode(b"\xe9.webm")).touch()
    save_pictures(tmp_path / "frames", array(0))
    (tmp_path / "frames" / "3.png").write_bytes(b"")
    data = open_folder(tmp_path)
    assert names(data) == ["good.mp4"]
    assert [name for name, _ in data.broken] == ["cut.mp4", "frames", "text.mp4", r"\xe9.webm"]
    assert data.broken[1][1] == "frame 3.png: the file is empty"
    assert data.short == (("one.mp4", "1 frames; a clip spans 4"),)


def test_varying_files_are_named(tmp_path: Path, write_video: Writer) -> None:
    times = [40 * i + 60 * (i // 5) for i in range(20)]
    write_video(tmp_path / "vfr.mp4", frames=20, milliseconds=times)
    write_video(tmp_path / "even.mp4")
    assert open_folder(tmp_path).varying == (("vfr.mp4", "frames are 40.0 to 100.0 ms apart"),)


def test_folders_train_and_test_are_the_splits_and_classes_lie_below(tmp_path: Path) -> None:
    for i, name in enumerate(["train/b/1", "train/a/x/2", "test/a/3", "test/c/4"]):
        save_array(tmp_path / f"{name}.npy", i)
    (tmp_path / "train" / "0broken").mkdir()
    (tmp_path / "train" / "0broken" / "5.npy").touch()
    data = open_folder(tmp_path)
    labels = data.labels(torch.arange(4))
    assert names(data) == ["test/a/3.npy", "test/c/4.npy", "train/a/x/2.npy", "train/b/1.npy"]
    assert {name: split.tolist() for name, split in data.splits.items()} == {
        "all": [0, 1, 2, 3],
        "train": [2, 3],
        "test": [0, 1],
    }
    assert data.classes == ("0broken", "a", "b", "c")  # a broken file moves no number
    assert labels is not None
    assert labels.tolist() == [1, 3, 1, 2]
    save_array(tmp_path / "val" / "loose.npy", 9)
    data = open_folder(tmp_path)
    assert data.split("val").tolist() == [4]
    assert data.labels(torch.tensor([0])) is None


def test_otherwise_a_fifth_of_the_contents_is_for_testing(tmp_path: Path) -> None:
    for i in range(10):
        save_array(tmp_path / "a" / f"{i}.npy", i)
    shutil.copytree(tmp_path / "a", tmp_path / "train")
    clip = Clip(frames=4, size=(16, 16), policy="uniform-2")
    data = open_folder(tmp_path, clip)
    test = data.split("test").tolist()
    assert data.classes == ("a", "train")
    assert len(test) == 2 * 2 * 2  # two contents, two copies, two clips
    assert [i + 20 for i in test if i < 20] == [i for i in test if i >= 20]
    assert sorted([*test, *data.split("train").tolist()]) == list(range(40))
    other = open_video_folder(tmp_path, clip, name="videos", split_seed=1)
    assert other.split("test").tolist() != test


def test_an_array_of_many_videos_is_divided_video_by_video(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", array(0, (10, 5, 4, 4, 3)))
    data = open_video_file(tmp_path / "many.npy", CLIP, name="videos:many.npy")
    assert (len(data), len(data.split("test")), data.classes) == (10, 2, ())
    with pytest.raises(DataError, match=r"notes\.txt is no file of videos; those end in \.mp4"):
        open_video_file(tmp_path / "notes.txt", CLIP, name="videos:notes.txt")


def test_empty_missing_and_wrong_folders_say_what_is_possible(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / ".hidden.mp4").touch()
    with pytest.raises(DataError, match=r"no video \(1 other files.*ends in \.mp4, .*or a folder"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; write videos:PATH"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file; here a folder"):
        open_folder(tmp_path / "notes.txt")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    save_array(tmp_path / "set" / "a" / "1.npy", 1)
    save_array(tmp_path / "elsewhere" / "2.npy", 2)
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "0-same").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "itself").symlink_to(tmp_path / "set" / "itself")
    assert names(open_folder(tmp_path / "set")) == ["a/1.npy", "more/2.npy"]


def test_a_file_that_changes_or_goes_after_opening_is_named(
    tmp_path: Path, write_video: Writer
) -> None:
    write_video(tmp_path / "a.mp4")
    save_array(tmp_path / "b.npy", 0)
    save_pictures(tmp_path / "c", array(0))
    data = open_folder(tmp_path)
    write_video(tmp_path / "a.mp4", rate=10)
    (tmp_path / "b.npy").unlink()
    Image.new("RGB", (10, 8)).save(tmp_path / "c" / "0.png")
    with pytest.raises(DataError, match=r"a\.mp4 changed since the set was opened"):
        data.videos(torch.tensor([0]))
    with pytest.raises(DataError, match=r"b\.npy could be read when the set was opened"):
        data.videos(torch.tensor([1]))
    with pytest.raises(DataError, match=r"c: the clip from frame 0 .*0\.png changed since"):
        data.videos(torch.tensor([2]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak counter")
def test_no_video_is_held_in_memory_whole(tmp_path: Path, write_video: Writer) -> None:
    black = np.zeros((600, 800, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames=[black] * 120, size=(600, 800))  # 173 MB each
    shape = (120, 600, 800, 3)
    np.lib.format.open_memmap(tmp_path / "b.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
    open_folder(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    data = open_folder(tmp_path, Clip(frames=120, size=(16, 16)))
    data.videos(torch.tensor([0, 1]))
    assert _status("VmHWM") - before < 130_000  # two threads, a few float copies of a frame each


def _status(key: str) -> int:
    """A line of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise KeyError(key)
