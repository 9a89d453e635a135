"""Video sets that are drawn when they are read: numbering, random generators, and flights.

The generator of a clip stands at RandomState((1000003 seed + offset + place) mod (2**32 - 1)), with
its place in its split, and offset 0 in train and 500000007 elsewhere. A clip is therefore the same
alone and in any batch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from numpy.random import RandomState
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.videos import Clip

REFERENCE_SIDE = 64  # every length of the drawn sets is given for this side and scales with it
SPEEDS = (2.0, 5.0)  # of a flight, in pixels a frame at that side


@dataclass(frozen=True)
class DrawnClips:
    """Which clips a drawn set has, and the random generator of each.

    Attributes:
        seed: Of the whole set; another seed gives other clips.
        counts: Split -> how many clips; indices count through the splits in this order.
    """

    seed: int
    counts: Mapping[str, int]

    @property
    def count(self) -> int:
        """Clips in all splits."""
        return sum(self.counts.values())

    def splits(self) -> dict[str, Tensor]:
        """Split -> its int64 indices."""
        pieces = torch.arange(self.count).split(list(self.counts.values()))
        return dict(zip(self.counts, pieces, strict=True))

    def place(self, index: int) -> tuple[str, int]:
        """The split of clip `index` and the clip's place in that split, from 0."""
        for split, count in self.counts.items():
            if index < count:
                return split, index
            index -= count
        raise IndexError(f"{self.count} clips are fewer than the index wants.")

    def generators(self, indices: Iterable[int]) -> Iterator[tuple[str, RandomState]]:
        """The split of each clip, and a generator that stands at the clip's first draw.

        The generator is valid until the next one is asked for: to make one costs 60 times what it
        costs to seed it again, and labels want one for every clip of the set.
        """
        rng = RandomState(0)
        for index in indices:
            split, place = self.place(index)
            offset = 0 if split == "train" else 500_000_007
            rng.seed((1_000_003 * self.seed + offset + place) % (2**32 - 1))
            yield split, rng


def drawn_side(clip: Clip, name: str, *, smallest: int, multiple: int = 1) -> int:
    """The side S of the square clips that are asked for.

    Raises:
        DataError: for a clip that `name` cannot draw.
    """
    rows, columns = clip.size
    if rows != columns or rows < smallest or rows % multiple:
        sides = f"{smallest} pixels or more" + (f", a multiple of {multiple}" * (multiple > 1))
        raise DataError(
            f"{name} draws square clips with sides of {sides}; got {rows}x{columns}. "
            "Use size=(64, 64), for example."
        )
    if clip.stride != 1 or clip.policy != "first":
        raise DataError(
            f"{name} draws each clip as it is read: there is no longer video to take one from, so "
            f'stride is 1 and policy is "first"; got stride {clip.stride}, policy "{clip.policy}".'
        )
    return rows


@dataclass
class Flight:
    """Where a thing is, (y, x) of its upper left corner, and its velocity in pixels a frame."""

    place: tuple[float, float]
    velocity: tuple[float, float]
    reach: int

    @classmethod
    def draw(cls, rng: RandomState, side: int, reach: int) -> "Flight":
        """Draw corner in 0..reach twice, direction and speed, in this order."""
        y, x = float(rng.uniform(0, reach)), float(rng.uniform(0, reach))
        angle = float(rng.uniform(0, 2 * math.pi))
        speed = float(rng.uniform(*SPEEDS)) * side / REFERENCE_SIDE
        return cls((y, x), (speed * math.sin(angle), speed * math.cos(angle)), reach)

    def corner(self) -> tuple[int, int]:
        """The pixel it is painted at, from 0 to reach in both directions."""
        return math.floor(self.place[0] + 0.5), math.floor(self.place[1] + 0.5)

    def move(self) -> bool:
        """Go on by one frame; say whether a side was hit."""
        moved = [_mirror(p, v, self.reach) for p, v in zip(self.place, self.velocity, strict=True)]
        (y, vy), (x, vx) = moved
        hit = (vy, vx) != self.velocity
        self.place, self.velocity = (y, x), (vy, vx)
        return hit


def _mirror(place: float, velocity: float, reach: int) -> tuple[float, float]:
    # One mirror is enough: a step is at most 5/64 of the side, and reach is more than half of it.
    place += velocity
    if place < 0:
        return -place, -velocity
    if place > reach:
        return 2 * reach - place, -velocity
    return place, velocity
