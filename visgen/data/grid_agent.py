"""A square that obeys commands on a grid, and a ball that nobody commands.

Protocol v1, for sides S that are multiples of 16. The agent is a square of S/8 pixels on a grid of
15 x 15 places, S/16 pixels apart. Each frame but the last has a command: stay, left, right, up or
down one place; at a wall the agent stays. The ball is a disc of S/8 pixels that flies as a digit of
`moving_digits.py` does, and each time it bounces its direction turns by a further uniform(-0.5,
0.5) radians: what the ball does does not follow from the frames before, so futures differ. (A turn
back into the side that was hit is mirrored, and turned again, a frame later.) The agent is painted
over the ball and so always whole; a fixed grey lies behind both.

Of each clip are drawn, in this order: the agent's row and column, randint(15) each; the ball's
corner, direction and speed; then of each step, the command: with probability 0.7 the last one
(uniform(0, 1) < 0.7), else and in the first step randint(5); and the ball's turn, if it bounces.
The frames and commands of a short clip therefore begin the long one.
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

from visgen.data.drawn import DrawnClips, Flight, drawn_side
from visgen.data.moving_shapes import signed_distance
from visgen.data.videos import Clip, VideoData

PROTOCOL = "grid-agent-v1"
COUNTS = {"train": 10_000, "test": 1_024}
MULTIPLE = 16  # so that a step is a whole number of pixels
PLACES = 15  # of the agent, in both directions: (S - S/8) / (S/16) + 1
ACTIONS = ("stay", "left", "right", "up", "down")
MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))  # of each action: places down, places right
REPEAT = 0.7
KICK = 0.5  # radians to either side

# Apart by more than 200 levels in sum, so that a threshold on the colour finds the agent alone.
AGENT_COLOUR = (230, 60, 60)
BALL_COLOUR = (70, 110, 240)
BACKGROUND = (32, 32, 32)


@dataclass(frozen=True)
class Course:
    """What happens in a clip.

    Attributes:
        actions: Numbers into `ACTIONS`, one fewer than frames.
        agent: Its place in the grid in each frame, (row, column), 0..14.
        ball: Its upper left pixel in each frame, (y, x).
    """

    actions: tuple[int, ...]
    agent: tuple[tuple[int, int], ...]
    ball: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GridAgent:
    """Draws the clips of `frames` frames with `side` pixels a side."""

    clips: DrawnClips
    frames: int
    side: int

    def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        size = thing_side(self.side)
        agent, ball = _column(AGENT_COLOUR), ball_stamp(size)
        out = np.empty((len(indices), self.frames, 3, self.side, self.side), dtype=np.uint8)
        out[:] = _column(BACKGROUND)
        for video, course in zip(out, self._courses(indices.tolist()), strict=True):
            for frame, place, (y, x) in zip(video, course.agent, course.ball, strict=True):
                frame[:, y : y + size, x : x + size] = ball
                y, x = (part * step_side(self.side) for part in place)
                frame[:, y : y + size, x : x + size] = agent
        return torch.from_numpy(out)

    def captions(self, indices: Tensor) -> list[str] | None:
        return None

    def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
        """float32 (n, 5 (t - 1)): the one-hot of each step's command, one after the other."""
        numbers = [course.actions for course in self.courses(indices)]
        table = torch.tensor(numbers, dtype=torch.int64).reshape(len(indices), self.frames - 1)
        return torch.nn.functional.one_hot(table, len(ACTIONS)).flatten(1).float()

    def courses(self, indices: Tensor) -> list[Course]:
        """What happens in each clip."""
        return list(self._courses(indices.tolist()))

    def _courses(self, indices: Iterable[int]) -> Iterator[Course]:
        for _, rng in self.clips.generators(indices):
            yield draw_course(rng, self.frames, self.side)


def open_grid_agent(clip: Clip, *, seed: int = 0) -> VideoData:
    """Open the grid agent: 10,000 clips in `train`, 1,024 in `test`, without labels.

    `actions` are float32 (n, 5 (t - 1)), the one-hots of the t - 1 commands in their order: the
    command between frames k and k + 1 stands in columns 5k .. 5k + 4.

    Args:
        clip: Square, with a side that is a multiple of 16; stride 1, policy `first`.
        seed: Gives other clips.

    Raises:
        DataError: for another kind of clip.
    """
    side = drawn_side(clip, "grid-agent", smallest=MULTIPLE, multiple=MULTIPLE)
    source = GridAgent(DrawnClips(seed, COUNTS), clip.frames, side)
    parameters = f"{PROTOCOL}:{clip.frames}:{side}:{seed}"
    return VideoData(
        name="grid-agent",
        fingerprint=hashlib.sha256(parameters.encode()).hexdigest(),
        splits=source.clips.splits(),
        clip=clip,
        channels=3,
        levels=256,
        source=source,
        count=source.clips.count,
    )


def thing_side(side: int) -> int:
    """Pixels of the agent and of the ball in frames of `side` pixels."""
    return side // 8


def step_side(side: int) -> int:
    """Pixels from one place of the grid to the next."""
    return side // 16


def obey(place: tuple[int, int], action: int) -> tuple[int, int]:
    """The agent's place, (row, column), after an action; walls stop it."""
    row, column = (part + move for part, move in zip(place, MOVES[action], strict=True))
    return min(max(row, 0), PLACES - 1), min(max(column, 0), PLACES - 1)


def draw_course(rng: RandomState, frames: int, side: int) -> Course:
    """Draw one clip's course, in the order of the protocol."""
    place = int(rng.randint(PLACES)), int(rng.randint(PLACES))
    flight = Flight.draw(rng, side, side - thing_side(side))
    actions: list[int] = []
    agent, ball = [place], [flight.corner()]
    for _ in range(frames - 1):
        if not actions or rng.uniform(0, 1) >= REPEAT:
            actions.append(int(rng.randint(len(ACTIONS))))
        else:
            actions.append(actions[-1])
        place = obey(place, actions[-1])
        if flight.move():
            flight.velocity = _turned(flight.velocity, float(rng.uniform(-KICK, KICK)))
        agent.append(place)
        ball.append(flight.corner())
    return Course(tuple(actions), tuple(agent), tuple(ball))


def _turned(velocity: tuple[float, float], angle: float) -> tuple[float, float]:
    (vy, vx), sin, cos = velocity, math.sin(angle), math.cos(angle)
    return vy * cos + vx * sin, vx * cos - vy * sin


def ball_stamp(size: int) -> NDArray[np.uint8]:
    """The disc on its background: (3, size, size)."""
    offset = np.linspace((1 - size) / 2, (size - 1) / 2, size)
    alpha = (0.5 - signed_distance("circle", offset[:, None], offset, size / 2)).clip(0, 1)
    blend = _column(BACKGROUND) * (1 - alpha) + _column(BALL_COLOUR) * alpha
    return np.floor(blend + 0.5).astype(np.uint8)


def _column(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.array(colour, dtype=np.uint8)[:, None, None]
