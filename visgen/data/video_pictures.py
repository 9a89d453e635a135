"""A folder of pictures as one video: its frames are the pictures in the order of their names.

Numbers in names count as numbers, so `2.png` comes before `10.png`. Every picture is decoded once
when the set is opened; all have one size.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visgen.data.clip_frames import BrokenVideo, check_sides
from visgen.data.decode import SUFFIXES, BrokenPicture, decode

__all__ = ["SUFFIXES", "PictureTable", "in_order", "inspect_pictures", "read_pictures"]


@dataclass(frozen=True)
class PictureTable:
    """Names of the pictures in order, the sha256 of each, and whether all are grey."""

    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    grey: bool

    @property
    def digest(self) -> bytes:
        """sha256 over the pictures in order, their names apart."""
        return hashlib.sha256(b"".join(self.digests)).digest()


def in_order(names: Sequence[str]) -> list[str]:
    """Names sorted with their numbers as numbers."""
    return sorted(names, key=lambda name: (_pieces(name), name))


def inspect_pictures(folder: Path, names: Sequence[str]) -> PictureTable:
    """Decode each picture once; call it inside `bombs_refused()`.

    Raises:
        BrokenVideo: a picture is broken, too large, or of another size than the first.
    """
    digests, grey, sizes = [], True, set()
    for name in names:
        try:
            picture = decode(folder / name)
        except BrokenPicture as error:
            raise BrokenVideo(f"frame {name}: {error}") from error
        columns, rows = picture.pixels.size
        check_sides(rows, columns)
        sizes.add((columns, rows))
        if len(sizes) > 1:
            raise BrokenVideo(f"its frames differ in size: {name} is {columns}x{rows}")
        digests.append(picture.digest)
        grey = grey and picture.grey
    return PictureTable(tuple(names), tuple(digests), grey)


def read_pictures(folder: Path, table: PictureTable, wanted: range) -> Iterator[Tensor]:
    """The frames `wanted`: uint8 (3, h, w) each; call it inside `bombs_refused()`.

    Raises:
        BrokenVideo: a picture is gone, broken or changed.
    """
    for number in wanted:
        name = table.names[number]
        try:
            picture = decode(folder / name)
        except BrokenPicture as error:
            raise BrokenVideo(f"frame {name}: {error}") from error
        if picture.digest != table.digests[number]:
            raise BrokenVideo(f"frame {name} changed since the set was opened")
        yield torch.from_numpy(np.asarray(picture.pixels).transpose(2, 0, 1).copy())


def _pieces(name: str) -> list[str | int]:
    """Text and numbers take turns, so that like is compared with like."""
    pieces = re.split(r"(\d+)", name, flags=re.ASCII)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
