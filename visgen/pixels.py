"""The one place where pictures change between bytes and a network's range."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], any shape.

    Raises:
        ValueError: if `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; pictures at a border are uint8 0..255.")
    return images.float() / 127.5 - 1.0


def to_bytes(images: Tensor) -> Tensor:
    """Float in [-1, 1] (clamped) -> uint8 0..255, rounded half up, any shape."""
    return (images.float().clamp(-1.0, 1.0) * 127.5 + 128.0).floor().clamp(0, 255).to(torch.uint8)


def to_unit(clips: Tensor) -> Tensor:
    """Clips uint8 (n, t, 3, h, w) -> float32 (n, 3, t, h, w) in [-0.5, 0.5].

    Raises:
        ValueError: if they are not uint8 of five axes.
    """
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[2] != 3:
        raise ValueError(
            f"clips are uint8 (n, t, 3, h, w), 0..255; got {clips.dtype} {tuple(clips.shape)}."
        )
    return clips.transpose(1, 2).float() / 255 - 0.5


def from_unit(clips: Tensor) -> Tensor:
    """Float (n, 3, t, h, w) -> uint8 (n, t, 3, h, w): clamped to [-0.5, 0.5], rounded half up."""
    return to_bytes(2 * clips.transpose(1, 2))
