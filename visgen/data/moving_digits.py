"""Handwritten digits that fly through a square and bounce off its sides (after Moving MNIST).

Protocol v1. The digits are the 1,797 scans of `digits.py`: train clips draw from the first 1,437
of RandomState(0).permutation(1797), test clips from the last 360. A scan is brought to
d = round(24 S / 64) pixels by half-pixel bilinear interpolation with edge clamp. Of each digit are
drawn, in this order: the scan, randint(n); the corner (y, x), uniform(0, S - d) twice; the
direction, uniform(0, 2 pi); the speed, uniform(2, 5) S / 64 pixels a frame; the velocity is
speed (sin, cos) of the direction. Each frame pastes every digit at its rounded corner, the
brighter pixel wins, then moves it; a corner beyond 0 or S - d is mirrored there and that
component of the velocity negated. A pixel is floor(255 v / 16 + 0.5), the same in three channels.

Clips are drawn when they are read (`drawn.py`); the frames of a short clip begin the long one.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.digits import COUNT, TRAIN, read_values
from visgen.data.drawn import REFERENCE_SIDE, DrawnClips, Flight, drawn_side
from visgen.data.videos import Clip, VideoData

PROTOCOL = "moving-digits-v1"
COUNTS = {"train": 10_000, "test": 1_024}
SMALLEST = 16  # a digit has 6 pixels there; below, its strokes vanish


@dataclass(frozen=True)
class MovingDigits:
    """Draws the clips.

    Attributes:
        clips: Their numbering.
        frames: Of a clip.
        side: Of a frame.
        digits: In a clip.
        values: The stored scans, float64 (1797, 8, 8), 0..16.
        targets: Their classes, int64 (1797,).
        scans: Split -> the scans it draws from.
    """

    clips: DrawnClips
    frames: int
    side: int
    digits: int
    values: NDArray[np.float64]
    targets: NDArray[np.int64]
    scans: Mapping[str, NDArray[np.int64]]

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        d = digit_side(self.side)
        out = np.zeros((len(indices), self.frames, self.side, self.side), dtype=np.uint8)
        for video, drawn in zip(out, self._draw(indices.tolist()), strict=True):
            for scan, flight in drawn:
                stamp = enlarge(self.values[scan], d)
                for frame in video:
                    y, x = flight.corner()
                    window = frame[y : y + d, x : x + d]
                    np.maximum(window, stamp, out=window)
                    flight.move()
        return torch.from_numpy(out)[:, :, None].expand(-1, -1, 3, -1, -1).contiguous()

    def captions(self, indices: Tensor) -> list[str] | None:
        return None

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        return None

    def scans_of(self, indices: Tensor) -> Tensor:
        """Which scans fly in each clip: int64 (n, digits), numbers into scikit-learn's table."""
        drawn = [[scan for scan, _ in clip] for clip in self._draw(indices.tolist())]
        return torch.tensor(drawn, dtype=torch.int64).reshape(-1, self.digits)

    def classes_of(self, indices: Tensor) -> Tensor:
        """The digits themselves, in the order in which they were drawn: int64 (n, digits)."""
        return torch.from_numpy(self.targets)[self.scans_of(indices)]

    def _draw(self, indices: Iterable[int]) -> Iterator[list[tuple[int, Flight]]]:
        reach = self.side - digit_side(self.side)
        for split, rng in self.clips.generators(indices):
            scans = self.scans[split]
            yield [
                (int(scans[rng.randint(len(scans))]), Flight.draw(rng, self.side, reach))
                for _ in range(self.digits)
            ]


def open_moving_digits(clip: Clip, *, digits: int = 2, seed: int = 0) -> VideoData:
    """Open the flying digits: 10,000 clips in `train`, 1,024 in `test`.

    With one digit its class is the clip's label, 0..9. With more there are no labels: a set of
    digits is no class, and `MovingDigits.classes_of` tells which they are.

    Args:
        clip: Square, 16 pixels or more; stride 1, policy `first`.
        digits: How many fly, 1 or more.
        seed: Gives other clips of the same scans.

    Raises:
        DataError: for another kind of clip or fewer digits.
        DataMissing: if scikit-learn's file is not there.
    """
    if digits < 1:
        raise DataError(f"moving-digits shows 1 digit or more, got {digits}.")
    side = drawn_side(clip, "moving-digits", smallest=SMALLEST)
    values, targets = read_values()
    order = RandomState(0).permutation(COUNT).astype(np.int64)
    digest = hashlib.sha256(f"{PROTOCOL}:{clip.frames}:{side}:{digits}:{seed}".encode())
    for part in (values.numpy(), targets.numpy(), order):
        digest.update(part.tobytes())
    source = MovingDigits(
        clips=DrawnClips(seed, COUNTS),
        frames=clip.frames,
        side=side,
        digits=digits,
        values=values[:, 0].numpy(),
        targets=targets.numpy(),
        scans={"train": order[:TRAIN], "test": order[TRAIN:]},
    )
    every = torch.arange(source.clips.count)
    return VideoData(
        name="moving-digits" if digits == 2 else f"moving-digits:{digits}",
        fingerprint=digest.hexdigest(),
        splits=source.clips.splits(),
        clip=clip,
        channels=1,
        levels=256,
        source=source,
        count=source.clips.count,
        classes=tuple("0123456789") if digits == 1 else (),
        targets=source.classes_of(every)[:, 0] if digits == 1 else None,
    )


def digit_side(side: int) -> int:
    """Pixels of a digit's side in frames of `side` pixels: three eighths, rounded."""
    return math.floor(24 * side / REFERENCE_SIDE + 0.5)


def enlarge(values: NDArray[np.float64], d: int) -> NDArray[np.uint8]:
    """Bring whole values 0..16, (8, 8), to pixels uint8 (d, d).

    All in whole numbers: three times eight has weights of thirds, which no float holds, and a third
    of 8/16 lies halfway between two pixel values, so that rounding errors would choose the pixel.
    """
    weights = _weights(values.shape[-1], d)
    summed = (weights @ values @ weights.T).astype(np.int64)  # exact: below 2**53
    unit = 16 * (2 * d) ** 2
    return ((2 * 255 * summed + unit) // (2 * unit)).astype(np.uint8)


def _weights(length: int, d: int) -> NDArray[np.float64]:
    """Of half-pixel bilinear interpolation from `length` to d, in units of 1/(2d): (d, length)."""
    place = ((2 * np.arange(d) + 1) * length - d).clip(0, 2 * d * (length - 1))
    low, part = np.divmod(place, 2 * d)
    weights = np.zeros((d, length))
    weights[np.arange(d), low] = 2 * d - part
    weights[np.arange(d), np.minimum(low + 1, length - 1)] += part
    return weights
