"""The border every extractor guards: uint8 (n, 3, h, w), 0..255."""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_bench.metrics.errors import ImageRangeError


def check_images(images: Tensor) -> Tensor:
    """Return `images` if they are uint8 (n, 3, h, w); say what else they look like if not.

    Raises:
        ImageRangeError: on floats (with the range they seem to have, or NaN), on another integer
            type, on a missing batch axis, and where channels come last.
    """
    if images.is_floating_point():
        raise ImageRangeError(
            f"images are {images.dtype}{_range_of(images)}; give uint8 in 0..255."
        )
    if images.dtype != torch.uint8:
        raise ImageRangeError(
            f"images are {images.dtype}; give uint8 in 0..255 (.clamp(0, 255).to(torch.uint8))."
        )
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
