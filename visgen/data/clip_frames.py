"""What all readers of stored videos share: limits, where a clip starts, and how frames are fitted.

n frames, h rows, w columns. Fitting is VideoGPT's preparation: the shorter side is brought to the
size by bilinear interpolation with half-pixel centres and without antialiasing, the other side is
rounded up, and the centre is cut out. No reader may fit frames in any other way, so that one video
gives the same clip whatever it is stored as.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from visgen import seeds as draws
from visgen.data.dataset import DataError
from visgen.data.videos import Clip

MOST_SIDE = 8192  # pixels of a stored frame's side; a file can declare any number
MOST_CLIP_BYTES = 2**31  # of one clip as it leaves the reader
MOST_FRAMES = 10_000_000  # of one file: 92 hours at 30 frames per second


class BrokenVideo(ValueError):
    """A file that cannot be used as a video; the message is the reason."""


def check_clip(clip: Clip) -> None:
    """Raise DataError for a kind of clip that is larger than a reader gives."""
    needed = clip.frames * 3 * clip.size[0] * clip.size[1]
    if needed > MOST_CLIP_BYTES:
        raise DataError(
            f"{clip} takes {needed} bytes a clip; at most {MOST_CLIP_BYTES} are given. Take fewer "
            "frames or a smaller size."
        )


def check_sides(rows: int, columns: int) -> None:
    """Raise BrokenVideo for frames that are empty or larger than `MOST_SIDE`."""
    if not 1 <= min(rows, columns) <= max(rows, columns) <= MOST_SIDE:
        raise BrokenVideo(
            f"its frames are {columns}x{rows}; sides of 1 to {MOST_SIDE} pixels can be read"
        )


def clip_words(clip: Clip) -> bytes:
    """A kind of clip as it enters a fingerprint."""
    rows, columns = clip.size
    return f"{clip.frames}x{rows}x{columns}/{clip.stride}/{clip.policy}".encode()


def clip_starts(
    clip: Clip, indices: Tensor, lengths: Sequence[int], seeds: Tensor | None
) -> list[tuple[int, int]]:
    """Where each clip starts: a list of (number of the video, its frame).

    indices: int64 (n,), clips; those of one video follow each other. lengths: of the videos.
    seeds: int64 (n,), place the clips of the policy `random`.
    """
    uniform = [0.0] * len(indices)
    if seeds is not None:
        uniform = draws.uniform(seeds, "clip-start", ()).tolist()
    starts: list[tuple[int, int]] = []
    for index, place in zip(indices.tolist(), uniform, strict=True):
        video, number = divmod(index, clip.per_video)
        starts.append((video, clip.start(lengths[video], number, place)))
    return starts


def fit_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring uint8 (n, 3, h, w) to `size` = (rows, columns), the aspect kept and the centre cut out.

    Values are rounded half up. For a square size the enlarged shape is VideoGPT's
    `(R, ceil(w R / h))`, taken in integers: its float product can be one pixel too large.
    """
    rows, columns = size
    height, width = frames.shape[-2:]
    if height * columns <= width * rows:  # the rows are what is short
        scaled = rows, -(-width * rows // height)
    else:
        scaled = -(-height * columns // width), columns
    if scaled != (height, width):
        fine = interpolate(frames.float(), size=scaled, mode="bilinear", align_corners=False)
        frames = (fine + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
    top, left = (scaled[0] - rows) // 2, (scaled[1] - columns) // 2
    return frames[..., top : top + rows, left : left + columns]
