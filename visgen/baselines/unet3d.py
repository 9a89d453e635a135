"""3-D U-Net predictor: this project's baseline, after Cicek et al. (arXiv:1606.06650).

The clip is first continued by its last given frame; a further channel tells what is continued: 0 in
given frames, then rising to 1 at the last. Four levels of two 3 x 3 x 3 convolutions see all of it
and correct the continuation. In time they are causal: zeros stand before the first frame, so no
frame depends on a later one. Rows and columns are halved from level to level, time never.

b batch, k given frames of t, c channels. Differs from that paper: LayerNorm over channels, not
BatchNorm (no statistics over time), no pooling of time, and a last convolution that starts at zero:
untrained, the network copies the last frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.baselines.predictor import Predictor, check_clip
from visgen.models.frame_encoder import ChannelNorm


@dataclass(frozen=True, kw_only=True)
class UNet3dConfig:
    """For Moving MNIST."""

    frames: int = 20
    context: int = 10  # of the frames
    size: int = 64  # rows and columns
    channels: int = 1  # 1: the mean of RGB in, grey out; 3: RGB
    widths: tuple[int, ...] = (32, 64, 128, 256)  # of the levels
    conditions: ClassVar[tuple[str, ...]] = ("frames",)
    requires: ClassVar[tuple[str, ...]] = ("frames",)  # it draws nothing without
    objectives: ClassVar[tuple[str, ...]] = ("prediction",)
    family: ClassVar[str] = "unet3d"
    task: ClassVar[str] = "video-generation"

    def __post_init__(self) -> None:
        check_clip(self.frames, self.context, self.channels, self.size, 2 ** (len(self.widths) - 1))

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return self.frames, self.size, self.size

    def build(self, attention: str | None = None) -> Predictor:
        """The model, from torch's generator, in eval mode; there is no attention in it."""
        del attention
        return Predictor(self, UNet3d(self)).eval()


class CausalConv3d(nn.Conv3d):
    """3 x 3 x 3; two frames of zeros before the first, none after the last."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 3, padding=(0, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 0, 0, 0, 2, 0)))


class Level(nn.Module):
    """Two convolutions, each with a norm and a ReLU after it."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = CausalConv3d(channels_in, channels), ChannelNorm(channels)
        self.conv2, self.norm2 = CausalConv3d(channels, channels), ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, t, h, w) -> (b, c, t, h, w)."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet3d(nn.Module):
    """Down, up, and a correction of the copied frame."""

    def __init__(self, config: UNet3dConfig) -> None:
        super().__init__()
        self.frames, widths = config.frames, config.widths
        self.down = nn.ModuleList(
            Level(c, d) for c, d in zip((config.channels + 1, *widths[:-1]), widths, strict=True)
        )
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[
            ::-1
        ]  # (below, here), deepest first
        self.rise = nn.ModuleList(
            nn.ConvTranspose3d(c, d, (1, 2, 2), stride=(1, 2, 2)) for c, d in pairs
        )
        self.up = nn.ModuleList(Level(2 * d, d) for _, d in pairs)
        self.out = nn.Conv3d(widths[0], config.channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, context: Tensor) -> Tensor:
        """(b, k, c, h, w) -> (b, t - k, c, h, w); values may lie a little outside [0, 1]."""
        given, last = context.shape[1], context[:, -1:]
        copied = last.expand(-1, self.frames - given, -1, -1, -1)
        x = torch.cat([context, copied], 1).transpose(1, 2)  # (b, c, t, h, w)
        times = torch.arange(self.frames, device=x.device, dtype=x.dtype)
        ahead = ((times - given + 1) / (self.frames - given)).clamp(min=0)
        ahead = ahead[:, None, None].expand(len(x), 1, -1, *x.shape[-2:])
        correction = self.correction(torch.cat([x, ahead], 1)).transpose(1, 2)
        return copied + correction[:, given:]

    def correction(self, x: Tensor) -> Tensor:
        """(b, c + 1, t, h, w) -> (b, c, t, h, w), in which no frame depends on a later one."""
        levels = []
        for number, level in enumerate(self.down):
            x = level(F.max_pool3d(x, (1, 2, 2)) if number else x)
            levels.append(x)
        for rise, level, across in zip(self.rise, self.up, levels[-2::-1], strict=True):
            x = level(torch.cat([across, rise(x)], 1))
        return self.out(x)


PRESETS = {
    "unet3d-moving-mnist": UNet3dConfig(),
    "unet3d-tiny": UNet3dConfig(frames=16, context=4, size=32, channels=3, widths=(8, 16, 32, 48)),
}
