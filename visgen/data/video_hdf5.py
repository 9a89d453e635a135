"""Video sets in HDF5: the two layouts of VideoGPT's code, read and written.

- Clean layout: `{split}_data` uint8 [frames, h, w, 3], all clips one behind the other;
  `{split}_idx` integers [clips], the first frame of each; optional `{split}_actions` [frames, a].
  Ours beside it, all optional: `{split}_labels` integers [clips], `{split}_captions` text [clips],
  `classes` text; the attributes `channels` and `levels` of the file; and the attribute `between`
  of the actions: they lead from a frame to the next, so that a clip's last row is none.
- Paper repository's layout: `frames` uint8 [clips, 3, t, h, w], one file a split. The file's name
  says which (`train`, `val` or `test` in it); otherwise there is the split `all` alone.

The last possible start is reached and clips as long as a video work, unlike in the code that the
layouts come from. A file is somebody else's: what it keeps in other files is not followed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from visgen.data.clip_frames import (
    MOST_CLIP_BYTES,
    MOST_FRAMES,
    BrokenVideo,
    check_clip,
    check_sides,
    clip_starts,
    clip_words,
    fit_frames,
)
from visgen.data.dataset import DataError
from visgen.data.stored_file import StoredFile, store
from visgen.data.videos import Clip, VideoData

SUFFIXES = (".h5", ".hdf5")
MOST_CLASSES = 100_000
_USUAL = (("channels", 3), ("levels", 256))  # where the file does not say
_EXPECTED = (
    "{split}_data uint8 [frames, h, w, 3] with {split}_idx [clips], or frames uint8 "
    "[clips, 3, t, h, w]"
)


def open_video_hdf5(path: Path, clip: Clip, *, name: str) -> VideoData:
    """Open a file of either layout; its splits come one after another, and `all` has every clip.

    A clip's actions are those of its frames, in order: float32 (n, t * a). Videos shorter than a
    clip are `short`, by split and number. The fingerprint is a sha256 over the file and the kind
    of clip.

    Raises:
        DataError: no such file, not HDF5, keys missing (named with what was found and is wanted),
            values that do not fit together, or no video that is long enough.
    """
    check_clip(clip)
    try:
        file = store(path)
    except BrokenVideo as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    with _opened(file) as opened:
        parts = _parts(opened, path)
        for part in parts:
            part.check(opened, clip)
        labels = [part.labels(opened) for part in parts]
        classes = _classes(opened, labels)
        channels, levels = (_whole(opened.attrs.get(key, usual)) for key, usual in _USUAL)
    source = _source(file, parts, clip)
    if not len(source.lengths):
        raise DataError(f"no video in {path} has the {clip.span} frames that {clip} spans.")
    return VideoData(
        name=name,
        fingerprint=sha256(b"hdf5-v1:" + clip_words(clip) + file.digest).hexdigest(),
        splits=_splits(source),
        clip=clip,
        channels=channels,
        levels=levels,
        source=source,
        count=len(source.lengths) * clip.per_video,
        classes=classes,
        targets=_targets(labels, source),
        short=tuple(short for part in parts for short in part.short(clip)),
    )


@dataclass(frozen=True, eq=False)
class Part:
    """One split of a file.

    Attributes:
        split: Its name.
        key: Of its frames.
        starts: int64 (n,), first frame of each video; its number in the other layout.
        lengths: int64 (n,), frames of each.
        along: Whether the videos lie one behind the other.
        extras: Which of `actions`, `labels` and `captions` it has.
    """

    split: str
    key: str
    starts: Tensor
    lengths: Tensor
    along: bool
    extras: frozenset[str]

    def check(self, file: h5py.File, clip: Clip) -> None:
        """Raise DataError for values of which it cannot have as many as it should."""
        shape = _dataset(file, self.key).shape
        height, width = shape[1:3] if self.along else shape[3:]
        try:
            check_sides(height, width)
        except BrokenVideo as error:
            raise DataError(f"{self.key} in {file.filename!r}: {error}.") from error
        if (needed := clip.span * 3 * height * width) > MOST_CLIP_BYTES:
            raise DataError(
                f"a clip of {clip.span} frames of {self.key} takes {needed} bytes; at most "
                f"{MOST_CLIP_BYTES} are read. Take fewer frames or a smaller stride."
            )
        for kind in self.extras:
            values = _dataset(file, f"{self.split}_{kind}")
            text = h5py.check_string_dtype(values.dtype) is not None
            if text != (kind == "captions") or (not text and values.dtype.kind not in "fiu"):
                wanted = "text" if kind == "captions" else "numbers"
                raise DataError(f"{self.split}_{kind} is {values.dtype}; it must be {wanted}.")
            wanted = shape[0] if kind == "actions" else len(self.starts)
            if values.ndim != (2 if kind == "actions" else 1) or values.shape[0] != wanted:
                raise DataError(
                    f"{self.split}_{kind} has the shape {values.shape}; it must have {wanted} rows "
                    f"({'[frames, a]' if kind == 'actions' else '[clips]'})."
                )

    def labels(self, file: h5py.File) -> Tensor | None:
        """int64 (n,), or None."""
        if "labels" not in self.extras:
            return None
        return _integers(file, f"{self.split}_labels")

    def short(self, clip: Clip) -> list[tuple[str, str]]:
        """Name and length of the videos that are shorter than a clip."""
        numbers = (self.lengths < clip.span).nonzero()[:, 0].tolist()
        return [
            (f"{self.split}[{i}]", f"{int(self.lengths[i])} frames; a clip spans {clip.span}")
            for i in numbers
        ]


@dataclass(frozen=True, eq=False)
class HDF5Clips:
    """Clips of a file; the videos that are long enough follow each other, part by part.

    owners, numbers: int64 (videos,), the part and the number in it. extras: what all parts have.
    """

    file: StoredFile
    parts: tuple[Part, ...]
    clip: Clip
    owners: Tensor
    numbers: Tensor
    lengths: tuple[int, ...]
    extras: frozenset[str]

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        clips = torch.empty((len(indices), self.clip.frames, 3, *self.clip.size), dtype=torch.uint8)
        with _opened(self.file) as file:
            for row, (part, number, first) in enumerate(self._places(indices, seeds)):
                data, start = _dataset(file, part.key), int(part.starts[number])
                if part.along:
                    frames = torch.from_numpy(data[self._rows(start + first)]).permute(0, 3, 1, 2)
                else:
                    frames = torch.from_numpy(data[start, :, self._rows(first)]).transpose(0, 1)
                clips[row] = fit_frames(frames, self.clip.size)
        return clips

    def captions(self, indices: Tensor) -> list[str] | None:
        if "captions" not in self.extras:
            return None
        with _opened(self.file) as file:
            return [
                str(
                    _dataset(file, f"{part.split}_captions").asstr("utf-8", errors="replace")[
                        number
                    ]
                )
                for part, number, _ in self._places(indices, None)
            ]

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        if "actions" not in self.extras:
            return None
        with _opened(self.file) as file:
            rows = []
            for part, number, first in self._places(indices, seeds):
                values = _dataset(file, f"{part.split}_actions")
                taken = np.asarray(values[self._rows(int(part.starts[number]) + first)])
                if values.attrs.get("between", False):
                    taken = taken[:-1]
                rows.append(torch.from_numpy(taken.astype(np.float32)).flatten())
        return torch.stack(rows) if rows else torch.empty(0, 0)

    def _places(self, indices: Tensor, seeds: Tensor | None) -> Iterator[tuple[Part, int, int]]:
        """The part of each clip, the number of its video there, and the clip's first frame."""
        for video, first in clip_starts(self.clip, indices, self.lengths, seeds):
            yield self.parts[int(self.owners[video])], int(self.numbers[video]), first

    def _rows(self, start: int) -> slice:
        return slice(start, start + self.clip.span, self.clip.stride)


