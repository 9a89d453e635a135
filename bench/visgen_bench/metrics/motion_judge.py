"""What clips show, read from their pixels: the moving shapes' words, the grid agent's obedience.

Nothing is learned. A colour's coverage a of a pixel is linear in its value, because the ground is
grey and grey has no part in a centred colour c - mean(c):

    a = <pixel - mean(pixel), c - mean(c)> / |c - mean(c)|^2

so that area and centroid are sums of a, and a blur, which moves coverage about, keeps them. Of the
moving shapes (`visgen/data/moving_shapes.py`) are read

    colour  the nearest of six to the sum of centred pixels, by angle
    size    the radius from the area, which the outline's formula ties to it; large from 8.5 S/64 on
    shape   of the three, painted with that area at that centroid, sharp and blurred, the one that
            differs least
    motion  the step of the centroid from frame to frame is a complex number v_t; the w that makes
            |sum v_t exp(-i w t)| largest is the angle it turns by in a frame. Below 1.5/36 radians
            (half of the slowest orbit's) the path is straight and goes where the sum points; else
            it circles, clockwise if w > 0 (y points down). Steps longer than 8 S/64 are not
            counted: the shape left and came in again on the other side.

Higher is better for every share of clips that are right. n clips, t frames, S pixels a side; clips
are uint8 (n, t, 3, S, S), 0..255. Known bias: something else in a clip's colour than the three
shapes is called by the one it differs least from, so generated clips get the benefit of the doubt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgen.data.drawn import REFERENCE_SIDE
from visgen.data.grid_agent import (
    ACTIONS,
    AGENT_COLOUR,
    MOVES,
    PLACES,
    step_side,
    thing_side,
)
from visgen.data.moving_shapes import (
    COLOURS,
    LARGE_FROM,
    MOTIONS,
    ORBITS,
    RADII,
    SHAPES,
    SIZES,
    SPEEDS,
    SQUARE_HALF_SIDE,
    TRIANGLE_HEIGHT,
)

FEWEST_FRAMES = 4  # three steps: with two, a turn and an uneven step look alike
NOWHERE = -1
_CHUNK = 32  # clips that are looked at together: 50 MB of coverage at 64 pixels
_VISIBLE = 0.5  # coverage of a pixel that counts as the thing's own
_LONGEST_STEP = 8.0  # at 64 pixels; the data's are 4 at most, and coming in again takes 37
_SHORTEST_STEP = 0.5  # at 64 pixels; the data's are 1.5 at least
_COHERENT = 0.5  # of |sum v_t exp(-i w t)| to sum |v_t|; 1 for every path of the data
_TURNS = SPEEDS[0] / ORBITS[1] / 2  # radians a frame
_ANGLES = 401  # from -1 to 1 radian a frame; the data's are 0.4 at most
# A small square that is blurred looks like a circle that is not; so each is painted sharp and
# blurred by 3 x 3 pixels, with a binomial's weights and a box's.
_BLURS = (0.0, 1 / 4, 1 / 3)
_SENTENCE = re.compile(r"a (\w+) (\w+) (\w+) (moving|circling) (\w+)")
_DIRECTIONS = ("right", "down", "left", "up")  # by quarters of a turn, y down


@dataclass(frozen=True, eq=False)
class ShapesSeen:
    """Numbers into `COLOURS`, `SIZES`, `SHAPES` and `MOTIONS`, int64 (n,) each; -1: not seen.

    Motion is -1 also where the shape stands still or jumps about without a direction.
    """

    colour: Tensor
    size: Tensor
    shape: Tensor
    motion: Tensor


@dataclass(frozen=True, eq=False)
class _Thing:
    """Where one colour is in each frame.

    Attributes:
        coverage: float32 (n, t, S, S).
        area: Pixels, float32 (n, t).
        y, x: Centroid, float32 (n, t); meaningless where not seen.
        seen: bool (n, t).
    """

    coverage: Tensor
    area: Tensor
    y: Tensor
    x: Tensor
    seen: Tensor


def read_shapes(clips: Tensor) -> ShapesSeen:
    """What each clip shows; a shape is seen if it is there in half of the frames.

    Args:
        clips: uint8 (n, t, 3, S, S), 0..255, with t of 4 or more.

    Raises:
        ValueError: for other clips.
    """
    _check(clips)
    if clips.shape[1] < FEWEST_FRAMES:
        raise ValueError(
            f"clips have {clips.shape[1]} frames; a motion is read from {FEWEST_FRAMES} or more."
        )
    parts = [_read_shapes(part) for part in clips.split(_CHUNK)]
    colour, size, shape, motion = (
        torch.cat([getattr(part, name) for part in parts] or [_none(clips)])
        for name in ("colour", "size", "shape", "motion")
    )
    return ShapesSeen(colour, size, shape, motion)


def read_captions(sentences: Sequence[str]) -> ShapesSeen:
    """What sentences say, as `read_shapes` says what clips show.

    Raises:
        ValueError: for a sentence that is none of the moving shapes'.
    """
    rows = [_numbers(sentence) for sentence in sentences]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
    return ShapesSeen(*table.unbind(1))


def class_obeyed(clips: Tensor, labels: Tensor) -> Tensor:
    """Whether each clip shows motion and shape of its class, 3 motion + shape: bool (n,).

    Args:
        clips: As for `read_shapes`.
        labels: int64 (n,), 0..17.

    Raises:
        ValueError: for other clips or labels.
    """
    last = len(SHAPES) * len(MOTIONS) - 1
    if labels.dtype != torch.int64 or labels.shape != (len(clips),):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; {len(clips)} clips want "
            f"int64 of shape ({len(clips)},)."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; a class of the moving "
            f"shapes is 3 motion + shape, 0 to {last}."
        )
    seen, labels = read_shapes(clips), labels.to(clips.device)
    shape, motion = labels % len(SHAPES), labels // len(SHAPES)
    return (seen.shape == shape) & (seen.motion == motion)


def attributes_obeyed(clips: Tensor, sentences: Sequence[str]) -> dict[str, Tensor]:
    """Whether each word of its sentence holds for a clip.

    Args:
        clips: As for `read_shapes`.
        sentences: One a clip.

    Returns:
        bool (n,) under `colour`, `size`, `shape`, `motion`, and `caption` for all of them. Their
        means are shares.

    Raises:
        ValueError: for other clips or sentences.
    """
    if len(sentences) != len(clips):
        raise ValueError(f"there are {len(clips)} clips and {len(sentences)} sentences; give each.")
    said, seen = read_captions(sentences), read_shapes(clips)
    right = {
        name: getattr(seen, name) == getattr(said, name).to(clips.device)
        for name in ("colour", "size", "shape", "motion")
    }
    return {**right, "caption": torch.stack(list(right.values())).all(0)}


def caption_obeyed(clips: Tensor, sentences: Sequence[str]) -> Tensor:
    """Whether every word of its sentence holds for a clip: bool (n,); `attributes_obeyed`."""
    return attributes_obeyed(clips, sentences)["caption"]


def action_accuracy(clips: Tensor, actions: Tensor) -> Tensor:
    """Whether the grid agent did in each step what it was told; a wall is obeyed by staying.

    The command is applied to the nearest place of the grid (`visgen/data/grid_agent.py`), and the
    centroid has to move by that, to less than half a place in both directions.

    Args:
        clips: uint8 (n, t, 3, S, S), 0..255, with S a multiple of 16.
        actions: float (n, 5 (t - 1)), the one-hots of the commands in their order.

    Returns:
        float32 (n, t - 1): 1 obeyed, 0 not, NaN where the agent is not seen before or after.

    Raises:
        ValueError: for other clips or actions.
    """
    _check(clips)
    count, frames, side = len(clips), clips.shape[1], clips.shape[-1]
    if side % 16:
        raise ValueError(f"clips have {side} pixels a side; the grid wants a multiple of 16.")
    wanted = (count, len(ACTIONS) * (frames - 1))
    if actions.shape != wanted:
        raise ValueError(
            f"actions have the shape {tuple(actions.shape)}; {frames} frames have "
            f"{frames - 1} commands, one-hots of {len(ACTIONS)}: {wanted}."
        )
    commands = actions.to(clips.device).view(count, frames - 1, len(ACTIONS)).argmax(-1)
    parts = [
        _obeyed(some, told)
        for some, told in zip(clips.split(_CHUNK), commands.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else clips.new_empty((0, frames - 1), dtype=torch.float32)


def _check(clips: Tensor) -> None:
    is_square = clips.ndim == 5 and clips.shape[2] == 3 and clips.shape[3] == clips.shape[4]
    if clips.dtype != torch.uint8 or not is_square:
        raise ValueError(
            f"clips are {clips.dtype} of shape {tuple(clips.shape)}; the judges read uint8 "
            "(n, t, 3, S, S), 0..255."
        )


def _none(clips: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=clips.device)


def _numbers(sentence: str) -> tuple[int, int, int, int]:
    """(colour, size, shape, motion)."""
    found = _SENTENCE.fullmatch(sentence)
    if found:
        size, colour, shape, verb, motion = found.groups()
        circles = motion.endswith("clockwise")
        known = (colour in COLOURS, size in SIZES, shape in SHAPES, motion in MOTIONS)
        if all(known) and circles == (verb == "circling"):
            colours = list(COLOURS)
            numbers = SIZES.index(size), SHAPES.index(shape), MOTIONS.index(motion)
            return colours.index(colour), *numbers
    raise ValueError(
        f'"{sentence}" is no sentence of the moving shapes; one is "a large cyan square circling '
        f'clockwise" (sizes: {", ".join(SIZES)}; colours: {", ".join(COLOURS)}; shapes: '
        f"{', '.join(SHAPES)}; motions: {', '.join(MOTIONS)})."
    )


def _centred(colours: Tensor) -> Tensor:
    """(..., 3) without their grey."""
    return colours - colours.mean(-1, keepdim=True)


def _coverage(centred: Tensor, colours: Tensor) -> Tensor:
    """Of pixels without their grey (n, t, 3, S, S) by colours (n, 3), 0..255: (n, t, S, S)."""
    wanted = _centred(colours)
    wanted = wanted / wanted.square().sum(-1, keepdim=True)
    return torch.einsum("ntchw,nc->nthw", centred, wanted)


def _thing(coverage: Tensor, least: float) -> _Thing:
    """Find the thing in each frame; it is seen if so many pixels of it are visible.

    Pixels around the centroid of the visible ones count, with whatever coverage they have: noise
    has mean 0 there, which it has not once it is cut off.
    """
    visible = (coverage > _VISIBLE).float()
    count, y, x = _moments(visible)
    # 1.67 radii of a disc of the same area reach the farthest corner of the three shapes.
    reach = 1.75 * (count / math.pi).sqrt() + 2
    rows = torch.arange(coverage.shape[-1], device=coverage.device)
    down = (rows - y[..., None])[..., :, None]
    right = (rows - x[..., None])[..., None, :]
    near = down.square() + right.square() <= reach.square()[..., None, None]
    area, y, x = _moments(coverage * near)
    return _Thing(coverage, area, y, x, (count >= least) & (area > 0))


def _moments(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and centroid (y, x) of (n, t, S, S): (n, t) each."""
    place = torch.arange(weights.shape[-1], device=weights.device, dtype=weights.dtype)
    total = weights.sum((-2, -1))
    safe = torch.where(total > 0, total, 1.0)
    return total, (weights.sum(-1) @ place) / safe, (weights.sum(-2) @ place) / safe


