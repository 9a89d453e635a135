"""ConvLSTM encoder-forecaster (Shi et al. 2015, arXiv:1506.04214): equation 3, figure 3.

Three cells read the given frames; three more take over their states and forecast. The first of
those has no input, and a 1 x 1 convolution makes a frame of the states of all three. Frames are cut
into patches of 4 x 4 pixels, which become channels (section 4.1).

b batch, k given frames, c channels, d width of a cell. The peepholes (W_ci, W_cf, W_co) are one
number a channel. Differs from the paper: squared error instead of cross-entropy is minimised
(`objectives/prediction.py`); the sigmoid at the end is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.baselines.predictor import Predictor, check_clip

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ConvLSTMConfig:
    """The paper's, for Moving MNIST: 7,585,296 parameters."""

    frames: int = 20
    context: int = 10  # of the frames
    size: int = 64  # rows and columns
    channels: int = 1  # 1: the mean of RGB in, grey out; 3: RGB
    patch: int = 4
    widths: tuple[int, ...] = (128, 64, 64)
    kernel: int = 5
    conditions: ClassVar[tuple[str, ...]] = ("frames",)
    requires: ClassVar[tuple[str, ...]] = ("frames",)  # it draws nothing without
    objectives: ClassVar[tuple[str, ...]] = ("prediction",)
    family: ClassVar[str] = "conv-lstm"
    task: ClassVar[str] = "video-generation"

    def __post_init__(self) -> None:
        check_clip(self.frames, self.context, self.channels, self.size, self.patch)
        if not self.kernel % 2:
            raise ValueError(f"kernel={self.kernel} has no middle; use {self.kernel + 1}.")

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return self.frames, self.size, self.size

    def build(self, attention: str | None = None) -> Predictor:
        """The model, from torch's generator, in eval mode; there is no attention in it."""
        del attention
        return Predictor(self, ConvLSTM(self)).eval()


class Cell(nn.Module):
    """One ConvLSTM cell (equation 3)."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(channels + width, 4 * width, kernel, padding=kernel // 2)
        self.peepholes = nn.Parameter(torch.zeros(3, width, 1, 1))

    def forward(self, x: Tensor | None, state: State) -> State:
        """Input (b, c, h, w), or None for a cell without one, and state -> new state."""
        hidden, memory = state
        gates = self.gates(hidden if x is None else torch.cat([x, hidden], 1))
        enter, forget, candidate, out = gates.chunk(4, 1)
        enter = torch.sigmoid(enter + self.peepholes[0] * memory)
        forget = torch.sigmoid(forget + self.peepholes[1] * memory)
        memory = forget * memory + enter * torch.tanh(candidate)
        out = torch.sigmoid(out + self.peepholes[2] * memory)
        return out * torch.tanh(memory), memory


class ConvLSTM(nn.Module):
    """Encoder and forecaster."""

    def __init__(self, config: ConvLSTMConfig) -> None:
        super().__init__()
        self.patch, self.horizon = config.patch, config.frames - config.context
        self.widths = config.widths
        pixels = config.channels * config.patch**2
        below = config.widths[:-1]
        self.encoder = nn.ModuleList(
            Cell(c, d, config.kernel) for c, d in zip((pixels, *below), config.widths, strict=True)
        )
        self.forecaster = nn.ModuleList(
            Cell(c, d, config.kernel) for c, d in zip((0, *below), config.widths, strict=True)
        )
        self.out = nn.Conv2d(sum(config.widths), pixels, 1)

    def forward(self, context: Tensor) -> Tensor:
        """(b, k, c, h, w) -> (b, t - k, c, h, w), in [0, 1]."""
        x = F.pixel_unshuffle(context, self.patch)  # (b, k, c p p, h / p, w / p)
        batch, rows, columns = x.shape[0], x.shape[-2], x.shape[-1]
        zeros = [x.new_zeros(batch, width, rows, columns) for width in self.widths]
        states: list[State] = [(zero, zero) for zero in zeros]
        for frame in x.unbind(1):
            states = _run(self.encoder, frame, states)
        forecast = []
        for _ in range(self.horizon):
            states = _run(self.forecaster, None, states)
            forecast.append(self.out(torch.cat([hidden for hidden, _ in states], 1)))
        return torch.sigmoid(F.pixel_shuffle(torch.stack(forecast, 1), self.patch))


def _run(cells: nn.ModuleList, x: Tensor | None, states: list[State]) -> list[State]:
    """One step of all cells, each fed by the one below."""
    after = []
    for cell, state in zip(cells, states, strict=True):
        after.append(cell(x, state))
        x = after[-1][0]
    return after


PRESETS = {
    "conv-lstm-moving-mnist": ConvLSTMConfig(),
    "conv-lstm-tiny": ConvLSTMConfig(
        frames=16, context=4, size=32, channels=3, widths=(32, 24, 16), kernel=3
    ),
}
