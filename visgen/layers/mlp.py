"""The transformer's two-layer perceptron."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear to `ratio` times the width, exact GELU, Linear back; both with bias."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.widen = nn.Linear(width, ratio * width)
        self.narrow = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.narrow(F.gelu(self.widen(x)))
