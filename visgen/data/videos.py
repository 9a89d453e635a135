"""What every video set looks like to the rest of the house.

n clips, t frames, h rows, w columns. Clips leave this package as uint8 (n, t, 3, h, w), 0..255,
whatever they were stored as. A set is opened for one kind of clip (`Clip`): how many frames, which
of them, at which size; its indices count clips, not files. No set is ever held in memory whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from visgen.data.dataset import DataError

_UNIFORM = re.compile(r"uniform-([1-9][0-9]{0,3})")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is taken of each video.

    Attributes:
        frames: Of a clip.
        size: (rows, columns) that the clip's shorter side is brought to and its centre is cut to.
        stride: Every so many-th frame is taken.
        policy: Which stretch of a video: `first`; `random`, from the seed of each reading; or
            `uniform-K`, K stretches whose starts are spread evenly from the first possible one to
            the last.
    """

    frames: int
    size: tuple[int, int]
    stride: int = 1
    policy: str = "first"

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, *self.size) < 1:
            raise DataError(f"{self}: frames, stride and both sides are 1 or more.")
        if self.policy not in ("first", "random") and not _UNIFORM.fullmatch(self.policy):
            raise DataError(
                f'policy="{self.policy}" does not exist; there are "first", "random" and '
                '"uniform-K" (K clips of every video), as in "uniform-4".'
            )

    @property
    def span(self) -> int:
        """Frames of a video that a clip reaches over, first and last included."""
        return (self.frames - 1) * self.stride + 1

    @property
    def per_video(self) -> int:
        """Clips of one video."""
        found = _UNIFORM.fullmatch(self.policy)
        return int(found[1]) if found else 1

    def start(self, length: int, number: int, uniform: float = 0.0) -> int:
        """First frame of clip `number` of a video of so many frames.

        uniform: in [0, 1), for the policy `random`: every possible start is equally likely, the
        last one (`length - span`) included.

        Raises:
            DataError: if the video is shorter than a clip.
        """
        last = length - self.span
        if last < 0:
            raise DataError(
                f"a video of {length} frames is shorter than a clip of {self.frames} frames with "
                f"stride {self.stride}, which spans {self.span}."
            )
        if self.policy == "random":
            return min(last, int(uniform * (last + 1)))
        spread = self.per_video - 1
        return (2 * number * last + spread) // (2 * spread) if spread else 0


class ClipSource(Protocol):
    """Where the clips come from: a generator, a mapped file or a folder.

    seeds: int64 (n,), place the clips of the policy `random`; None for the others.
    """

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        """uint8 (n, t, 3, h, w), 0..255."""
        ...

    def captions(self, indices: Tensor) -> list[str] | None:
        """A sentence for each clip, or None where the set has none."""
        ...

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        """float32 (n, d), what was done in each clip, or None where the set has none."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoData:
    """One video set, opened for one kind of clip.

    Attributes:
        name: As it was asked for.
        fingerprint: sha256 over the content and the kind of clip.
        splits: Name -> int64 indices of clips.
        clip: What is taken of each video.
        channels: 1 if every clip is grey; clips come with three all the same.
        levels: Values that a stored channel can take.
        source: Gives the clips.
        count: Of all clips.
        classes: Names of the classes that `targets` counts.
        targets: int64 (count,), -1 for none; None without labels.
        broken: Files that could not be used, with the reason.
        short: Files with too few frames for a clip, with how many they have.
        frame_rates: Rates of the files (frames per second, to three places) and how many have
            each; empty where nothing is known of them.
        varying: Files whose frames are not equally far apart in time, with the extremes.
    """

    name: str
    fingerprint: str
    splits: Mapping[str, Tensor]
    clip: Clip
    channels: int
    levels: int
    source: ClipSource
    count: int
    classes: tuple[str, ...] = ()
    targets: Tensor | None = None
    broken: tuple[tuple[str, str], ...] = ()
    short: tuple[tuple[str, str], ...] = ()
    frame_rates: Mapping[float, int] = field(default_factory=dict)
    varying: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.clip.size

    def split(self, name: str) -> Tensor:
        """The int64 indices of a split; raises DataError that lists the splits there are."""
        if name not in self.splits:
            raise DataError(
                f'{self.name} has no split "{name}"; it has {", ".join(sorted(self.splits))}.'
            )
        return self.splits[name]

    def videos(self, indices: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Clips uint8 (n, t, 3, h, w), 0..255, in the order of `indices` (int64, (n,)).

        seeds: int64 (n,), which the policy `random` wants and no other reads.
        """
        self._check(indices)
        return self.source.read(indices, self._seeds(indices, seeds))

    def labels(self, indices: Tensor) -> Tensor | None:
        """int64 (n,) class numbers into `classes` (-1: none), or None without labels."""
        self._check(indices)
        return None if self.targets is None else self.targets[indices]

    def captions(self, indices: Tensor) -> list[str] | None:
        """A sentence for each clip, or None where the set has none."""
        self._check(indices)
        return self.source.captions(indices)

    def actions(self, indices: Tensor, seeds: Tensor | None = None) -> Tensor | None:
        """float32 (n, d), what was done in each clip, or None where the set has none.

        seeds: as `videos` was given them.
        """
        self._check(indices)
        return self.source.actions(indices, self._seeds(indices, seeds))

    def _seeds(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        if self.clip.policy != "random":
            return None
        if seeds is None or seeds.dtype != torch.int64 or seeds.shape != indices.shape:
            got = None if seeds is None else f"{seeds.dtype} of shape {tuple(seeds.shape)}"
            raise DataError(
                f'clips of policy "random" want seeds, int64 of shape {tuple(indices.shape)}; got '
                f'{got}. For clips that are the same each time use "first" or "uniform-K".'
            )
        return seeds

    def _check(self, indices: Tensor) -> None:
        if indices.dtype != torch.int64 or indices.dim() != 1:
            raise DataError(
                f"indices must be int64 of shape (n,), got {indices.dtype} of shape "
                f"{tuple(indices.shape)}."
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.count:
            raise DataError(
                f"{self.name} holds clips 0..{self.count - 1}, but indices "
                f"{int(indices.min())}..{int(indices.max())} were asked for."
            )
