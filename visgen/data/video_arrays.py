"""Videos in NumPy's files: uint8 (t, h, w, 3), or (n, t, h, w, 3) for n videos.

Values are read at their place in the file, clip by clip. Mapping the file into memory would hold
no more and kill the process where the file shrinks. Headers alone are parsed and nothing is ever
unpickled. Of an `.npz` the one array of such a shape is taken; written by `numpy.savez` it is read
as fast as an `.npy`, written by `savez_compressed` it is unpacked up to the clip for every clip.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from visgen.data.clip_frames import MOST_FRAMES, BrokenVideo, check_sides

SUFFIXES = (".npy", ".npz")
MOST_UNPACKED = 16 * 2**30  # bytes of a compressed array: a bomb of 16 MB can declare that much
_BLOCK = 1 << 20
_WANTED = "uint8 (t, h, w, 3) or (n, t, h, w, 3)"


@dataclass(frozen=True)
class ArrayTable:
    """Where the frames of a file lie.

    Attributes:
        member: Name inside an `.npz`; None for an `.npy`.
        offset: Bytes before the first value.
        videos: How many there are; None if the array has no axis for them.
        shape: (t, h, w) of each.
    """

    member: str | None
    offset: int
    videos: int | None
    shape: tuple[int, int, int]

    @property
    def frame_bytes(self) -> int:
        """Of one frame."""
        return self.shape[1] * self.shape[2] * 3


def inspect_array(file: BinaryIO, *, packed: bool) -> tuple[ArrayTable, list[bytes]]:
    """Read an open `.npy` (`packed`: `.npz`) through once: its table and each video's sha256.

    Raises:
        BrokenVideo: no array of videos, several of them, cut off, or larger than what is read.
    """
    try:
        table = _packed_table(file) if packed else _table(file, None)
        return table, _digests(file, table)
    except BrokenVideo:
        raise
    except Exception as error:  # headers and archives fail in many ways on damaged bytes
        raise BrokenVideo(f"{type(error).__name__}: {error}") from error


def read_array(file: BinaryIO, table: ArrayTable, number: int, wanted: range) -> Iterator[Tensor]:
    """The frames `wanted` of video `number`: uint8 (3, h, w) each.

    Raises:
        BrokenVideo: the file ends before them, or its packing is damaged.
    """
    _, rows, columns = table.shape
    try:
        with _values(file, table.member) as values:
            for frame in wanted:
                place = number * table.shape[0] + frame
                values.seek(table.offset + place * table.frame_bytes)
                pixels = np.frombuffer(_exactly(values, table.frame_bytes), dtype=np.uint8)
                picture = pixels.reshape(rows, columns, 3).transpose(2, 0, 1)
                yield torch.from_numpy(picture.copy())
    except BrokenVideo:
        raise
    except Exception as error:
        raise BrokenVideo(f"{type(error).__name__}: {error}") from error


def _packed_table(file: BinaryIO) -> ArrayTable:
    found, others = [], []
    with zipfile.ZipFile(file) as archive:
        members = [info.filename for info in archive.infolist()]
    for member in members:
        try:
            found.append(_table(file, member))
        except BrokenVideo as error:
            others.append(f"{member}: {error}")
    if len(found) != 1:
        seen = (
            ", ".join(table.member or "" for table in found) or "; ".join(others[:5]) or "nothing"
        )
        raise BrokenVideo(f"an .npz needs one array {_WANTED}, and it has {len(found)} ({seen})")
    return found[0]


def _table(file: BinaryIO, member: str | None) -> ArrayTable:
    with _values(file, member) as values:
        shape, in_columns, kind = _header(values)
        offset = values.tell()
    if kind != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        raise BrokenVideo(f"it holds {kind} {shape}; videos are {_WANTED}")
    if in_columns:
        raise BrokenVideo("it is stored by columns; write it with numpy.ascontiguousarray")
    videos, length = (shape[0] if len(shape) == 5 else None), shape[-4]
    check_sides(shape[-3], shape[-2])
    if not 1 <= length * (1 if videos is None else videos) <= MOST_FRAMES:
        raise BrokenVideo(f"it declares shape {shape}; 1 to {MOST_FRAMES} frames can be read")
    return ArrayTable(member, offset, videos, (length, shape[-3], shape[-2]))


def _header(values: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(values)
    if version == (1, 0):
        shape, in_columns, kind = npy.read_array_header_1_0(values)
    elif version == (2, 0):
        shape, in_columns, kind = npy.read_array_header_2_0(values)
    else:  # 3.0 differs in names of fields, and bytes have none
        raise BrokenVideo(f"version {version} of NumPy's format is not that of an array of bytes")
    return shape, in_columns, kind


@contextmanager
def _values(file: BinaryIO, member: str | None) -> Iterator[IO[bytes]]:
    """An array's bytes, header included, from their beginning; places count from there."""
    file.seek(0)
    if member is None:
        yield file
        return
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BrokenVideo(f"{member} is packed in a way that NumPy does not write")
        if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > MOST_UNPACKED:
            raise BrokenVideo(
                f"{member} declares {info.file_size} bytes unpacked, and at most {MOST_UNPACKED} "
                "are read; store it as .npy"
            )
        with archive.open(info) as values:
            yield values


def _digests(file: BinaryIO, table: ArrayTable) -> list[bytes]:
    digests = []
    each = math.prod(table.shape) * 3
    with _values(file, table.member) as values:
        values.seek(table.offset)
        for _ in range(1 if table.videos is None else table.videos):
            digest, left = hashlib.sha256(str(table.shape).encode()), each
            while left:
                block = _exactly(values, min(left, _BLOCK))
                digest.update(block)
                left -= len(block)
            digests.append(digest.digest())
        values.read(1)  # an archive's checksum is compared at the end
    return digests


def _exactly(values: IO[bytes], count: int) -> bytes:
    block = values.read(count)
    if len(block) != count:
        raise BrokenVideo("it ends before the frames that its header declares")
    return block
