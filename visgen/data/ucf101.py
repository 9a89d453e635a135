"""UCF-101 (arXiv:1212.0402) as it is published: class folders of .avi files and split lists.

`classInd.txt` numbers the classes from 1 ("1 ApplyEyeMakeup"); `trainlist0N.txt` names a file and
its class number a line, `testlist0N.txt` a file. Only listed files are read.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from visgen.data.clip_frames import check_clip
from visgen.data.dataset import DataError, DataMissing
from visgen.data.stored_videos import Plan, StoredVideo, video_set
from visgen.data.video_files import inspect_all
from visgen.data.videos import Clip, VideoData

FOLDS = (1, 2, 3)
LISTS = "ucfTrainTestlist"  # the folder that the published archive of the lists unpacks to
_CLASS = re.compile(r"[\w-]+")
_FILE = re.compile(r"[^/\\]+/[^/\\]+\.avi")


def open_ucf101(
    root: Path, clip: Clip, *, fold: int = 1, lists: Path | None = None, name: str = "ucf101"
) -> VideoData:
    """Open UCF-101 with the splits `train`, `test` and `all` of one fold.

    root: holds `<class>/v_*.avi`. lists: holds the lists; default: `ucfTrainTestlist` beside root.
    Classes are numbered as in `classInd.txt`, from 0. A listed file that is not there is broken.

    Raises:
        DataMissing: no videos or no lists.
        DataError: no such fold, a list that cannot be read, or no file that can be used.
    """
    check_clip(clip)
    if fold not in FOLDS:
        raise DataError(f"UCF-101 has the folds 1, 2 and 3; fold {fold} was asked for.")
    lists = lists or root.parent / LISTS
    classes = _classes(lists / "classInd.txt")
    train = _listed(lists / f"trainlist0{fold}.txt", classes)
    test = _listed(lists / f"testlist0{fold}.txt", classes)
    if both := sorted(set(train) & set(test)):
        raise DataError(f"the lists of fold {fold} in {lists} have {both[0]} in train and in test.")
    if not root.is_dir():
        raise DataMissing(
            f"there is no folder {root}; unpack UCF101.rar so that {root / train[0]} is there, or "
            "name the folder that holds it with --data-root PATH."
        )
    names = sorted({*train, *test})
    there = [file for file in names if (root / file).exists()]
    found = inspect_all(root, there)
    missing = sorted(set(names) - set(there))
    found.broken.extend((file, f"listed in fold {fold} and not there") for file in missing)

    def plan(videos: Sequence[StoredVideo]) -> Plan:
        return _plan([video.name for video in videos], set(test), classes)

    return video_set(found, clip, plan, name=name, where=root)


def _plan(names: Sequence[str], in_test: set[str], classes: dict[str, int]) -> Plan:
    tested = torch.tensor([name in in_test for name in names])
    everything = torch.arange(len(names))
    return Plan(
        splits={"all": everything, "train": everything[~tested], "test": everything[tested]},
        classes=tuple(classes),
        targets=torch.tensor([classes[name.partition("/")[0]] for name in names]),
    )


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise DataMissing(
            f"there is no {path}; unpack UCF101TrainTestSplits-RecognitionTask.zip so that it is "
            "there, or name the folder that holds UCF-101 and its lists with --data-root PATH."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); unpack the lists again.") from error
    found = [line.split() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"{path} is empty; unpack the lists again.")
    return found


def _classes(path: Path) -> dict[str, int]:
    """Name -> number, from 0, in the order of the numbers."""
    lines = _lines(path)
    if any(len(line) != 2 for line in lines) or [line[0] for line in lines] != [
        str(i + 1) for i in range(len(lines))
    ]:
        raise DataError(f'{path} must have lines "1 NAME", "2 NAME" and so on, numbered in order.')
    if odd := [line[1] for line in lines if not _CLASS.fullmatch(line[1])]:
        raise DataError(
            f'{path} has the class "{odd[0]}"; a class is letters, digits, "_" and "-".'
        )
    return {line[1]: i for i, line in enumerate(lines)}


def _listed(path: Path, classes: dict[str, int]) -> list[str]:
    names = []
    for line in _lines(path):
        folder = line[0].partition("/")[0]
        # A list is a file from elsewhere: what it names must lie in a class folder of the set.
        if not _FILE.fullmatch(line[0]) or folder not in classes or len(line) > 2:
            raise DataError(
                f'{path} has the line "{" ".join(line)}"; a line is CLASS/FILE.avi, in a training '
                "list with the class number behind it, and CLASS is one of classInd.txt."
            )
        if len(line) == 2 and line[1] != str(classes[folder] + 1):
            raise DataError(
                f"{path} gives {line[0]} the class {line[1]}, and classInd.txt gives {folder} the "
                f"number {classes[folder] + 1}."
            )
        names.append(line[0])
    return names