@contextmanager
def _opened(file: StoredFile) -> Iterator[h5py.File]:
    """The file, opened by its handle: so it is the one that was compared with its hash."""
    with file.open() as handle:
        try:
            with h5py.File(handle, "r") as opened:
                yield opened
        except DataError:
            raise
        except Exception as error:  # HDF5 raises anything on damaged bytes
            raise DataError(
                f"{file.path} cannot be read as HDF5 ({error}); expected {_EXPECTED}."
            ) from error


def _dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """A dataset whose values lie in this file; raises DataError for any other thing."""
    value = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
    if not isinstance(value, h5py.Dataset) or value.external is not None or value.is_virtual:
        raise DataError(f"{key} is not stored in the file itself as a dataset; copy it into it.")
    return value


def _parts(file: h5py.File, path: Path) -> list[Part]:
    keys = sorted(key for key in file if isinstance(key, str))  # others are no text
    if "frames" in keys:
        return [_clips_part(_dataset(file, "frames"), path)]
    splits = [key.removesuffix("_data") for key in keys if key.endswith("_data")]
    missing = [f"{split}_idx" for split in splits if f"{split}_idx" not in keys]
    if not splits or missing:
        lacks = f" {', '.join(missing)} is missing:" if missing else ""
        raise DataError(f"{path}:{lacks} it holds {keys[:20]}; expected {_EXPECTED}.")
    order = sorted(splits, key=lambda split: (split != "train", split))
    parts = [_along_part(file, split, keys) for split in order]
    for kind in ("actions", "labels", "captions"):
        filled = [part for part in parts if len(part.starts)]
        have = [part.split for part in filled if kind in part.extras]
        if have and len(have) < len(filled):
            lacking = ", ".join(f"{p.split}_{kind}" for p in filled if p.split not in have)
            raise DataError(f"{path} has {have[0]}_{kind}, but not {lacking}; write all or none.")
    return parts


