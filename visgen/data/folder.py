"""`folder:PATH`: anyone's folder of pictures as an image set.

All files with a picture's suffix, recursively, sorted by relative name; hidden names (leading dot)
and other suffixes are no part of the set. Opening decodes every file once, so that the broken ones
are known and named before anything is computed; only names, sizes and hashes are kept. Reading
decodes again, checks that the file is still the one that was opened, and holds one batch.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from visgen.data.dataset import Data, DataError
from visgen.data.decode import SUFFIXES, BrokenPicture, Picture, bombs_refused, decode
from visgen.data.resize import resize_picture
from visgen.data.tree import files_below, printable

TEST_SHARE = 0.2
_AT_ONCE = 4096  # files handed to the threads at a time, so that a million cost no memory
_NAMED = 5  # broken files spelled out in an error; `broken` holds them all

T = TypeVar("T")
R = TypeVar("R")


def open_folder(path: Path, *, name: str, split_seed: int = 0) -> Data:
    """Open a folder as a set with splits `all`, `train` and `test`.

    `test` is a seeded fifth by content hash: copies of one picture fall on one side, and renaming
    a file moves nothing. Labels exist only if every picture lies in a class folder: the first
    part of its relative name. `channels` is 1 if every file is grey. The fingerprint is a sha256
    over the sorted relative names and content hashes of the files that can be used.

    Raises:
        DataError: no such folder, not a folder, no picture in it, or only broken ones.
    """
    found = find_pictures(path)
    if not found.names and not found.unreadable:
        raise DataError(
            f"{path} holds no picture ({found.others} other files; hidden ones are not counted); "
            f"a set needs one file or more that ends in {', '.join(SUFFIXES)}."
        )
    facts, broken = _inspect(path, found.names)
    broken = tuple(sorted((*found.unreadable, *broken)))
    if not facts:
        shown = "; ".join(f"{file}: {reason}" for file, reason in broken[:_NAMED])
        raise DataError(f"none of the {len(broken)} pictures in {path} can be used: {shown}.")
    names = tuple(fact.name for fact in facts)
    sizes = {fact.size for fact in facts}
    size = sizes.pop() if len(sizes) == 1 else None
    classes, targets = _classes(names)
    return Data(
        name=name,
        fingerprint=_fingerprint(facts),
        splits=splits_by_hash([fact.digest for fact in facts], split_seed),
        size=size,
        channels=1 if all(fact.grey for fact in facts) else 3,
        levels=256,
        source=FolderPictures(path, names, tuple(fact.digest for fact in facts), size),
        classes=classes,
        targets=targets,
        broken=tuple((printable(file), reason) for file, reason in broken),
        count=len(facts),
    )


@dataclass(frozen=True, eq=False)
class FolderPictures:
    """Reads pictures of a folder by index; `names` are relative, `digests` their sha256.

    `size` is (rows, columns) if all pictures have that one.
    """

    folder: Path
    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    size: tuple[int, int] | None

    def read(self, indices: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Return uint8 (n, 3, h, w); raises DataError for a file that changed since opening.

        A single picture needs no size: it comes as it is stored.
        """
        size = size or self.size
        if size is None and len(indices) == 1:
            pixels = np.asarray(self._decode(int(indices[0])).pixels)
            return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        if size is None:
            raise DataError(f"the pictures in {self.folder} differ in size; say which to give.")
        images = np.empty((len(indices), 3, *size), dtype=np.uint8)

        def fill(place: tuple[int, int]) -> None:
            row, index = place
            pixels = resize_picture(self._decode(index).pixels, size)
            images[row] = np.asarray(pixels).transpose(2, 0, 1)

        in_threads(fill, list(enumerate(indices.tolist())))
        return torch.from_numpy(images)

    def _decode(self, index: int) -> Picture:
        name = self.names[index]
        try:
            picture = decode(self.folder / name)
        except BrokenPicture as error:
            raise DataError(
                f"{printable(name)} in {self.folder} could be read when the set was opened and "
                f"cannot now ({error}); restore it or open the folder again."
            ) from error
        if picture.digest != self.digests[index]:
            raise DataError(
                f"{printable(name)} in {self.folder} changed since the set was opened; leave the "
                "folder alone during a run, or open it again."
            )
        return picture


@dataclass
class Found:
    """What lies in a folder: picture names, what could not be listed, and how much else."""

    names: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0


def find_pictures(folder: Path) -> Found:
    """List picture files below `folder`, sorted by relative name with "/" between the parts.

    Raises DataError if `folder` is not there or is not a folder.
    """
    if not folder.exists():
        raise DataError(f"there is no folder {folder}; write folder:PATH with an existing one.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; folder:PATH takes the folder that holds pictures.")
    found = Found()
    for owner, files in files_below(folder, found.unreadable):
        for file in files:
            if file.lower().endswith(SUFFIXES):
                found.names.append(f"{owner}/{file}" if owner else file)
            else:
                found.others += 1
    found.names.sort()
    return found


@dataclass(frozen=True)
class _Fact:
    name: str
    size: tuple[int, int]
    grey: bool
    digest: bytes


def _inspect(folder: Path, names: Sequence[str]) -> tuple[list[_Fact], list[tuple[str, str]]]:
    """Decode every file once; return the facts of the good ones and the reasons of the others."""

    def look(name: str) -> _Fact | tuple[str, str]:
        try:
            picture = decode(folder / name)
        except BrokenPicture as error:
            return name, str(error)
        columns, rows = picture.pixels.size
        return _Fact(name, (rows, columns), picture.grey, picture.digest)

    facts, broken = [], []
    for result in in_threads(look, names):
        (facts if isinstance(result, _Fact) else broken).append(result)
    return facts, broken


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Map in order over threads: hashing and most decoders run outside Python's lock."""
    results: list[R] = []
    with bombs_refused(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), _AT_ONCE):
            results.extend(pool.map(function, items[start : start + _AT_ONCE]))
    return results


def _fingerprint(facts: Sequence[_Fact]) -> str:
    digest = hashlib.sha256(b"folder-v1")
    for fact in facts:
        name = os.fsencode(fact.name)
        digest.update(len(name).to_bytes(8, "little") + name + fact.digest)
    return digest.hexdigest()


def splits_by_hash(digests: Sequence[bytes], seed: int) -> dict[str, Tensor]:
    """A fifth of the different contents, by a hash keyed with `seed`, is `test` (one at least)."""
    key = f"folder-split-v1:{seed}:".encode()
    order = sorted(set(digests), key=lambda digest: hashlib.sha256(key + digest).digest())
    share = max(1, round(TEST_SHARE * len(order))) if len(order) > 1 else 0
    chosen = set(order[:share])
    test = torch.tensor([digest in chosen for digest in digests], dtype=torch.bool)
    everything = torch.arange(len(digests))
    return {"all": everything, "train": everything[~test], "test": everything[test]}


def _classes(names: Sequence[str]) -> tuple[tuple[str, ...], Tensor | None]:
    if not all("/" in name for name in names):
        return (), None
    owners = [name.partition("/")[0] for name in names]
    classes = sorted(set(owners))
    number = {owner: i for i, owner in enumerate(classes)}
    return (
        tuple(printable(owner) for owner in classes),
        torch.tensor([number[owner] for owner in owners], dtype=torch.int64),
    )
