"""One shape that moves or circles over a shaded ground, with a sentence that says so.

Protocol v1. Six colours, three shapes, six motions. A combination of colour c, shape s and motion m
is held out if (c + 2s + 3m) mod 7 = 0, which 16 of the 108 are: `train` and `test` show the others,
`test_comp` only these. Of each clip are drawn, in this order: c, s and m, all again until the
combination is one of the split's; the radius r; the ground's grey, and its slope down and to the
right; the speed; the start (y, x); the starting angle; the orbit's radius R; the orbit's centre
(y, x). All are drawn, whatever the motion uses.

A shape that moves goes straight and, where its centre would leave r..S - 1 - r, comes in again on
the other side: it is always whole and its direction never changes. A shape that circles keeps its
speed on the orbit; y points down, so a growing angle is clockwise. Pixel (i, j) lies at y = i,
x = j, and shows floor(ground (1 - a) + colour a + 0.5) with the coverage
a = clip(0.5 - signed distance to the outline, 0, 1).
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from visgen.data.drawn import REFERENCE_SIDE, DrawnClips, drawn_side
from visgen.data.videos import Clip, VideoData

PROTOCOL = "moving-shapes-v1"
COUNTS = {"train": 10_000, "test": 1_024, "test_comp": 1_024}
SMALLEST = 16  # the widest orbit with the largest shape fits from 11 pixels on; shapes show at 16
COLOURS = {
    "red": (230, 60, 60),
    "green": (60, 200, 90),
    "blue": (70, 110, 240),
    "yellow": (240, 210, 60),
    "magenta": (220, 80, 210),
    "cyan": (70, 210, 220),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x)
TURNS = {"clockwise": 1, "counterclockwise": -1}
SIZES = ("small", "large")
CAPTION = "a {size} {colour} {shape} {verb} {motion}"
CLASSES = tuple(f"{motion} {shape}" for motion in MOTIONS for shape in SHAPES)

# Lengths in pixels at 64 pixels a side; the ground's slope is in levels a pixel at that side.
RADII = (6.0, 11.0)
LARGE_FROM = 8.5
GROUNDS = (16.0, 48.0)
SLOPES = (-0.4, 0.4)
SPEEDS = (1.5, 4.0)
ORBITS = (10.0, 18.0)

SQUARE_HALF_SIDE = 0.886  # of r: the area of the circle
TRIANGLE_HEIGHT = 0.6735  # h in r; the apex lies at -1.2 h, the base at 0.8 h and is 2 h wide


@dataclass(frozen=True)
class Fact:
    """What a clip's sentence says: words of `SIZES`, `COLOURS`, `SHAPES` and `MOTIONS`."""

    size: str
    colour: str
    shape: str
    motion: str


@dataclass(frozen=True)
class Scene:
    """All that a clip is drawn from; lengths in pixels, (y, x) in this order, angles in radians.

    Attributes:
        fact: What the sentence says.
        radius: Of the shape.
        ground: Grey in the frame's middle, 0..255.
        slope: Of the grey, in levels a pixel.
        speed: In pixels a frame, straight or along the orbit.
        start: First centre of a shape that moves.
        angle: First angle of a shape that circles.
        orbit: Radius of its path.
        centre: Of that path.
    """

    fact: Fact
    radius: float
    ground: float
    slope: tuple[float, float]
    speed: float
    start: tuple[float, float]
    angle: float
    orbit: float
    centre: tuple[float, float]


@dataclass(frozen=True)
class MovingShapes:
    """Draws the clips of `frames` frames with `side` pixels a side."""

    clips: DrawnClips
    frames: int
    side: int

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        out = np.empty((len(indices), self.frames, 3, self.side, self.side), dtype=np.uint8)
        for video, scene in zip(out, self._scenes(indices.tolist()), strict=True):
            paint(video, scene)
        return torch.from_numpy(out)

    def captions(self, indices: Tensor) -> list[str] | None:
        return [caption_of(scene.fact) for scene in self.scenes(indices)]

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        return None

    def scenes(self, indices: Tensor) -> list[Scene]:
        """What each clip is drawn from."""
        return list(self._scenes(indices.tolist()))

    def facts(self, indices: Tensor) -> list[Fact]:
        """What each clip's sentence says."""
        return [scene.fact for scene in self.scenes(indices)]

    def targets(self) -> Tensor:
        """The class of every clip, int64 (count,): 3 motion + shape."""
        every = self.clips.generators(range(self.clips.count))
        drawn = (draw_combination(rng, held_out=split == "test_comp") for split, rng in every)
        return torch.tensor([3 * motion + shape for _, shape, motion in drawn])

    def _scenes(self, indices: Iterable[int]) -> Iterator[Scene]:
        for split, rng in self.clips.generators(indices):
            yield draw_scene(rng, self.side, held_out=split == "test_comp")


