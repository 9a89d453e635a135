"""The border every extractor guards: uint8 (n, 3, h, w) or clips (n, t, 3, h, w), 0..255."""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_bench.metrics.errors import ClipShapeError, ImageRangeError


def check_images(images: Tensor) -> Tensor:
    """Return `images` if they are uint8 (n, 3, h, w); say what else they look like if not.

    Raises:
        ImageRangeError: on floats (with the range they seem to have, or NaN), on another integer
            type, on a missing batch axis, and where channels come last.
    """
    _check_values(images, "images")
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise ImageRangeError(f"images have shape {shape}; a single one needs images[None].")
    if images.ndim != 4 or (shape[1] != 3 and shape[-1] != 3):
        raise ImageRangeError(
            f"images have shape {shape}; give (n, 3, h, w), grey repeated 3 times."
        )
    if shape[1] != 3:
        raise ImageRangeError(
            f"images have shape {shape}: channels last; give (n, 3, h, w) with .permute(0, 3, 1, "
            "2)."
        )
    if 0 in shape[2:]:
        raise ImageRangeError(f"images have shape {shape}; height and width must be at least 1.")
    return images


def check_clips(clips: Tensor, frames: int | None = None) -> Tensor:
    """Return `clips` if they are uint8 (n, t, 3, h, w); say what else they look like if not.

    Args:
        clips: Of any length, unless `frames` is given.
        frames: How many frames each must have.

    Raises:
        ImageRangeError: on floats (with the range they seem to have, or NaN) and on another integer
            type.
        ClipShapeError: on a missing axis, where channels come last or before time, on an empty
            clip, and on another number of frames.
    """
    _check_values(clips, "clips")
    shape = tuple(clips.shape)
    if clips.ndim == 4:
        raise ClipShapeError(
            f"clips have shape {shape}; a single one needs clips[None], pictures that are clips of "
            "one frame need clips[:, None]."
        )
    if clips.ndim != 5 or 3 not in (shape[1], shape[2], shape[-1]):
        raise ClipShapeError(
            f"clips have shape {shape}; give (n, t, 3, h, w), grey repeated 3 times."
        )
    if shape[2] != 3:
        place, order = ("last", "0, 1, 4, 2, 3") if shape[-1] == 3 else ("first", "0, 2, 1, 3, 4")
        raise ClipShapeError(
            f"clips have shape {shape}: channels {place}; give (n, t, 3, h, w) with "
            f".permute({order})."
        )
    if shape[1] == 0 or 0 in shape[3:]:
        raise ClipShapeError(
            f"clips have shape {shape}; frames, height and width must be at least 1."
        )
    if frames is not None and shape[1] != frames:
        raise ClipShapeError(
            f"clips have {shape[1]} frames, {frames} were expected; cut them to clips[:, :{frames}]"
            " or open the data for clips of this length."
        )
    return clips


def _check_values(values: Tensor, what: str) -> None:
    if values.is_floating_point():
        raise ImageRangeError(
            f"{what} are {values.dtype}{_range_of(values)}; give uint8 in 0..255."
        )
    if values.dtype != torch.uint8:
        raise ImageRangeError(
            f"{what} are {values.dtype}; give uint8 in 0..255 (.clamp(0, 255).to(torch.uint8))."
        )


def _range_of(images: Tensor) -> str:
    if images.numel() == 0:
        return ""
    if not bool(images.isfinite().all()):
        return " and hold NaN or infinity"
    low, high = float(images.min()), float(images.max())
    if low < 0 and low >= -1.001 and high <= 1.001:
        return " in [-1, 1]: ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"
    if low >= 0 and high <= 1.001:
        return " in [0, 1]: (x * 255).round().clamp(0, 255).to(torch.uint8)"
    return f" from {low:g} to {high:g}: x.round().clamp(0, 255).to(torch.uint8)"
