import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visgen.data import Data, DataError, open_data
from visgen.data.folder import FolderPictures


def save(path: Path, colour: tuple[int, int, int] | int, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "L" if isinstance(colour, int) else "RGB"
    Image.new(mode, (size[1], size[0]), colour).save(path)


def test_pictures_come_in_sorted_order_as_uint8(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.PNG", "a.png", "b/10.bmp", "c/d/e.tif"]):
        save(tmp_path / name, (i, 10 * i, 20 * i))
    data = open_data(f"folder:{tmp_path}")
    images = data.images(torch.tensor([3, 0, 1, 2]))
    assert isinstance(data.source, FolderPictures)
    assert data.source.names == ("a.png", "b/10.bmp", "b/2.PNG", "c/d/e.tif")
    assert (data.size, data.channels, data.levels, len(data)) == ((4, 6), 3, 256, 4)
    assert images.shape == (4, 3, 4, 6)
    assert images.dtype == torch.uint8
    assert images[:, :, 0, 0].tolist() == [[3, 30, 60], [1, 10, 20], [2, 20, 40], [0, 0, 0]]


def test_mixed_sizes_need_a_size_and_lose_their_aspect(tmp_path: Path) -> None:
    save(tmp_path / "tall.png", (1, 2, 3), (8, 2))
    save(tmp_path / "wide.png", (4, 5, 6), (2, 8))
    data = open_data(f"folder:{tmp_path}")
    assert data.size is None
    with pytest.raises(DataError, match="different sizes; say which size"):
        data.images(torch.tensor([0]))
    images = data.images(torch.tensor([1, 0]), size=(3, 5))
    assert images.shape == (2, 3, 3, 5)
    assert images[:, 0].unique(dim=0).shape == (2, 3, 5)
    assert images[0, :, 0, 0].tolist() == [4, 5, 6]


def test_shrinking_by_two_weights_four_pixels_a_side_by_1_3_3_1(tmp_path: Path) -> None:
    # The triangle filter widened by 2 and sampled at half-pixel centres is (1, 3, 3, 1) / 8.
    ramp = np.zeros((8, 8), dtype=np.uint8)
    ramp[:, 3] = 240
    Image.fromarray(ramp).save(tmp_path / "line.png")
    data = open_data(f"folder:{tmp_path}")
    row = data.images(torch.tensor([0]), size=(4, 4))[0, 0, 1]
    assert row.tolist() == [0, 90, 30, 0]


def test_broken_files_are_named_and_the_others_usable(tmp_path: Path) -> None:
    save(tmp_path / "good.png", (1, 1, 1))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "empty.png").touch()
    data = open_data(f"folder:{tmp_path}")
    assert len(data) == 1
    assert [name for name, _ in data.broken] == ["bad.jpg", "sub/empty.png"]
    assert data.broken[1][1] == "the file is empty"


def test_names_that_are_not_utf8_can_be_read_and_shown(tmp_path: Path) -> None:
    save(tmp_path / "good.png", (1, 1, 1))
    (tmp_path / os.fsdecode(b"b\xe9b\xe9.png")).touch()
    shutil.copy(tmp_path / "good.png", tmp_path / os.fsdecode(b"\xe9.png"))
    data = open_data(f"folder:{tmp_path}")
    assert len(data) == 2
    assert [name for name, _ in data.broken] == [r"b\xe9b\xe9.png"]


def test_empty_missing_and_wrong_folders_say_what_is_possible(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(DataError, match=r"holds no picture \(1 other files.*ends in \.png, \.jpg"):
        open_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; write folder:PATH"):
        open_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="is a file; folder:PATH takes the folder"):
        open_data(f"folder:{tmp_path / 'notes.txt'}")
    with pytest.raises(DataError, match="names no folder"):
        open_data("folder:")


def test_only_broken_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(DataError, match=r"none of the 7 pictures .* 0\.png: the file is empty; 1"):
        open_data(f"folder:{tmp_path}")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    save(tmp_path / "set" / "a" / "1.png", (1, 1, 1))
    save(tmp_path / "elsewhere" / "2.png", (2, 2, 2))
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "0-same").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "itself").symlink_to(tmp_path / "set" / "itself")
    data = open_data(f"folder:{tmp_path / 'set'}")
    assert isinstance(data.source, FolderPictures)
    assert data.source.names == ("a/1.png", "more/2.png")


