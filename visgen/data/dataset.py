"""What every image set looks like to the rest of the house, and the errors that name its faults.

n images, h rows, w columns. Pictures leave this package as uint8 (n, 3, h, w), 0..255, whatever
they were stored as; a grey set repeats its one channel and says so in `channels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from visgen.data.resize import resize


class DataError(ValueError):
    """The data is there but cannot be used; the message names what is wrong and what to do."""


class DataMissing(ValueError):
    """The data is not on this machine; the message names the path and the flag that helps."""


class UnknownData(ValueError):
    """No set of that name; the message names the nearest one and lists all."""


class ImageSource(Protocol):
    """Where the pictures come from: memory, a mapped file or a folder."""

    def read(self, indices: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Return uint8 (n, 3, h, w), 0..255; `size` None means as stored."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """One image set.

    `size` is (rows, columns), or None where the pictures differ in size: then `images` must be
    told one. `levels` counts the values a stored channel can take (17 for 8x8 digits, 256 for
    photographs), so that bits per dimension count what exists. `broken` names every file that
    could not be used, with the reason. `fingerprint` is a sha256 over the content.
    """

    name: str
    fingerprint: str
    splits: Mapping[str, Tensor]
    size: tuple[int, int] | None
    channels: int
    levels: int
    source: ImageSource
    classes: tuple[str, ...] = ()
    targets: Tensor | None = None
    broken: tuple[tuple[str, str], ...] = ()
    count: int

    def __len__(self) -> int:
        return self.count

    def split(self, name: str) -> Tensor:
        """Return the int64 indices of a split; raises DataError that lists the splits there are."""
        if name not in self.splits:
            raise DataError(
                f'{self.name} has no split "{name}"; it has {", ".join(sorted(self.splits))}.'
            )
        return self.splits[name]

    def images(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return uint8 (n, 3, h, w), 0..255, in the order of `indices` (int64, (n,)).

        With `size` = (rows, columns) every picture is resized to it by Pillow's bilinear filter
        (half-pixel centres, antialiased when shrinking; `resize.py`); the aspect is not kept
        (TransGAN's own preparation). Raises DataError for indices out of range and for a set of
        mixed sizes that is not told one.
        """
        self._check(indices)
        if size is None and self.size is None:
            raise DataError(
                f"{self.name} holds pictures of different sizes; say which size they shall have, "
                "as in images(indices, size=(64, 64))."
            )
        if size is not None and min(size) < 1:
            raise DataError(f"size={size} is not a size; both sides must be 1 or more.")
        return self.source.read(indices, None if size == self.size else size)

    def labels(self, indices: Tensor) -> Tensor | None:
        """Return int64 (n,) class numbers into `classes` (-1: none), or None without labels."""
        self._check(indices)
        return None if self.targets is None else self.targets[indices]

    def _check(self, indices: Tensor) -> None:
        if indices.dtype != torch.int64 or indices.dim() != 1:
            raise DataError(
                f"indices must be int64 of shape (n,), got {indices.dtype} of shape "
                f"{tuple(indices.shape)}."
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.count:
            raise DataError(
                f"{self.name} holds images 0..{self.count - 1}, but indices "
                f"{int(indices.min())}..{int(indices.max())} were asked for."
            )


@dataclass(frozen=True, eq=False)
class Resized:
    """Another source's pictures at one size."""

    source: ImageSource
    size: tuple[int, int]

    def read(self, indices: Tensor, size: tuple[int, int] | None) -> Tensor:
        return self.source.read(indices, size or self.size)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Pictures of one size held in memory: uint8 (n, 1 or 3, h, w)."""

    pictures: Tensor

    def read(self, indices: Tensor, size: tuple[int, int] | None) -> Tensor:
        picked = self.pictures[indices]
        if picked.shape[1] == 1:
            picked = picked.expand(-1, 3, -1, -1).contiguous()
        return picked if size is None else resize(picked, size)
