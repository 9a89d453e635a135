"""3-D convolutions whose output has the input's size over the stride, by zeros around the input.

A kernel k with stride s wants k - s zeros along an axis; the odd one comes first, as VideoGPT has
it: (2, 1) for k 4, s 1. Sizes must divide by the stride.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Strides = tuple[int, int, int]


def zeros_around(kernel: int, strides: Strides) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    return [((kernel - s + 1) // 2, (kernel - s) // 2) for s in strides]


class SameConv3d(nn.Conv3d):
    """(b, c, t, h, w) -> (b, c', t / s_t, h / s_h, w / s_w)."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, strides: Strides = (1, 1, 1),
        *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(channels_in, channels, kernel, stride=strides, bias=bias)
        around = zeros_around(kernel, strides)
        self.around = [n for pair in reversed(around) for n in pair]  # F.pad starts at the end
        if all(before == after for before, after in around):
            self.padding, self.around = (around[0][0], around[1][0], around[2][0]), []

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.around) if self.around else input)


class SameConvTranspose3d(nn.ConvTranspose3d):
    """(b, c, t, h, w) -> (b, c', t s_t, h s_h, w s_w).

    The zeros lie around the input here too, and k - 1 places of the full result are cut off on
    every side.
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, strides: Strides = (1, 1, 1)
    ) -> None:
        around = zeros_around(kernel, strides)
        cut = (kernel - 1, kernel - 1, kernel - 1)
        self.around = [n for pair in reversed(around) for n in pair]
        if all(before == after for before, after in around):
            # A zero in front of the input only shifts the result by one stride.
            t, h, w = (s * before for (before, _), s in zip(around, strides, strict=True))
            cut, self.around = (kernel - 1 - t, kernel - 1 - h, kernel - 1 - w), []
        super().__init__(channels_in, channels, kernel, stride=strides, padding=cut)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(F.pad(input, self.around) if self.around else input, output_size)
