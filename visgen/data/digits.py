"""Handwritten digits: the 1,797 8x8 scans that scikit-learn ships (UCI optical digits, BSD).

Protocol v1. Split: RandomState(0).permutation(1797), first 1,437 train, last 360 test. A stored
value v in 0..16 becomes v/16, is brought to 16 or 32 pixels by half-pixel bilinear interpolation
with edge clamp, and becomes uint8 floor(255 x + 0.5). All these steps are exact in float64: the
weights are dyadic, so no machine can round another way.
"""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.data.dataset import Data, DataError, DataMissing, InMemory

COUNT = 1797
TRAIN = 1437
SIZES = (8, 16, 32)
PROTOCOL = "digits-v1"


def open_digits(side: int) -> Data:
    """Open the digits at `side` 8, 16 or 32 pixels; raises DataError for any other side.

    `levels` is 17 at 8 pixels; interpolation makes values between them, so it is 256 at 16 and 32.
    """
    if side not in SIZES:
        raise DataError(f"digits:{side} does not exist; sides are 8, 16 and 32, as in digits:8.")
    values, targets = read_values()
    pictures = to_pixels(upsample(values, side))
    order = torch.from_numpy(np.random.RandomState(0).permutation(COUNT).astype(np.int64))
    splits = {"train": order[:TRAIN], "test": order[TRAIN:]}
    digest = hashlib.sha256(f"{PROTOCOL}:{side}".encode())
    for part in (pictures, targets, order):
        digest.update(part.numpy().tobytes())
    return Data(
        name=f"digits:{side}",
        fingerprint=digest.hexdigest(),
        splits=splits,
        size=(side, side),
        channels=1,
        levels=17 if side == 8 else 256,
        source=InMemory(pictures),
        classes=tuple("0123456789"),
        targets=targets,
        count=COUNT,
    )


def read_values() -> tuple[Tensor, Tensor]:
    """Return the stored values float64 (1797, 1, 8, 8) in 0..16 and the classes int64 (1797,).

    Reads scikit-learn's own file: importing the package takes longer than a small cell's work.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataMissing("digits come with scikit-learn, which is not installed here: "
                          "pip install scikit-learn")  # fmt: skip
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataMissing(f"scikit-learn is here, but not its file {path}: reinstall scikit-learn.")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    if table.shape != (COUNT, 65) or table.min() < 0 or table[:, :64].max() > 16:
        raise DataError(
            f"{path} is not the 1797x65 table of digits in 0..16; reinstall scikit-learn."
        )
    values = torch.from_numpy(table[:, :64].reshape(COUNT, 1, 8, 8).astype(np.float64))
    return values, torch.from_numpy(table[:, 64].copy())


def upsample(values: Tensor, side: int) -> Tensor:
    """Bring stored values 0..16, float (n, c, h, w), to x in 0..1, (n, c, side, side)."""
    x = values / 16
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def to_pixels(x: Tensor) -> Tensor:
    """Return uint8 floor(255 x + 0.5) of x in 0..1."""
    return (255 * x + 0.5).floor().to(torch.uint8)