def _read_shapes(clips: Tensor) -> ShapesSeen:
    side, scale = clips.shape[-1], clips.shape[-1] / REFERENCE_SIDE
    pixels = clips.float()
    centred = pixels - pixels.mean(2, keepdim=True)
    table = torch.tensor(list(COLOURS.values()), device=clips.device, dtype=torch.float32)
    colour = _colour(centred, table)
    least = 0.25 * _area(SHAPES.index("triangle"), torch.tensor(RADII[0] * scale)).item()
    thing = _thing(_coverage(centred, table[colour]), least)
    seen = 2 * thing.seen.sum(1) >= clips.shape[1]
    radii = _radii(thing)
    shape = _shape(thing, radii)
    radius = radii.gather(1, shape[:, None])[:, 0]
    size = (radius >= LARGE_FROM * scale).long()
    motion = _motion(thing, side)
    colour, size, shape, motion = (
        torch.where(seen, numbers, NOWHERE) for numbers in (colour, size, shape, motion)
    )
    return ShapesSeen(colour, size, shape, motion)


def _colour(centred: Tensor, table: Tensor) -> Tensor:
    """The nearest of the colours (k, 3): int64 (n,); strong pixels say which it is."""
    strength = centred.square().sum(2).sqrt()  # (n, t, S, S)
    weights = (strength - 0.5 * strength.amax((1, 2, 3), keepdim=True)).clamp(min=0)
    total = torch.einsum("nthw,ntchw->nc", weights, centred)
    return (total @ torch.nn.functional.normalize(_centred(table), dim=-1).T).argmax(1)


