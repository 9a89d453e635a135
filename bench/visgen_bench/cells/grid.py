"""A sheet of pictures for people to look at."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 8
COUNT = SIDE * SIDE
LEAST_SIDE = 48  # pixels; smaller pictures are enlarged by whole factors, pixel by pixel
GAP = 2
BACKGROUND = 255


def sheet(images: Sequence[Tensor]) -> Tensor:
    """Up to 64 pictures as one, in rows of 8: uint8 (3, h, w).

    Args:
        images: Each uint8 (3, h, w). Pictures of other sizes than the first one are put into its
            cell, cut at the right and the bottom.
    """
    if not images:
        raise ValueError("a sheet needs at least one picture.")
    large = [enlarged(image) for image in images[:COUNT]]
    height, width = large[0].shape[1:]
    rows = -(-len(large) // SIDE)
    page = torch.full(
        (3, rows * (height + GAP) + GAP, SIDE * (width + GAP) + GAP), BACKGROUND, dtype=torch.uint8
    )
    for place, image in enumerate(large):
        top = GAP + place // SIDE * (height + GAP)
        left = GAP + place % SIDE * (width + GAP)
        part = image[:, :height, :width]
        page[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return page


def enlarged(image: Tensor) -> Tensor:
    """A small picture by a whole factor, pixel by pixel: uint8 (3, h, w)."""
    factor = max(1, -(-LEAST_SIDE // max(image.shape[1:])))
    return F.interpolate(image[None].float(), scale_factor=factor, mode="nearest")[0].byte()


def save_sheet(path: Path, images: Sequence[Tensor]) -> None:
    """Write the sheet of `images` as PNG, whole or not at all."""
    save_picture(path, sheet(images), format="png")


def save_picture(path: Path, *pages: Tensor, **options: Any) -> None:
    """Write one picture, or a film of several, whole or not at all.

    Args:
        path: The file.
        pages: uint8 (3, h, w) each.
        options: Of Pillow's `save`.
    """
    from PIL import Image

    first, *rest = (
        Image.fromarray(np.asarray(page.permute(1, 2, 0).contiguous().numpy())) for page in pages
    )
    if rest:
        options |= {"save_all": True, "append_images": rest}
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        first.save(temporary, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
