"""`videos:PATH`: anyone's folder of videos, or one file of them, as a video set.

A video is a file with one of the suffixes below, each video of a NumPy array, or a folder that
holds two pictures or more and no video file. They are sorted by relative name; hidden names
(leading dot) and other files are no part of the set. Opening reads every file once, so that broken
and short ones are known and named before anything is computed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from visgen.data import video_arrays, video_decode, video_pictures
from visgen.data.clip_frames import BrokenVideo, check_clip
from visgen.data.dataset import DataError
from visgen.data.folder import in_threads, splits_by_hash
from visgen.data.stored_file import store
from visgen.data.stored_videos import (
    ArrayFrames,
    EncodedFrames,
    Inspected,
    PictureFrames,
    Plan,
    StoredVideo,
    video_set,
)
from visgen.data.tree import files_below, printable
from visgen.data.videos import Clip, VideoData

SUFFIXES = (*video_decode.SUFFIXES, *video_arrays.SUFFIXES)
_DIVIDED = ({"train", "test"}, {"train", "val", "test"})


def open_video_folder(path: Path, clip: Clip, *, name: str, split_seed: int = 0) -> VideoData:
    """Open a folder of videos as a set with the split `all` and those of its layout.

    If all videos lie in folders `train` and `test`, or `train`, `val` and `test`, these are the
    splits. Otherwise `test` is a seeded fifth by content hash: copies of one video fall on one
    side, renaming moves nothing, and so do all clips of a video. Labels exist only if every video
    lies in a class folder: the first part of its relative name, the split's folder apart; classes
    are numbered by their sorted names, those of broken and short videos included.

    Raises:
        DataError: no such folder, not a folder, no video in it, or none that can be used.
    """
    check_clip(clip)
    found = find_videos(path)
    if not found.names and not found.unreadable:
        raise DataError(
            f"{path} holds no video ({found.others} other files; hidden ones are not counted); a "
            f"set needs one file or more that ends in {', '.join(SUFFIXES)}, or a folder with two "
            f"or more pictures ({', '.join(video_pictures.SUFFIXES)})."
        )
    inspected = inspect_all(path, found.names, found.folders)
    inspected.broken.extend(found.unreadable)
    divided = _is_divided(found.names)
    classes = sorted({_class(n, divided) for n in found.names})
    labelled = bool(classes) and "" not in classes

    def plan(videos: Sequence[StoredVideo]) -> Plan:
        splits = (
            _by_folder([video.name for video in videos])
            if divided
            else splits_by_hash([video.digest for video in videos], split_seed)
        )
        if not labelled:
            return Plan(splits=splits)
        number = {owner: i for i, owner in enumerate(classes)}
        targets = torch.tensor([number[_class(v.name, divided)] for v in videos])
        return Plan(splits=splits, classes=tuple(map(printable, classes)), targets=targets)

    return video_set(inspected, clip, plan, name=name, where=path)


def open_video_file(path: Path, clip: Clip, *, name: str, split_seed: int = 0) -> VideoData:
    """Open one file, such as an array of many videos, as a set; splits as without class folders.

    Raises:
        DataError: not a file of a known kind, or no video in it can be used.
    """
    check_clip(clip)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path} is no file of videos; those end in {', '.join(SUFFIXES)}.")

    def plan(videos: Sequence[StoredVideo]) -> Plan:
        return Plan(splits=splits_by_hash([video.digest for video in videos], split_seed))

    return video_set(inspect_all(path.parent, [path.name]), clip, plan, name=name, where=path)


@dataclass
class Found:
    """What lies in a folder.

    `names` are the videos', sorted; `folders` gives the pictures of those that are folders.
    """

    names: list[str] = field(default_factory=list)
    folders: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0


def find_videos(folder: Path) -> Found:
    """List the videos below `folder` by relative name with "/" between the parts.

    Raises DataError if `folder` is not there or is not a folder.
    """
    if not folder.exists():
        raise DataError(f"there is no folder {folder}; write videos:PATH with an existing one.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; here a folder that holds videos is wanted.")
    found = Found()
    for owner, files in files_below(folder, found.unreadable):
        _sort_in(files, owner, found)
    found.names.sort()
    return found


def _sort_in(files: Sequence[str], folder: str, found: Found) -> None:
    """Note the files of one folder."""
    pictures, has_video = [], False
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        if suffix in SUFFIXES:
            found.names.append(f"{folder}/{file}" if folder else file)
            has_video = has_video or suffix in video_decode.SUFFIXES
        elif suffix in video_pictures.SUFFIXES:
            pictures.append(file)
        else:
            found.others += 1
    if len(pictures) >= 2 and not has_video:
        found.names.append(folder or ".")
        found.folders[folder or "."] = video_pictures.in_order(pictures)
    else:
        found.others += len(pictures)


def inspect_all(
    root: Path, names: Sequence[str], folders: dict[str, list[str]] | None = None
) -> Inspected:
    """Open every video once; `folders` gives the pictures of names that are folders."""
    pictures = folders or {}

    def look(name: str) -> list[StoredVideo] | tuple[str, str]:
        try:
            if name in pictures:
                return [_picture_video(root, name, pictures[name])]
            return _file_videos(root, name)
        except BrokenVideo as error:
            return name, str(error)

    found = Inspected()
    for result in in_threads(look, names):
        if isinstance(result, tuple):
            found.broken.append(result)
        else:
            found.videos.extend(result)
    return found


def _file_videos(root: Path, name: str) -> list[StoredVideo]:
    file = store(root / name)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in video_arrays.SUFFIXES:
        with file.open() as opened:
            table, digests = video_arrays.inspect_array(opened, packed=suffix == ".npz")
        return [
            StoredVideo(
                name=name if table.videos is None else f"{name}[{number}]",
                digest=digest,
                length=table.shape[0],
                grey=False,
                source=ArrayFrames(file, table, number),
            )
            for number, digest in enumerate(digests)
        ]
    with file.open() as opened:
        frames = video_decode.inspect_video(opened)
    return [
        StoredVideo(
            name=name,
            digest=file.digest,
            length=frames.length,
            grey=frames.grey,
            source=EncodedFrames(file, frames),
            rate=frames.rate,
            varying=frames.varying,
        )
    ]


def _picture_video(root: Path, name: str, pictures: Sequence[str]) -> StoredVideo:
    table = video_pictures.inspect_pictures(root / name, pictures)
    return StoredVideo(
        name=name,
        digest=table.digest,
        length=len(table.names),
        grey=table.grey,
        source=PictureFrames(root / name, table),
    )


def _is_divided(names: Sequence[str]) -> bool:
    firsts = {name.partition("/")[0] for name in names}
    return firsts in _DIVIDED and all("/" in name for name in names)


def _class(name: str, divided: bool) -> str:
    """The class folder of a name, empty if there is none."""
    rest = name.partition("/")[2] if divided else name
    return rest.partition("/")[0] if "/" in rest else ""


def _by_folder(names: Sequence[str]) -> dict[str, Tensor]:
    owners = [name.partition("/")[0] for name in names]
    splits = {"all": torch.arange(len(names))}
    for split in ("train", "val", "test"):
        numbers = [i for i, owner in enumerate(owners) if owner == split]
        splits[split] = torch.tensor(numbers, dtype=torch.int64)
    return splits if "val" in owners else {k: v for k, v in splits.items() if k != "val"}
