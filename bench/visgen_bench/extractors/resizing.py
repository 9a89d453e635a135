"""Resizing as TensorFlow 1 did it, which torch has no option for."""

from __future__ import annotations

import torch
from torch import Tensor


def tf1_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`tf.image.resize_bilinear` with its defaults: no half-pixel centres, no antialias.

    Output row i looks at input row i * h / size, in float32 as TensorFlow does it, between the row
    above and the one below (the last row where there is none below).

    Args:
        images: Float (n, c, h, w).
        size: Rows and columns of the result.

    Returns:
        (n, c, *size) in the dtype of `images`.
    """
    rows_low, rows_high, rows_part = _places(images.shape[-2], size[0], images)
    low = images[..., rows_low, :]
    images = low + (images[..., rows_high, :] - low) * rows_part[:, None]
    columns_low, columns_high, columns_part = _places(images.shape[-1], size[1], images)
    left = images[..., columns_low]
    return left + (images[..., columns_high] - left) * columns_part


def _places(given: int, wanted: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(wanted, dtype=torch.float32, device=like.device) * (given / wanted)
    low = at.floor().long().clamp(max=given - 1)
    return low, (low + 1).clamp(max=given - 1), (at - low).to(like.dtype)
