"""A camera that pans or zooms over a real photograph, in ten ways.

Protocol v1. Eight photographs that scikit-learn and scikit-image ship; chelsea and flower are kept
for `test`. Of each clip are drawn, in this order: the class, randint(10); the photograph,
randint(n); u, uniform(1, 2); the speed, uniform(1, 4); the place (y, x), uniform(0, 1) twice. All
are drawn, whatever the motion uses.

The camera sees a square window of the photograph, brought to S pixels by the one filter of
`resize.py` (Pillow's bilinear filter, antialiased), from corners that need not be whole pixels. To
pan, a window of S u pixels moves by `speed` pixels of the photograph a frame, straight or
diagonally; the classes name the way the window goes, the picture goes the other way. To zoom in, a
window of S u pixels shrinks by 2 % a frame around its centre; zooming out is the same backwards,
so that no single frame tells the two apart. The place is where, of all the windows' ways that stay
inside the photograph, this one lies: 0 is the uppermost or leftmost, 1 the opposite.
"""

import hashlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor

from visgen.data.dataset import DataError, DataMissing
from visgen.data.decode import BrokenPicture, Picture, bombs_refused, decode
from visgen.data.drawn import DrawnClips, drawn_side
from visgen.data.videos import Clip, VideoData

PROTOCOL = "camera-moves-v1"
COUNTS = {"train": 10_000, "test": 1_024}
SMALLEST = 16
SKLEARN = ("sklearn", "datasets/images")
SKIMAGE = ("skimage", "data")
INSTALL = {"sklearn": "pip install scikit-learn", "skimage": 'pip install "visgen-harness[photos]"'}
PHOTOGRAPHS = {
    "train": (
        (*SKLEARN, "china.jpg"),
        (*SKIMAGE, "astronaut.png"),
        (*SKIMAGE, "coffee.png"),
        (*SKIMAGE, "rocket.jpg"),
        (*SKIMAGE, "retina.jpg"),
        (*SKIMAGE, "hubble_deep_field.jpg"),
    ),
    "test": ((*SKIMAGE, "chelsea.png"), (*SKLEARN, "flower.jpg")),
}
_DIAGONAL = math.sqrt(0.5)
PANS = {  # the way the window goes, (y, x), of length 1
    "right": (0.0, 1.0),
    "down right": (_DIAGONAL, _DIAGONAL),
    "down": (1.0, 0.0),
    "down left": (_DIAGONAL, -_DIAGONAL),
    "left": (0.0, -1.0),
    "up left": (-_DIAGONAL, -_DIAGONAL),
    "up": (-1.0, 0.0),
    "up right": (-_DIAGONAL, _DIAGONAL),
}
CLASSES = (*(f"pan {way}" for way in PANS), "zoom in", "zoom out")
ZOOM = 1.02  # a frame
WINDOWS = (1.0, 2.0)  # of S
SPEEDS = (1.0, 4.0)  # pixels of the photograph a frame


@dataclass(frozen=True)
class Move:
    """What the camera does in a clip.

    Attributes:
        kind: Number into `CLASSES`.
        photograph: Number into the photographs of the clip's split.
        window: Largest side of what the camera sees, in pixels of the photograph.
        speed: Of a pan, in those pixels a frame.
        place: Where the way lies among those that fit, (y, x), each in [0, 1).
    """

    kind: int
    photograph: int
    window: float
    speed: float
    place: tuple[float, float]


