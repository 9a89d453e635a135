"""DiffAugment (arXiv:2006.10738) with the settings of TransGAN's released code.

Every operation is differentiable, twice, in the image: gradients reach the generator through it,
and a gradient penalty is taken through it. Images are float (b, 3, h, w) in [-1, 1]; outside the
image is 0, a middle grey. All randomness comes from the batch's `Draws`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visgen.names import hint
from visgen.seeds import Draws

RECTANGLE_CHANCE = 0.3  # of a whole batch, not of a sample


def color(images: Tensor, draws: Draws) -> Tensor:
    """Brightness by U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5); each per sample."""
    brightness, saturation, contrast = draws.uniform("color", (3, 1, 1, 1)).to(images).unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + 2.0 * saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def _shift_matrix(shift: Tensor, side: int) -> Tensor:
    """One-hot rows: (m @ x)[i] = x[i + shift], 0 outside. Shift (b,) -> (b, side, side)."""
    place = torch.arange(side, device=shift.device)
    return (place[None, :] == place[:, None] + shift[:, None, None]).float()


def translation(images: Tensor, draws: Draws, ratio: float = 0.2) -> Tensor:
    """Shift by whole pixels, up to `ratio` of the side each way, per sample.

    A shift is a product with a one-hot matrix: exact, and differentiable as often as one likes
    without a scatter.
    """
    height, width = images.shape[-2:]
    most_y, most_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    down = draws.integers("down", -most_y, most_y + 1)
    right = draws.integers("right", -most_x, most_x + 1)
    rows = _shift_matrix(down, height).to(images)[:, None]  # (b, 1, h, h)
    columns = _shift_matrix(right, width).to(images)[:, None]
    return rows @ images @ columns.mT


def _erase(images: Tensor, top: Tensor, left: Tensor, rows: int, columns: int) -> Tensor:
    """Zero a rectangle a sample, cut off at the image's edge; top, left (b,)."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) - top[:, None]  # (b, h)
    x = torch.arange(width, device=images.device) - left[:, None]
    inside = ((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None, :]
    return images * (~inside)[:, None]


def _centred(draws: Draws, name: str, side: int, size: int) -> Tensor:
    """First row of a rectangle whose centre lies anywhere in the image: int64 (b,)."""
    return draws.integers(name, 0, side + 1 - size % 2) - size // 2


def cutout(images: Tensor, draws: Draws, ratio: float = 0.5) -> Tensor:
    """With probability 0.3 a batch: zero a square of `ratio` of the side, placed per sample."""
    if draws.batch_uniform("coin") >= RECTANGLE_CHANCE:
        return images
    height, width = images.shape[-2:]
    rows, columns = int(height * ratio + 0.5), int(width * ratio + 0.5)
    top = _centred(draws, "top", height, rows)
    left = _centred(draws, "left", width, columns)
    return _erase(images, top, left, rows, columns)


def stl_erase_ratio(images: Tensor, draws: Draws) -> Tensor:
    """With probability 0.3 a batch: zero a rectangle, one size a batch, placed per sample.

    Its sides are integers in [20, side / 2 + 20].
    """
    if draws.batch_uniform("coin") >= RECTANGLE_CHANCE:
        return images
    height, width = images.shape[-2:]
    rows = 20 + int(draws.batch_uniform("rows") * (height // 2 + 1))
    columns = 20 + int(draws.batch_uniform("columns") * (width // 2 + 1))
    top = _centred(draws, "top", height, rows)
    left = _centred(draws, "left", width, columns)
    return _erase(images, top, left, rows, columns)


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "stl_erase_ratio": stl_erase_ratio,
}
_WITH_RATIO = {"translation", "cutout"}


def _parse(token: str) -> tuple[str, dict[str, float]]:
    name, _, ratio = token.partition(":")
    if name not in _OPERATIONS:
        raise ValueError(
            f'unknown DiffAugment token "{token}"{hint(name, _OPERATIONS)} '
            f"(known: {', '.join(_OPERATIONS)})."
        )
    if not ratio:
        return name, {}
    if name not in _WITH_RATIO:
        raise ValueError(f'DiffAugment token "{token}": {name} takes no ratio.')
    try:
        value = float(ratio)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1.0:
        raise ValueError(f'DiffAugment token "{token}": the ratio must lie between 0 and 1.')
    return name, {"ratio": value}


def check_policy(policy: Sequence[str]) -> None:
    """Raise ValueError, with the nearest match, if a token of `policy` is unknown."""
    for token in policy:
        _parse(token)


def diffaugment(images: Tensor, policy: Sequence[str], draws: Draws) -> Tensor:
    """Apply the policy's tokens in order; `translation:0.125` sets an operation's ratio.

    Args:
        images: Float (b, 3, h, w) in [-1, 1].
        policy: Tokens of `color`, `translation`, `cutout`, `stl_erase_ratio`.
        draws: The batch's draws; every call needs names of its own.

    Raises:
        ValueError: for an unknown token.
    """
    for place, token in enumerate(policy):
        name, options = _parse(token)
        images = _OPERATIONS[name](images, draws.fork(f"{place}-{name}"), **options)
    return images
