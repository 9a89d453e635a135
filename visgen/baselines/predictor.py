"""What the convolutional predictors share: first frames in, the whole clip out, nothing drawn.

A predictor is deterministic: seeds only say how many clips there are, and one beginning has one
future. n clips, t frames of which k are given, c channels (1: grey), h rows, w columns.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from visgen.conditions import Conditions, FirstFrames


class PredictorConfig(Protocol):
    """What `Predictor` asks of its config."""

    family: ClassVar[str]

    @property
    def clip_size(self) -> tuple[int, int, int]: ...

    @property
    def context(self) -> int: ...

    @property
    def channels(self) -> int: ...


def first_frames(condition: object, count: int, model: str) -> Tensor:
    """The frames of a condition for `count` clips: uint8 (count, k, 3, h, w).

    Raises:
        ValueError: for no condition, another kind, or another number of clips.
    """
    if isinstance(condition, Conditions) and len(condition.several) == 1:
        condition = condition.several[0]
    if not isinstance(condition, FirstFrames):
        raise ValueError(
            f"{model} goes on from first frames, got condition={type(condition).__name__}; give "
            "FirstFrames alone."
        )
    frames = condition.frames
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(
            f"first frames are uint8 (n, k, 3, h, w), 0..255; got {frames.dtype} of shape "
            f"{tuple(frames.shape)}."
        )
    if len(frames) != count:
        raise ValueError(f"{count} clips were asked for, but {len(frames)} have first frames.")
    return frames


class Predictor(nn.Module):
    """A network that continues clips: (n, k, c, h, w) -> (n, t - k, c, h, w), in [0, 1]."""

    deterministic: ClassVar[bool] = True

    def __init__(self, config: PredictorConfig, network: nn.Module) -> None:
        super().__init__()
        self.config, self.clip_size = config, config.clip_size
        self.predictor = network

    def networks(self) -> dict[str, nn.Module]:
        """The one part."""
        return {"predictor": self.predictor}

    def frames(self, clips: Tensor) -> Tensor:
        """uint8 (n, t, 3, h, w) -> float32 (n, t, c, h, w) in [0, 1]; grey is the mean of RGB."""
        unit = clips.float() / 255
        return unit.mean(2, keepdim=True) if self.config.channels == 1 else unit

    def predict(self, context: Tensor) -> Tensor:
        """The frames after float (n, k, c, h, w) in [0, 1]: (n, t - k, c, h, w).

        Raises:
            ValueError: for another shape.
        """
        shape = (self.config.context, self.config.channels, *self.clip_size[1:])
        if tuple(context.shape[1:]) != shape:
            raise ValueError(
                f"{self.config.family} predicts from (n, k, c, h, w) = (n, "
                f"{', '.join(map(str, shape))}), got {tuple(context.shape)}."
            )
        return self.predictor(context)

    @torch.no_grad()
    def generate(self, seeds: Tensor, condition: object = None, sampling: None = None) -> Tensor:
        """Clips uint8 (n, t, 3, h, w) that begin with the given frames; seeds are only counted.

        Raises:
            ValueError: without FirstFrames, or for frames of another number or size.
        """
        given = first_frames(condition, len(seeds), self.config.family)
        shape = (self.config.context, 3, *self.clip_size[1:])
        if tuple(given.shape[1:]) != shape:
            raise ValueError(
                f"{self.config.family} goes on from {shape[0]} frames of {shape[2]}x{shape[3]} "
                f"pixels, got first frames of shape {tuple(given.shape)}."
            )
        given = given.to(next(self.predictor.parameters()).device)
        future = self.predict(self.frames(given)).float().clamp(0, 1)
        pixels = (future * 255 + 0.5).floor().to(torch.uint8).expand(-1, -1, 3, -1, -1)
        return torch.cat([given, pixels], 1)


def check_clip(frames: int, context: int, channels: int, side: int, by: int) -> None:
    """Check a config's numbers; `side` is divided by `by`.

    Raises:
        ValueError: with what is possible.
    """
    if not 0 < context < frames:
        raise ValueError(f"context={context}; of {frames} frames, 1 to {frames - 1} can be given.")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; 1 (grey) or 3 (RGB).")
    if side < by or side % by:
        raise ValueError(f"size={side} is not a multiple of {by}; use {max(by, side - side % by)}.")
