"""Clips for people to look at: a sheet of frames, and a film that plays them side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from visgen_bench.cells.grid import BACKGROUND, GAP, enlarged, save_picture

ROWS = 8  # clips on a sheet of frames
COLUMNS = 16  # frames of each at most, evenly spread
SIDE = 4  # a film plays SIDE x SIDE clips
COUNT = SIDE * SIDE
FRAME_MS = 125


def frames_sheet(clips: Sequence[Tensor]) -> Tensor:
    """Frames from left to right, a clip a row: uint8 (3, h, w).

    Args:
        clips: Each uint8 (t, 3, h, w), all of one shape; the first `ROWS` are shown.
    """
    if not clips:
        raise ValueError("a sheet needs at least one clip.")
    shown = [clip[_spread(len(clip), COLUMNS)] for clip in clips[:ROWS]]
    return _tiled([[enlarged(frame) for frame in clip] for clip in shown])


def film(clips: Sequence[Tensor]) -> Tensor:
    """Clips side by side, frame by frame: uint8 (t, 3, h, w).

    Args:
        clips: Each uint8 (t, 3, h, w), all of one shape; the first `COUNT` are shown.
    """
    if not clips:
        raise ValueError("a film needs at least one clip.")
    shown = clips[:COUNT]
    rows = [shown[i : i + SIDE] for i in range(0, len(shown), SIDE)]
    return torch.stack(
        [
            _tiled([[enlarged(clip[time]) for clip in row] for row in rows])
            for time in range(len(shown[0]))
        ]
    )


def save_clips(folder: Path, name: str, clips: Sequence[Tensor]) -> None:
    """Write `NAME.png`, the sheet, and `NAME.webp`, the film; each whole or not at all."""
    save_picture(folder / f"{name}.png", frames_sheet(clips), format="png")
    options = {"format": "webp", "duration": FRAME_MS, "loop": 0, "quality": 90}
    save_picture(folder / f"{name}.webp", *film(clips), **options)


def _spread(length: int, most: int) -> Tensor:
    """Places of at most so many frames, the first and the last included."""
    return torch.linspace(0, length - 1, min(length, most)).round().long()


def _tiled(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    height, width = rows[0][0].shape[1:]
    across = max(map(len, rows))
    size = (3, len(rows) * (height + GAP) + GAP, across * (width + GAP) + GAP)
    page = torch.full(size, BACKGROUND, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            page[:, top : top + height, left : left + width] = picture
    return page
