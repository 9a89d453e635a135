"""How many samples are copies of training images, by pixel distance.

A sample is a copy if its Euclidean distance to the nearest training image is smaller than the 1st
percentile of the distances from real test images to their nearest training image. So real test
images score about 0.01; lower is better. Pixels are uint8 at the training set's size; squared
distances are integers below 2**53, hence exact in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import StateError, TooFewSamples
from visgen_bench.metrics.moments import Array

_BLOCK = 1024

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class CopyReference:
    """Training images and the distance below which a sample counts as a copy.

    Attributes:
        train: uint8 (m, 3 h w).
        threshold: Euclidean, in grey levels.
        image_size: (h, w).
    """

    train: Pixels
    threshold: float
    image_size: tuple[int, int]

    @classmethod
    def fit(cls, train: Iterable[Tensor], test: Iterable[Tensor], percentile: float = 1.0) -> Self:
        """From batches of training and test images, uint8 (b, 3, h, w), all of one size."""
        batches = list(train)
        sizes = {tuple(batch.shape[-2:]) for batch in batches}
        if len(sizes) != 1:
            raise StateError(
                "copy_share compares pixels, so training images need one size, got "
                f"{sorted(sizes) or 'none'}; "
                "give the set a size."
            )
        h, w = sizes.pop()
        pixels = np.concatenate([_flat(batch, (h, w)) for batch in batches])
        distances = [nearest(_flat(batch, (h, w)), pixels) for batch in test]
        if not distances:
            raise TooFewSamples("copy_share needs test images to know how near is usual, got none.")
        limit = float(np.percentile(np.concatenate(distances), percentile))
        return cls(pixels, limit, (h, w))

    def copies(self, images: Tensor) -> int:
        """How many of the images uint8 (n, 3, h, w) are copies; other sizes are resized first."""
        return int((nearest(_flat(images, self.image_size), self.train) < self.threshold).sum())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state as named arrays."""
        return {
            "train": self.train,
            "threshold": np.array(self.threshold),
            "image_size": np.array(self.image_size),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""
        h, w = (int(side) for side in arrays["image_size"])
        return cls(arrays["train"], float(arrays["threshold"]), (h, w))


def nearest(images: Pixels, train: Pixels) -> Array:
    """Euclidean distance of each row of `images` (n, p) to the nearest row of `train` (m, p)."""
    best = np.full(len(images), np.inf)
    for start in range(0, len(images), _BLOCK):
        x = images[start : start + _BLOCK].astype(np.float64)
        for first in range(0, len(train), _BLOCK):
            y = train[first : first + _BLOCK].astype(np.float64)
            squared = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2.0 * (x @ y.T)
            here = best[start : start + _BLOCK]
            np.minimum(here, squared.min(axis=1), out=here)
    return np.sqrt(best)


def _flat(images: Tensor, size: tuple[int, int]) -> Pixels:
    if tuple(images.shape[-2:]) != size:
        resized = F.interpolate(
            images.float(), size, mode="bilinear", align_corners=False, antialias=True
        )
        images = resized.round().clamp(0, 255).to(images.dtype)
    return images.flatten(1).numpy()
