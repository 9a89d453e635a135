"""The 3-D ResNet-34 that VideoGPT looks at its first frames with (arXiv:2104.10157, section 3.2).

Residual blocks of He et al. (2015, arXiv:1512.03385) with 3 x 3 x 3 convolutions, LayerNorm over
the channels instead of BatchNorm, a second ReLU before the sum, and no classifier: the output is a
map at a quarter of the frames' size. b batch, n frames, r their rows and columns, c channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visgen.layers.same_padding import SameConv3d, Strides

DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256)
_STRIDES: tuple[Strides, ...] = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 1, 1))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (b, c, t, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class FrameBlock(nn.Module):
    """Two convolutions beside a shortcut, which is projected in the first block of a group."""

    def __init__(self, channels_in: int, channels: int, strides: Strides, *, project: bool) -> None:
        super().__init__()
        self.shortcut = self.shortcut_norm = None
        if project:
            self.shortcut = SameConv3d(channels_in, channels, 1, strides, bias=False)
            self.shortcut_norm = ChannelNorm(channels)
        self.conv1 = SameConv3d(channels_in, channels, 3, strides, bias=False)
        self.norm1 = ChannelNorm(channels)
        self.conv2 = SameConv3d(channels, channels, 3, bias=False)
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, n, r, r) -> (b, c, n, r / s, r / s)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y)


class FrameEncoder(nn.Module):
    """Frames -> features that every block of the prior attends to."""

    def __init__(
        self,
        channels: int = 240,
        depths: tuple[int, int, int, int] = DEPTHS,
        widths: tuple[int, int, int] = WIDTHS,
    ) -> None:
        """`channels` of the last group, `widths` of those before it; the stem is as the first."""
        super().__init__()
        self.stem = SameConv3d(3, widths[0], 3, bias=False)
        self.stem_norm = ChannelNorm(widths[0])
        channels_of = (widths[0], *widths, channels)
        blocks = []
        for group, (depth, strides) in enumerate(zip(depths, _STRIDES, strict=True)):
            before, width = channels_of[group : group + 2]
            blocks.append(FrameBlock(before, width, strides, project=True))
            blocks += [FrameBlock(width, width, (1, 1, 1), project=False) for _ in range(1, depth)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, frames: Tensor) -> Tensor:
        """(b, 3, n, r, r) in [-0.5, 0.5] -> (b, n, r / 4, r / 4, c)."""
        x = F.relu(self.stem_norm(self.stem(frames)))
        return self.blocks(x).movedim(1, -1)