def _clips_part(data: h5py.Dataset, path: Path) -> Part:
    shape = data.shape
    if data.dtype != np.uint8 or len(shape) != 5 or shape[1] != 3 or shape[0] > MOST_FRAMES:
        raise DataError(f"frames in {path} is {data.dtype} {shape}; expected {_EXPECTED}.")
    found = re.search(r"train|val|test", path.stem.lower())
    return Part(
        split=found[0] if found else "all",
        key="frames",
        starts=torch.arange(shape[0]),
        lengths=torch.full((shape[0],), shape[2]),
        along=False,
        extras=frozenset(),
    )


def _along_part(file: h5py.File, split: str, keys: Sequence[str]) -> Part:
    data = _dataset(file, f"{split}_data")
    if data.dtype != np.uint8 or data.ndim != 4 or data.shape[3] != 3:
        raise DataError(f"{split}_data is {data.dtype} {data.shape}; expected {_EXPECTED}.")
    starts = _integers(file, f"{split}_idx")
    bounds = torch.cat((starts, torch.tensor([data.shape[0]])))
    lengths = bounds.diff()
    if len(starts) and (int(starts[0]) < 0 or int(lengths.min()) < 1):
        raise DataError(
            f"{split}_idx must increase from 0 or more to less than the {data.shape[0]} frames of "
            f"{split}_data; it holds the first frame of each clip."
        )
    kinds = ("actions", "labels", "captions")
    extras = frozenset(kind for kind in kinds if f"{split}_{kind}" in keys)
    return Part(split, f"{split}_data", starts, lengths, True, extras)


def _integers(file: h5py.File, key: str) -> Tensor:
    """int64 (n,); the file may declare any number of them, so that is looked at first."""
    values = _dataset(file, key)
    if values.ndim != 1 or values.dtype.kind not in "iu" or values.shape[0] > MOST_FRAMES:
        raise DataError(
            f"{key} is {values.dtype} {values.shape}; it must be at most {MOST_FRAMES} integers."
        )
    return torch.from_numpy(values[...].astype(np.int64))


def _whole(value: object) -> int:
    if not isinstance(value, int | np.integer) or not 1 <= value <= 256:
        raise DataError(f"an attribute of the file is {value!r}; channels and levels are 1 to 256.")
    return int(value)


def _classes(file: h5py.File, labels: Sequence[Tensor | None]) -> tuple[str, ...]:
    known = [part for part in labels if part is not None and len(part)]
    if not known:
        return ()
    low, high = min(int(part.min()) for part in known), max(int(part.max()) for part in known)
    if "classes" in file:
        values = _dataset(file, "classes")
        count = values.shape[0] if values.ndim == 1 else 0
    else:
        values, count = None, min(high + 1, MOST_CLASSES)
    if low < -1 or high >= count or count > MOST_CLASSES:
        raise DataError(
            f"labels reach from {low} to {high} and there are {count} classes; a label is a class "
            f"number from 0, or -1 for none, of at most {MOST_CLASSES} classes."
        )
    if values is None:
        return tuple(str(number) for number in range(count))
    return tuple(map(str, values.asstr("utf-8", errors="replace")[:]))


def _source(file: StoredFile, parts: Sequence[Part], clip: Clip) -> HDF5Clips:
    fits = [(part.lengths >= clip.span).nonzero()[:, 0] for part in parts]
    lengths = torch.cat([part.lengths[fit] for part, fit in zip(parts, fits, strict=True)])
    return HDF5Clips(
        file=file,
        parts=tuple(parts),
        clip=clip,
        owners=torch.cat([torch.full_like(fit, i) for i, fit in enumerate(fits)]),
        numbers=torch.cat(fits),
        lengths=tuple(lengths.tolist()),
        extras=frozenset().union(*(part.extras for part in parts if len(part.starts))),
    )


def _splits(source: HDF5Clips) -> dict[str, Tensor]:
    owners = source.owners.repeat_interleave(source.clip.per_video)
    splits = {"all": torch.arange(len(owners))}
    for i, part in enumerate(source.parts):
        splits[part.split] = (owners == i).nonzero()[:, 0]
    return splits


def _targets(labels: Sequence[Tensor | None], source: HDF5Clips) -> Tensor | None:
    if "labels" not in source.extras:
        return None
    picked = [
        part[source.numbers[source.owners == i]]
        for i, part in enumerate(labels)
        if part is not None  # a part without videos may have none
    ]
    return torch.cat(picked).repeat_interleave(source.clip.per_video)