def open_moving_shapes(clip: Clip, *, seed: int = 0) -> VideoData:
    """Open the moving shapes: 10,000 clips in `train`, 1,024 each in `test` and `test_comp`.

    Each has a caption, `a small red circle moving left` or `a large cyan square circling
    clockwise`, and one of 18 classes, 3 motion + shape.

    Args:
        clip: Square, 16 pixels or more; stride 1, policy `first`.
        seed: Gives other clips.

    Raises:
        DataError: for another kind of clip.
    """
    side = drawn_side(clip, "moving-shapes", smallest=SMALLEST)
    source = MovingShapes(DrawnClips(seed, COUNTS), clip.frames, side)
    parameters = f"{PROTOCOL}:{clip.frames}:{side}:{seed}"
    return VideoData(
        name="moving-shapes",
        fingerprint=hashlib.sha256(parameters.encode()).hexdigest(),
        splits=source.clips.splits(),
        clip=clip,
        channels=3,
        levels=256,
        source=source,
        count=source.clips.count,
        classes=CLASSES,
        targets=source.targets(),
    )


def caption_of(fact: Fact) -> str:
    """The sentence that says it."""
    verb = "circling" if fact.motion in TURNS else "moving"
    return CAPTION.format(
        size=fact.size, colour=fact.colour, shape=fact.shape, verb=verb, motion=fact.motion
    )


def is_held_out(colour: int, shape: int, motion: int) -> bool:
    """Whether only `test_comp` shows this combination of numbers into the three lists."""
    return (colour + 2 * shape + 3 * motion) % 7 == 0


def draw_combination(rng: RandomState, *, held_out: bool) -> tuple[int, int, int]:
    """Draw colour, shape and motion until they are held out, or until they are not."""
    while True:
        drawn = int(rng.randint(6)), int(rng.randint(3)), int(rng.randint(6))
        if is_held_out(*drawn) == held_out:
            return drawn


def draw_scene(rng: RandomState, side: int, *, held_out: bool) -> Scene:
    """Draw one clip's scene, in the order of the protocol."""

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    colour, shape, motion = draw_combination(rng, held_out=held_out)
    scale = side / REFERENCE_SIDE
    radius = uniform(*RADII) * scale
    ground = uniform(*GROUNDS)
    slope = uniform(*SLOPES) / scale, uniform(*SLOPES) / scale
    speed = uniform(*SPEEDS) * scale
    start = uniform(radius, side - 1 - radius), uniform(radius, side - 1 - radius)
    angle = uniform(0, 2 * math.pi)
    orbit = uniform(*ORBITS) * scale
    near, far = orbit + radius, side - 1 - orbit - radius
    size = SIZES[radius >= LARGE_FROM * scale]
    fact = Fact(size, tuple(COLOURS)[colour], SHAPES[shape], MOTIONS[motion])
    centre = uniform(near, far), uniform(near, far)
    return Scene(fact, radius, ground, slope, speed, start, angle, orbit, centre)


def path(scene: Scene, frames: int, side: int) -> NDArray[np.float64]:
    """The shape's centre in each frame: (frames, 2), y and x."""
    time = np.arange(frames)
    turn = TURNS.get(scene.fact.motion)
    if turn is not None:
        angle = scene.angle + turn * scene.speed / scene.orbit * time
        return np.array(scene.centre) + scene.orbit * np.stack((np.sin(angle), np.cos(angle)), 1)
    velocity = scene.speed * np.array(DIRECTIONS[scene.fact.motion])
    gone = np.array(scene.start) - scene.radius + velocity * time[:, None]
    return gone % (side - 1 - 2 * scene.radius) + scene.radius


def signed_distance(
    shape: str, y: NDArray[np.float64], x: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """To the outline, in pixels, negative inside; y and x from the centre, broadcast."""
    if shape == "circle":
        return np.sqrt(y * y + x * x) - radius
    if shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) - SQUARE_HALF_SIDE * radius
    h = TRIANGLE_HEIGHT * radius
    return np.maximum(y - 0.8 * h, 0.894 * np.abs(x) - 0.447 * (y + 1.2 * h))


def ground_of(scene: Scene, side: int) -> NDArray[np.float64]:
    """The grey behind the shape: (side, side), 0..255."""
    down, right = (slope * (np.arange(side) - side / 2) for slope in scene.slope)
    return (scene.ground + (down[:, None] + right)).clip(0, 255)


def paint(video: NDArray[np.uint8], scene: Scene) -> None:
    """Fill uint8 (t, 3, s, s) with the scene.

    Only the square around the shape is computed in each frame; it is a small part of the picture.
    """
    frames, _, side, _ = video.shape
    ground = ground_of(scene, side)
    video[:] = np.floor(ground + 0.5).astype(np.uint8)
    colour = np.array(COLOURS[scene.fact.colour], dtype=np.float64)[:, None, None]
    for frame, (y, x) in zip(video, path(scene, frames, side), strict=True):
        rows, columns = _near(y, scene.radius, side), _near(x, scene.radius, side)
        outline = signed_distance(scene.fact.shape, rows[:, None] - y, columns - x, scene.radius)
        alpha = (0.5 - outline).clip(0, 1)
        window = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        frame[window] = np.floor(ground[window] * (1 - alpha) + colour * alpha + 0.5)


def _near(place: float, radius: float, side: int) -> NDArray[np.int64]:
    # A triangle's apex has coverage up to 1.12 pixels above it, so the margin is a pixel.
    first, last = math.floor(place - radius) - 1, math.floor(place + radius) + 2
    return np.arange(max(0, first), min(side - 1, last) + 1)
