"""A file as it was when a set was opened, and whether it still is.

Hashing a video at each clip that is read would cost more than the clip, so the file's stamp (size,
times, place on the disk) is compared first, and its content only where the stamp has moved. The
time of the last change of state is part of the stamp: writing moves it, and nobody can set it back.
File systems count that time in ticks of some milliseconds, so a stamp is believed only once it is
older than any tick.
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from visgen.data.clip_frames import BrokenVideo
from visgen.data.dataset import DataError
from visgen.data.tree import printable

_BLOCK = 1 << 20
_TICK = 100_000_000  # nanoseconds, far above the 10 ms of the coarsest usual clock
Stamp = tuple[int, int, int, int, int]


@dataclass(eq=False)
class StoredFile:
    """A regular file, its sha256 and the stamp at which it had that (None: not yet settled)."""

    path: Path
    digest: bytes
    stamp: Stamp | None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file at its beginning; raises DataError if it is gone or holds other bytes."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(
                f"{printable(self.path)} could be read when the set was opened and cannot now "
                f"({error.strerror}); restore it or open the set again."
            ) from error
        with file:
            now = _stamp(file)
            if now != self.stamp:
                if _digest(file) != self.digest:
                    raise DataError(
                        f"{printable(self.path)} changed since the set was opened; leave the files "
                        "alone during a run, or open the set again."
                    )
                self.stamp = _settled(now)  # only touched: not to be hashed at every clip
            yield file


def store(path: Path) -> StoredFile:
    """Hash a file; raises BrokenVideo if it is empty, not a regular file, or cannot be read."""
    try:
        # Opening a pipe would wait for its writer, so its kind is looked at first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BrokenVideo("not a regular file")
        if status.st_size == 0:
            raise BrokenVideo("the file is empty")
        with path.open("rb") as file:
            stamp = _settled(_stamp(file))
            return StoredFile(path, _digest(file), stamp)
    except OSError as error:
        raise BrokenVideo(f"{type(error).__name__}: {error.strerror}") from error


def _stamp(file: BinaryIO) -> Stamp:
    status = os.fstat(file.fileno())
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_dev,
        status.st_ino,
    )


def _settled(stamp: Stamp) -> Stamp | None:
    return stamp if time.time_ns() - stamp[2] > _TICK else None


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    file.seek(0)
    return digest.digest()