@dataclass(frozen=True)
class CameraMoves:
    """Draws the clips of `frames` frames with `side` pixels a side.

    Attributes:
        photographs: Split -> the pictures it looks at.
    """

    clips: DrawnClips
    frames: int
    side: int
    photographs: Mapping[str, Sequence[Image.Image]]

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        size = self.side, self.side
        out = np.empty((len(indices), self.frames, *size, 3), dtype=np.uint8)
        for video, (split, move) in zip(out, self._moves(indices.tolist()), strict=True):
            picture = self.photographs[split][move.photograph]
            for frame, box in zip(video, boxes(move, picture.size, self.frames), strict=True):
                frame[:] = picture.resize(size, Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(out).permute(0, 1, 4, 2, 3).contiguous()

    def captions(self, indices: Tensor) -> list[str] | None:
        return None

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        return None

    def moves(self, indices: Tensor) -> list[Move]:
        """What the camera does in each clip."""
        return [move for _, move in self._moves(indices.tolist())]

    def targets(self) -> Tensor:
        """The class of every clip, int64 (count,)."""
        return torch.tensor([move.kind for _, move in self._moves(range(self.clips.count))])

    def _moves(self, indices: Iterable[int]) -> Iterator[tuple[str, Move]]:
        for split, rng in self.clips.generators(indices):
            yield split, draw_move(rng, len(self.photographs[split]), self.side)


def open_camera_moves(clip: Clip, *, seed: int = 0) -> VideoData:
    """Open the camera moves: 10,000 clips in `train`, 1,024 in `test`, with ten classes.

    Args:
        clip: Square, 16 pixels or more; stride 1, policy `first`. The widest window and the
            farthest pan must fit into every photograph, whose shortest side is 300 pixels:
            2 S + 4 (frames - 1) <= 300.
        seed: Gives other clips of the same photographs.

    Raises:
        DataError: for another kind of clip, or if a photograph is damaged.
        DataMissing: if the photographs are not installed; the message has the command.
    """
    side = drawn_side(clip, "camera-moves", smallest=SMALLEST)
    with bombs_refused():
        pictures = {
            split: [read_photograph(*source) for source in sources]
            for split, sources in PHOTOGRAPHS.items()
        }
    photographs = {split: [one.pixels for one in some] for split, some in pictures.items()}
    shortest = min(min(one.size) for some in photographs.values() for one in some)
    _check_room(clip, side, shortest)
    digest = hashlib.sha256(f"{PROTOCOL}:{clip.frames}:{side}:{seed}".encode())
    for some in pictures.values():
        for one in some:
            digest.update(one.digest)
    source = CameraMoves(DrawnClips(seed, COUNTS), clip.frames, side, photographs)
    return VideoData(
        name="camera-moves",
        fingerprint=digest.hexdigest(),
        splits=source.clips.splits(),
        clip=clip,
        channels=3,
        levels=256,
        source=source,
        count=source.clips.count,
        classes=CLASSES,
        targets=source.targets(),
    )


def _check_room(clip: Clip, side: int, shortest: int) -> None:
    widest, fastest = int(WINDOWS[1]), int(SPEEDS[1])
    if widest * side + fastest * (clip.frames - 1) > shortest:
        longest = max(0, (shortest - widest * side) // fastest + 1)
        largest = max(0, (shortest - fastest * (clip.frames - 1)) // widest)
        raise DataError(
            f"camera-moves cannot pan over {clip.frames} frames of {side} pixels a side in a "
            f"photograph of {shortest}: {widest} x side + {fastest} x (frames - 1) must fit. With "
            f"{side} pixels there may be {longest} frames, with {clip.frames} frames {largest} "
            "pixels."
        )


def read_photograph(package: str, folder: str, file: str) -> Picture:
    """Decode one photograph of an installed package, without importing the package.

    Raises:
        DataMissing: if the package or its file is not there.
        DataError: if the file is no picture.
    """
    install = INSTALL.get(package, f"pip install {package}")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataMissing(
            f"camera-moves looks at photographs of {package}, which is not installed: {install}"
        )
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise DataMissing(f"{package} is here, but not its file {path}: {install}")
    try:
        return decode(path)
    except BrokenPicture as error:
        raise DataError(f"{path} is damaged ({error}); reinstall {package}: {install}") from error


def draw_move(rng: RandomState, photographs: int, side: int) -> Move:
    """Draw one clip's move, in the order of the protocol."""
    kind, photograph = int(rng.randint(len(CLASSES))), int(rng.randint(photographs))
    window, speed = side * float(rng.uniform(*WINDOWS)), float(rng.uniform(*SPEEDS))
    place = float(rng.uniform(0, 1)), float(rng.uniform(0, 1))
    return Move(kind, photograph, window, speed, place)


def boxes(
    move: Move, size: tuple[int, int], frames: int
) -> list[tuple[float, float, float, float]]:
    """What the camera sees in each frame, (left, top, right, bottom) in pixels of the photograph.

    size: (columns, rows) of the photograph, as Pillow says it.
    """
    time = np.arange(frames)
    name = CLASSES[move.kind]
    window = np.full(frames, move.window)
    corner = np.zeros((frames, 2))  # y, x, from where the way begins
    if name.startswith("pan "):
        corner = move.speed * time[:, None] * np.array(PANS[name.removeprefix("pan ")])
    else:
        window = move.window * ZOOM ** -(time if name == "zoom in" else time[::-1])
        corner = np.repeat((move.window - window)[:, None] / 2, 2, axis=1)
    least, most = corner.min(axis=0), (corner + window[:, None]).max(axis=0)
    room = np.array(size[::-1]) - (most - least)
    corner = corner - least + room * np.array(move.place)
    # Rounding may step over the photograph's edge by a last bit, which Pillow refuses.
    low = corner.clip(0, None)
    high = np.minimum(corner + window[:, None], size[::-1])
    return [(x, y, right, bottom) for (y, x), (bottom, right) in zip(low, high, strict=True)]
