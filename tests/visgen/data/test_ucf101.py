from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from visgen.data.dataset import DataError, DataMissing
from visgen.data.ucf101 import open_ucf101
from visgen.data.videos import Clip

Writer = Callable[..., Path]
CLIP = Clip(frames=4, size=(16, 16))


@pytest.fixture
def published(tmp_path: Path, write_video: Writer) -> Path:
    """Two classes whose numbers are not in the order of their names, as files and lists."""
    for name in ("Surf/v_Surf_g01_c01", "Surf/v_Surf_g02_c01", "Bike/v_Bike_g01_c01"):
        write_video(tmp_path / "UCF-101" / f"{name}.avi", frames=6)
    write_video(tmp_path / "UCF-101" / "Bike" / "v_Bike_unlisted.avi", frames=6)
    write_lists(tmp_path, "Surf/v_Surf_g02_c01.avi 1", "Bike/v_Bike_g09_c01.avi 2")
    return tmp_path


def write_lists(folder: Path, *train: str, classes: str = "1 Surf\r\n2 Bike\r\n") -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text(classes)
    (lists / "trainlist02.txt").write_text("\r\n".join(train) + "\r\n\r\n")
    (lists / "testlist02.txt").write_text("Surf/v_Surf_g01_c01.avi\r\nBike/v_Bike_g01_c01.avi\r\n")


def test_a_fold_has_the_listed_files_and_the_published_class_numbers(published: Path) -> None:
    data = open_ucf101(published / "UCF-101", CLIP, fold=2)
    labels = data.labels(torch.arange(3))
    assert data.classes == ("Surf", "Bike")
    assert labels is not None
    assert labels.tolist() == [1, 0, 0]  # Bike g01, Surf g01, Surf g02
    assert data.split("train").tolist() == [2]
    assert data.split("test").tolist() == [0, 1]
    assert data.broken == (("Bike/v_Bike_g09_c01.avi", "listed in fold 2 and not there"),)
    assert data.videos(data.split("all")).shape == (3, 4, 3, 16, 16)
    assert data.frame_rates == {25.0: 3}


def test_lists_may_lie_elsewhere(published: Path) -> None:
    (published / "ucfTrainTestlist").rename(published / "lists")
    lists = published / "lists"
    assert len(open_ucf101(published / "UCF-101", CLIP, fold=2, lists=lists)) == 3
    with pytest.raises(DataMissing, match=r"no .*ucfTrainTestlist/classInd\.txt; unpack"):
        open_ucf101(published / "UCF-101", CLIP, fold=2)


def test_missing_videos_folds_and_lists_say_what_to_do(published: Path) -> None:
    with pytest.raises(DataError, match="folds 1, 2 and 3; fold 4"):
        open_ucf101(published / "UCF-101", CLIP, fold=4)
    with pytest.raises(DataMissing, match=r"no .*trainlist01\.txt; unpack"):
        open_ucf101(published / "UCF-101", CLIP)
    with pytest.raises(DataMissing, match=r"no folder .*nowhere; unpack UCF101\.rar"):
        open_ucf101(published / "nowhere", CLIP, fold=2)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("../../secret/x.avi 1", r'the line "\.\./\.\./secret/x\.avi 1"; a line is'),
        ("Swim/v_Swim_g01_c01.avi 1", "CLASS is one of classInd"),
        ("Surf/v_Surf_g02_c01.avi 2", "the class 2, and classInd.txt gives Surf the number 1"),
        ("Surf/v_Surf_g01_c01.avi 1", r"v_Surf_g01_c01\.avi in train and in test"),
    ],
)
def test_lines_that_cannot_be_meant_are_refused(published: Path, line: str, says: str) -> None:
    write_lists(published, line)
    with pytest.raises(DataError, match=says):
        open_ucf101(published / "UCF-101", CLIP, fold=2)


@pytest.mark.parametrize("classes", ["Surf\nBike\n", "1 Surf\n3 Bike\n", "1 ..\n2 Bike\n", "\n"])
def test_a_class_list_that_is_none_is_refused(published: Path, classes: str) -> None:
    write_lists(published, "Surf/v_Surf_g02_c01.avi 1", classes=classes)
    with pytest.raises(DataError, match=r"classInd\.txt"):
        open_ucf101(published / "UCF-101", CLIP, fold=2)
