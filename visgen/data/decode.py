"""From one picture file to one RGB picture of 8 bits, the same way for every format.

- EXIF orientation is applied, so a rotated photograph stands upright.
- Transparency (alpha channel, transparent palette entry or key colour) is composited over white.
- 16-bit grey v becomes round(v / 257), so that 65535 becomes 255.
- CMYK follows Pillow's conversion; embedded colour profiles are not applied.
- Of an animation the first frame is taken.
- Only the formats below are tried, whatever the name says: other decoders of Pillow start programs.
- A picture above Pillow's limit against decompression bombs is refused, not warned about.
"""

import hashlib
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The decoders are imported here, so that Pillow does not go and find them while threads decode.
from PIL import BmpImagePlugin as _bmp  # noqa: F401
from PIL import GifImagePlugin as _gif  # noqa: F401
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import JpegImagePlugin as _jpeg  # noqa: F401
from PIL import MpoImagePlugin as _mpo  # noqa: F401  (opened through JPEG)
from PIL import PngImagePlugin as _png  # noqa: F401
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
BACKGROUND = (255, 255, 255, 255)
_GREY = ("1", "L", "LA", "La")


class BrokenPicture(ValueError):
    """A file that cannot be used as a picture; the message is the reason."""


@dataclass(frozen=True)
class Picture:
    """A decoded file: RGB `pixels`, whether it was stored as grey, and the sha256 of its bytes."""

    pixels: Image.Image
    grey: bool
    digest: bytes


def decode(path: Path) -> Picture:
    """Read and decode one file; raises BrokenPicture with the reason.

    Call it inside `bombs_refused()`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BrokenPicture("not a regular file")
        if status.st_size == 0:
            raise BrokenPicture("the file is empty")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            with Image.open(file, formats=FORMATS) as picture:
                grey = picture.mode in _GREY or picture.mode.startswith("I;16")
                return Picture(to_rgb(picture), grey, digest)
    except BrokenPicture:
        raise
    except UnidentifiedImageError as error:
        raise BrokenPicture("not a PNG, JPEG, WebP, BMP, GIF or TIFF picture") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise BrokenPicture(f"{type(error).__name__}: {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the upright RGB picture; raises BrokenPicture for samples without a stated range."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        return _from_16_bits(upright).convert("RGB")
    if upright.mode in ("I", "F"):
        raise BrokenPicture(
            "its 32-bit samples have no stated range; store it with 8 or 16 bits a channel"
        )
    if upright.has_transparency_data:
        behind = Image.new("RGBA", upright.size, BACKGROUND)
        upright = Image.alpha_composite(behind, upright.convert("RGBA"))
    return upright.convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    # Pillow's own conversion drops the low byte, which darkens every value by up to one level.
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Make Pillow's warning about decompression bombs an error, and its other warnings silent.

    Enter it before threads start: Python's warning filters belong to the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
