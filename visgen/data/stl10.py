"""STL-10: 96x96 photographs, 5,000 + 8,000 in 10 classes and 100,000 without (Coates et al., 2011).

The files are raw bytes, mapped into memory and never loaded whole. Checking their MD5 at opening
reads 3 GB. TransGAN uses them at `images(indices, size=(48, 48))` and trains on
`train+unlabeled`.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visgen.data.archives import Archive, checked_folder
from visgen.data.dataset import Data, DataError, Resized
from visgen.data.resize import resize

SIDE = 96
CLASSES = (
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
)
ARCHIVE = Archive(
    name="stl10",
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    filename="stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    megabytes=2640,
    folder="stl10_binary",
    files={
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
    },
)


def open_stl10(root: Path | None, *, offline: bool, archive: Archive = ARCHIVE) -> Data:
    """Open STL-10 from `root` (holds stl10_binary/).

    Splits: `train`, `unlabeled`, `train+unlabeled`, `test`. Labels are -1 where there is none.
    The fingerprint is taken from the MD5 of the files, which have just been checked.

    Raises:
        DataMissing: not there and not to be downloaded.
        DataError: the files are not the published ones.
    """
    folder = checked_folder(archive, root, offline=offline)
    parts = tuple(_pictures(folder / f"{part}_X.bin") for part in ("train", "unlabeled", "test"))
    a, b, c = np.cumsum([len(part) for part in parts]).tolist()
    targets = torch.full((c,), -1, dtype=torch.int64)
    targets[:a] = _labels(folder / "train_y.bin", a)
    targets[b:] = _labels(folder / "test_y.bin", c - b)
    splits = {
        "train": torch.arange(a),
        "unlabeled": torch.arange(a, b),
        "train+unlabeled": torch.arange(b),
        "test": torch.arange(b, c),
    }
    known = "".join(f"{name}={md5};" for name, md5 in sorted(archive.files.items()))
    return Data(
        name="stl10",
        fingerprint=hashlib.sha256(f"stl10-v1:{known}".encode()).hexdigest(),
        splits=splits,
        size=(SIDE, SIDE),
        channels=3,
        levels=256,
        source=MappedParts(parts),
        classes=CLASSES,
        targets=targets,
        count=c,
    )


def open_stl10_48(root: Path | None, *, offline: bool, archive: Archive = ARCHIVE) -> Data:
    """STL-10 at 48 x 48, as TransGAN and most GANs since SNGAN use it; see `open_stl10`."""
    full = open_stl10(root, offline=offline, archive=archive)
    size = (SIDE // 2, SIDE // 2)
    return replace(
        full,
        name="stl10:48",
        fingerprint=hashlib.sha256(f"bilinear-48-v1:{full.fingerprint}".encode()).hexdigest(),
        size=size,
        source=Resized(full.source, size),
    )


@dataclass(frozen=True, eq=False)
class MappedParts:
    """Pictures in mapped files, one after the other: each uint8 (n, 3, h, w)."""

    parts: tuple[np.ndarray, ...]

    def read(self, indices: Tensor, size: tuple[int, int] | None) -> Tensor:
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        shape = self.parts[0].shape[1:]
        images = np.empty((len(indices), *shape), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            part = int(np.searchsorted(starts, index, side="right")) - 1
            images[row] = self.parts[part][index - starts[part]]
        stored = torch.from_numpy(images)
        return stored if size is None else resize(stored, size)


def _pictures(path: Path) -> np.ndarray:
    """Map uint8 (n, 3, 96, 96); the file stores columns before rows."""
    picture = 3 * SIDE * SIDE
    if path.stat().st_size == 0 or path.stat().st_size % picture:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, which is no multiple of {picture}."
        )
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE).swapaxes(2, 3)


def _labels(path: Path, count: int) -> Tensor:
    """Return int64 (count,) in 0..9; the file counts from 1."""
    labels = np.fromfile(path, dtype=np.uint8).astype(np.int64) - 1
    if len(labels) != count or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{path} does not hold {count} labels in 1..10.")
    return torch.from_numpy(labels)
