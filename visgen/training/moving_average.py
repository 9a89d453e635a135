"""The moving average of weights that samples are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decay_at(images_seen: int, batch: int, half_life: float, warmup: float) -> float:
    """TransGAN's ramp: 0.5^(batch / n), n = min(half_life, warmup * images_seen) (released code).

    Args:
        images_seen: Real images so far, this step's included.
        batch: Real images of one discriminator update.
        half_life: In images, reached at the end of the ramp.
        warmup: Share of the images seen that the half-life may be.
    """
    images = min(half_life, warmup * images_seen)
    return 0.5 ** (batch / max(images, 1e-8))


class MovingAverage:
    """Parameters averaged, buffers (running statistics) copied."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.state = {name: t.detach().clone() for name, t in network.state_dict().items()}
        self._parameters = {name for name, _ in network.named_parameters()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Average = decay * average + (1 - decay) * weights."""
        for name, tensor in self.network.state_dict().items():
            if name in self._parameters:
                self.state[name].lerp_(tensor, 1.0 - decay)
            else:
                self.state[name].copy_(tensor)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back a stored average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
