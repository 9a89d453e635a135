from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visgen.data.clip_frames import BrokenVideo
from visgen.data.decode import bombs_refused
from visgen.data.video_pictures import in_order, inspect_pictures, read_pictures


def save(path: Path, value: int, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> None:
    colour = value if mode == "L" else (value, 0, 0)
    Image.new(mode, (size[1], size[0]), colour).save(path)


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["a10.png", "a9.png", "a1.png", "b.png", "10.png", "9.png", "a09.png"]
    assert in_order(names) == [
        "9.png",
        "10.png",
        "a1.png",
        "a09.png",
        "a9.png",
        "a10.png",
        "b.png",
    ]


def test_frames_are_the_pictures_in_order(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / f"{i}.png", 10 * i)
    names = in_order([f"{i}.png" for i in range(12)])
    with bombs_refused():
        table = inspect_pictures(tmp_path, names)
        frames = list(read_pictures(tmp_path, table, range(2, 12, 4)))
    assert [int(frame[0, 0, 0]) for frame in frames] == [20, 60, 100]
    assert frames[0].shape == (3, 4, 6)
    assert not table.grey


def test_grey_pictures_make_a_grey_video(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1, mode="L")
    save(tmp_path / "2.png", 2, mode="L")
    with bombs_refused():
        assert inspect_pictures(tmp_path, ["1.png", "2.png"]).grey


def test_a_broken_frame_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "2.png", 2, (4, 7))
    (tmp_path / "3.png").touch()
    with bombs_refused():
        with pytest.raises(BrokenVideo, match=r"differ in size: 2\.png is 7x4"):
            inspect_pictures(tmp_path, ["1.png", "2.png"])
        with pytest.raises(BrokenVideo, match=r"frame 3\.png: the file is empty"):
            inspect_pictures(tmp_path, ["1.png", "3.png"])


def test_a_frame_that_changed_is_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    with bombs_refused():
        table = inspect_pictures(tmp_path, ["0.png", "1.png", "2.png"])
        save(tmp_path / "1.png", 99)
        (tmp_path / "2.png").unlink()
        assert np.asarray(next(read_pictures(tmp_path, table, range(1)))).max() == 0
        with pytest.raises(BrokenVideo, match=r"1\.png changed since the set was opened"):
            list(read_pictures(tmp_path, table, range(1, 2)))
        with pytest.raises(BrokenVideo, match=r"2\.png: FileNotFoundError"):
            list(read_pictures(tmp_path, table, range(2, 3)))