def _area(shape: int, radius: Tensor) -> Tensor:
    """Sum of the coverage of a shape: its area, averaged over outlines -0.5 to 0.5 away."""
    if shape == 0:
        return math.pi * (radius.square() + 1 / 12)
    if shape == 1:
        return 4 * ((SQUARE_HALF_SIDE * radius).square() + 1 / 12)
    return 2 * ((TRIANGLE_HEIGHT * radius).square() + _WIDENS**2 / 12)


# A triangle d outside the triangle of h is that of h + 1.6186 d: base 0.8 h + d, apex
# -1.2 h - d / 0.447, and 2 h + 3.237 d of height in all, as wide as high.
_WIDENS = (1 + 1 / 0.447) / 2


def _radii(thing: _Thing) -> Tensor:
    """The radius that each shape would have with the area that is seen: (n, 3), by the mean."""
    count = thing.seen.sum(1).clamp(min=1)
    area = torch.where(thing.seen, thing.area, 0.0).sum(1) / count
    square = (area / 4 - 1 / 12).clamp(min=0).sqrt() / SQUARE_HALF_SIDE
    triangle = (area / 2 - _WIDENS**2 / 12).clamp(min=0).sqrt() / TRIANGLE_HEIGHT
    return torch.stack([(area / math.pi - 1 / 12).clamp(min=0).sqrt(), square, triangle], 1)


