"""The one filter by which sets change the size of their pictures.

Pillow's BILINEAR on uint8: half-pixel centres, triangle filter, widened by the scale when
shrinking (antialiased). torchvision's `Resize` does the same to PIL images, so CIFAR-10 and
STL-10 are prepared as TransGAN's published code prepares them. Feature networks have resizes of
their own; this one belongs to the data.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (n, 3, h, w) to `size` = (rows, columns); the aspect is not kept."""
    rows, columns = size
    if images.shape[-2:] == (rows, columns):
        return images
    out = np.empty((len(images), rows, columns, 3), dtype=np.uint8)
    for i, picture in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        out[i] = np.asarray(resize_picture(Image.fromarray(picture), size))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def resize_picture(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize one RGB picture to `size` = (rows, columns)."""
    rows, columns = size
    if picture.size == (columns, rows):
        return picture
    return picture.resize((columns, rows), Image.Resampling.BILINEAR)
