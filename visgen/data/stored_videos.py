"""Videos that lie on the disk, one after another, as a video set.

Of each video only its place, its length and its hash are kept; reading opens the file, takes the
frames of the clip and fits them one by one, so that no more than one frame of a clip is ever held
at its stored size. Clips are taken by frame number: where frames are not equally far apart in time,
a clip's are not either, and the set names such files in `varying`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from visgen.data import video_arrays, video_decode, video_pictures
from visgen.data.clip_frames import BrokenVideo, clip_starts, clip_words, fit_frames
from visgen.data.dataset import DataError
from visgen.data.folder import in_threads
from visgen.data.stored_file import StoredFile
from visgen.data.tree import printable
from visgen.data.videos import Clip, VideoData

_NAMED = 5  # broken files spelled out in an error; `broken` holds them all


class Frames(Protocol):
    """Where the frames of one video come from."""

    def frames(self, wanted: range) -> Iterator[Tensor]:
        """uint8 (3, h, w) each, in the order of `wanted`, which increases."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """Frames of an encoded file."""

    file: StoredFile
    table: video_decode.FrameTable

    def frames(self, wanted: range) -> Iterator[Tensor]:
        with self.file.open() as file:
            yield from video_decode.read_video(file, self.table, wanted)


@dataclass(frozen=True, eq=False)
class ArrayFrames:
    """Frames of video `number` of an array."""

    file: StoredFile
    table: video_arrays.ArrayTable
    number: int

    def frames(self, wanted: range) -> Iterator[Tensor]:
        with self.file.open() as file:
            yield from video_arrays.read_array(file, self.table, self.number, wanted)


@dataclass(frozen=True, eq=False)
class PictureFrames:
    """Pictures of a folder."""

    folder: Path
    table: video_pictures.PictureTable

    def frames(self, wanted: range) -> Iterator[Tensor]:
        return video_pictures.read_pictures(self.folder, self.table, wanted)


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredVideo:
    """One video: `name` is relative and names it in tables, `digest` is the sha256 of its content.

    `rate` (frames per second) and `varying` are None where nothing is known of them.
    """

    name: str
    digest: bytes
    length: int
    grey: bool
    source: Frames
    rate: float | None = None
    varying: str | None = None


@dataclass
class Inspected:
    """The videos that can be read, and the names of the others with the reason."""

    videos: list[StoredVideo] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class StoredClips:
    """Clips of stored videos; those of one video follow each other."""

    videos: tuple[StoredVideo, ...]
    clip: Clip

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each video."""
        return tuple(video.length for video in self.videos)

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        """uint8 (n, t, 3, h, w); raises DataError for a file that changed or is damaged."""
        starts = clip_starts(self.clip, indices, self.lengths, seeds)
        clips = torch.empty((len(starts), self.clip.frames, 3, *self.clip.size), dtype=torch.uint8)

        def fill(row: int) -> None:
            number, start = starts[row]
            video = self.videos[number]
            wanted = range(start, start + self.clip.span, self.clip.stride)
            try:
                for place, frame in enumerate(video.source.frames(wanted)):
                    clips[row, place] = fit_frames(frame[None], self.clip.size)[0]
            except BrokenVideo as error:
                raise DataError(
                    f"{printable(video.name)}: the clip from frame {start} on cannot be read "
                    f"({error}); restore or remove the file and open the set again."
                ) from error

        in_threads(fill, range(len(starts)))
        return clips

    def captions(self, indices: Tensor) -> list[str] | None:
        return None

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """How videos (not clips) are divided and labelled: int64 numbers of each split, int64 (n,)."""

    splits: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    targets: Tensor | None = None


def video_set(
    found: Inspected,
    clip: Clip,
    plan: Callable[[Sequence[StoredVideo]], Plan],
    *,
    name: str,
    where: Path,
) -> VideoData:
    """The set of the videos that are long enough; `plan` is asked about those alone.

    The fingerprint is a sha256 over the kind of clip and the videos' names and hashes.

    Raises:
        DataError: no video can be used; the first few are named with their reasons.
    """
    usable = tuple(video for video in found.videos if video.length >= clip.span)
    others = (video for video in found.videos if video.length < clip.span)
    short = [(v.name, f"{v.length} frames; a clip spans {clip.span}") for v in others]
    if not usable:
        reasons = sorted((*found.broken, *short))
        shown = "; ".join(f"{printable(file)}: {reason}" for file, reason in reasons[:_NAMED])
        raise DataError(f"none of the {len(reasons)} videos in {where} can be used: {shown}.")
    each, made = clip.per_video, plan(usable)
    return VideoData(
        name=name,
        fingerprint=_fingerprint(usable, clip),
        splits={split: _clips(numbers, each) for split, numbers in made.splits.items()},
        clip=clip,
        channels=1 if all(video.grey for video in usable) else 3,
        levels=256,
        source=StoredClips(usable, clip),
        count=len(usable) * each,
        classes=made.classes,
        targets=None if made.targets is None else made.targets.repeat_interleave(each),
        broken=_shown(sorted(found.broken)),
        short=_shown(short),
        frame_rates=dict(Counter(round(v.rate, 3) for v in usable if v.rate is not None)),
        varying=_shown([(v.name, v.varying) for v in usable if v.varying is not None]),
    )


def _shown(files: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((printable(file), reason) for file, reason in files)


def _clips(videos: Tensor, each: int) -> Tensor:
    return (videos[:, None] * each + torch.arange(each)).flatten()


def _fingerprint(videos: Sequence[StoredVideo], clip: Clip) -> str:
    digest = hashlib.sha256(b"stored-videos-v1:" + clip_words(clip))
    for video in videos:
        name = os.fsencode(video.name)
        digest.update(len(name).to_bytes(8, "little") + name + video.digest)
    return digest.hexdigest()
