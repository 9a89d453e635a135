"""Tiny videos, encoded when a test asks for them."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

Writer = Callable[..., Path]


def moving_square(number: int, rows: int, columns: int) -> np.ndarray:
    """A smooth background that drifts, and a square that crosses it: uint8 (rows, columns, 3)."""
    y, x = np.mgrid[:rows, :columns]
    picture = np.stack((3 * x + 2 * number, 4 * y + number, x + y), axis=-1) % 256
    left = 2 * number % max(1, columns - 12)
    picture[rows // 4 : rows // 2, left : left + 12] = (255, (255 - 4 * number) % 256, number % 256)
    return picture.astype(np.uint8)


def _write(
    path: Path,
    codec: str = "mpeg4",
    *,
    frames: int | Sequence[np.ndarray] = 30,
    size: tuple[int, int] = (48, 64),
    rate: int = 25,
    gop: int = 10,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    milliseconds: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    rotation: float = 0.0,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(frames, int):
        frames = [moving_square(i, *size) for i in range(frames)]
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.thread_count = 1
        stream.codec_context.gop_size = gop
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def write_video() -> Writer:
    """Encodes frames, given or drawn, to a file: `write_video(path, codec, frames=30, ...)`."""
    return _write
