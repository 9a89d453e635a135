"""What EfficientNet-Lite0 sees in the frames of a clip, and how it changes from frame to frame.

    row = concat( mean_t f(frame_t),  mean_t |f(frame_t+1) - f(frame_t)| )        2 * 1280 features

f is `lite0`'s pooled layer at 64 x 64. The first half knows what is to be seen, the second how much
it moves; the order of frames enters through nothing else. A proxy that works offline, never FVD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visgen_bench.extractors import lite0
from visgen_bench.extractors.images import check_clips
from visgen_bench.metrics.errors import ClipShapeError

NAME = "efficientnet-lite0-64-clips"
LAYER = "mean+change"
_FRAMES = 1024  # frames whose features are held at once


class Lite0Clips:
    """The extractor of `fvd_lite0_frames` and its two kin."""

    name = NAME
    sha256 = lite0.SHA256
    widths = {LAYER: 2 * lite0.WIDTH}  # noqa: RUF012 - read only

    def __init__(self, device: str = "cpu") -> None:
        self.frames = lite0.Lite0(device)

    def layers(self, clips: Tensor, names: tuple[str, ...] = (LAYER,)) -> dict[str, Tensor]:
        """uint8 (n, t, 3, h, w), 0..255, t >= 2 -> {"mean+change": float32 (n, 2560)}, on the CPU.

        Raises:
            ClipShapeError: for clips of one frame.
        """
        t = check_clips(clips).shape[1]
        if t < 2:
            raise ClipShapeError(
                "clips have 1 frame; a change between frames needs 2. fd_lite0_frames takes single "
                "frames."
            )
        parts = [self._rows(part) for part in clips.split(max(1, _FRAMES // t))]
        found = torch.cat(parts) if parts else torch.empty(0, 2 * lite0.WIDTH)
        return {name: found for name in names}

    def _rows(self, clips: Tensor) -> Tensor:
        features = self.frames.extract(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        change = features.diff(dim=1).abs().mean(dim=1)  # (n, 1280)
        return torch.cat((features.mean(dim=1), change), dim=1)  # (n, 2560)