def _shape(thing: _Thing, radii: Tensor) -> Tensor:
    """The shape that, painted over all frames, is nearest in squared difference: int64 (n,)."""
    rows = torch.arange(thing.coverage.shape[-1], device=radii.device)
    y = rows[:, None] - thing.y[..., None, None]  # (n, t, S, 1)
    x = rows - thing.x[..., None, None]  # (n, t, 1, S)
    differences = []
    for shape, radius in enumerate(radii[:, :, None, None, None].unbind(1)):
        painted = (0.5 - _outline(shape, y, x, radius)).clamp(0, 1)
        for weight in _BLURS:
            difference = (_blurred(painted, weight) - thing.coverage).square().sum((-2, -1))
            differences.append(torch.where(thing.seen, difference, 0.0).sum(1))
    return torch.stack(differences, 1).argmin(1) // len(_BLURS)


def _blurred(pictures: Tensor, weight: float) -> Tensor:
    """(weight, 1 - 2 weight, weight) along rows and columns of (..., S, S), zeros around it."""
    if not weight:
        return pictures
    for axis in (-1, -2):
        length = pictures.shape[axis]
        around = torch.zeros_like(pictures)
        around.narrow(axis, 1, length - 1).add_(pictures.narrow(axis, 0, length - 1))
        around.narrow(axis, 0, length - 1).add_(pictures.narrow(axis, 1, length - 1))
        pictures = torch.lerp(pictures, around / 2, 2 * weight)
    return pictures