def test_labels_exist_only_if_every_picture_lies_in_a_class_folder(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "x" / "1.png", (1, 1, 1))
    save(tmp_path / "cat" / "2.png", (2, 2, 2))
    data = open_data(f"folder:{tmp_path}")
    labels = data.labels(torch.tensor([0, 1]))
    assert data.classes == ("cat", "dog")
    assert labels is not None
    assert labels.tolist() == [0, 1]
    save(tmp_path / "loose.png", (3, 3, 3))
    assert open_data(f"folder:{tmp_path}").labels(torch.tensor([0])) is None


def test_grey_sets_say_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 7)
    assert open_data(f"folder:{tmp_path}").channels == 1
    save(tmp_path / "2.png", (7, 7, 7))
    assert open_data(f"folder:{tmp_path}").channels == 3


def test_split_is_by_content_so_copies_and_new_names_stay_on_their_side(tmp_path: Path) -> None:
    for i in range(50):
        save(tmp_path / "a" / f"{i:02}.png", (i, 0, 0))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    data = open_data(f"folder:{tmp_path}")
    train, test = data.split("train"), data.split("test")
    assert data.split("all").tolist() == list(range(100))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    assert len(test) == 20
    assert [i + 50 for i in test.tolist() if i < 50] == [i for i in test.tolist() if i >= 50]
    before = set(_reds(data, "test"))
    shutil.move(tmp_path / "a" / "00.png", tmp_path / "a" / "renamed.png")
    assert set(_reds(open_data(f"folder:{tmp_path}"), "test")) == before


def _reds(data: Data, split: str) -> list[int]:
    return data.images(data.split(split))[:, 0, 0, 0].tolist()


def test_fingerprint_follows_content_and_names_only(tmp_path: Path) -> None:
    save(tmp_path / "one" / "a.png", (1, 1, 1))
    save(tmp_path / "one" / "b.png", (2, 2, 2))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "a.png", (0, 0))
    (tmp_path / "two" / "notes.txt").touch()
    first = open_data(f"folder:{tmp_path / 'one'}").fingerprint
    assert open_data(f"folder:{tmp_path / 'two'}").fingerprint == first
    (tmp_path / "two" / "b.png").rename(tmp_path / "two" / "c.png")
    renamed = open_data(f"folder:{tmp_path / 'two'}").fingerprint
    save(tmp_path / "one" / "b.png", (2, 2, 3))
    changed = open_data(f"folder:{tmp_path / 'one'}").fingerprint
    assert len({first, renamed, changed}) == 3


def test_file_that_changes_or_goes_after_opening_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (1, 1, 1))
    save(tmp_path / "b.png", (2, 2, 2))
    data = open_data(f"folder:{tmp_path}")
    save(tmp_path / "a.png", (9, 9, 9))
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"a\.png in .* changed since the set was opened"):
        data.images(torch.tensor([0]))
    with pytest.raises(DataError, match=r"b\.png in .* cannot now"):
        data.images(torch.tensor([1]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak counter")
def test_opening_a_folder_holds_no_pictures_in_memory(tmp_path: Path) -> None:
    for i in range(30):  # 30 pictures of 6 MB once decoded
        save(tmp_path / f"{i}.png", i, (1000, 2000))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    data = open_data(f"folder:{tmp_path}")
    data.images(torch.tensor([3]))
    assert len(data) == 30
    assert _status("VmHWM") - before < 90_000


def _status(key: str) -> int:
    """A line of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise KeyError(key)
