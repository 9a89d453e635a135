"""The moving average of weights that samples are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