def _outline(shape: int, y: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """`moving_shapes.signed_distance` for tensors; y and x from the centroid."""
    if shape == 0:
        return (y.square() + x.square()).sqrt() - radius
    if shape == 1:
        return torch.maximum(y.abs(), x.abs()) - SQUARE_HALF_SIDE * radius
    h = TRIANGLE_HEIGHT * radius
    y = y + 2 / 15 * h  # its centroid lies 0.8 h - 2 h / 3 below its centre
    return torch.maximum(y - 0.8 * h, 0.894 * x.abs() - 0.447 * (y + 1.2 * h))


def _motion(thing: _Thing, side: int) -> Tensor:
    """Numbers into `MOTIONS`, int64 (n,)."""
    scale = side / REFERENCE_SIDE
    steps = torch.complex(thing.x.diff(dim=1), thing.y.diff(dim=1))  # (n, t - 1)
    lengths = steps.abs()
    counted = thing.seen[:, 1:] & thing.seen[:, :-1] & (lengths <= _LONGEST_STEP * scale)
    steps, lengths = torch.where(counted, steps, 0), torch.where(counted, lengths, 0.0)
    turns = torch.linspace(-1, 1, _ANGLES, device=lengths.device)
    times = torch.arange(steps.shape[1], device=lengths.device)
    waves = torch.polar(torch.ones_like(turns)[:, None], -turns[:, None] * times)  # (w, t - 1)
    best, place = (steps @ waves.T).abs().max(1)
    turn = turns[place]
    quarter = (steps.sum(1).angle() / (math.pi / 2)).round().long() % 4
    straight = torch.tensor([MOTIONS.index(name) for name in _DIRECTIONS], device=turn.device)
    clockwise, counterclockwise = MOTIONS.index("clockwise"), MOTIONS.index("counterclockwise")
    circling = torch.where(turn > 0, clockwise, counterclockwise)
    motion = torch.where(turn.abs() < _TURNS, straight[quarter], circling)
    count = counted.sum(1)
    moves = (best >= _SHORTEST_STEP * scale * count) & (best >= _COHERENT * lengths.sum(1))
    return torch.where(moves & (count > 1), motion, NOWHERE)


def _obeyed(clips: Tensor, commands: Tensor) -> Tensor:
    side = clips.shape[-1]
    pixels = clips.float()
    colour = pixels.new_tensor(AGENT_COLOUR).expand(len(clips), 3)
    size = thing_side(side)
    coverage = _coverage(pixels - pixels.mean(2, keepdim=True), colour)
    # The ball's colour has a negative part of the agent's, which would draw the centroid away.
    thing = _thing(coverage.clamp(min=0), 0.25 * size * size)
    corner = torch.stack([thing.y, thing.x], -1) - (size - 1) / 2
    place = corner / step_side(side)  # (n, t, 2), in places of the grid
    before = place[:, :-1].round().clamp(0, PLACES - 1)
    moves = place.new_tensor(MOVES)[commands]  # (n, t - 1, 2)
    expected = (before + moves).clamp(0, PLACES - 1) - before
    right = ((place.diff(dim=1) - expected).abs() < 0.5).all(-1).float()
    seen = thing.seen[:, 1:] & thing.seen[:, :-1]
    return torch.where(seen, right, math.nan)
