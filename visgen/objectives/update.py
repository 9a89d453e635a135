"""One kind of optimiser step: which part it changes, how often, and what it minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from visgen.seeds import Draws

Loss = Callable[[Tensor | None, Draws], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Update:
    """An optimiser step of one part of a model.

    Attributes:
        name: How its figures are called.
        part: Key of `model.networks()`; only this part's parameters change.
        repeat: Steps of it in one training step.
        batch: Samples of one step, over all micro-batches.
        accumulate: Micro-batches that a batch is cut into.
        learning_rate: Adam's.
        reads_data: Whether `loss` gets real samples (uint8) or None.
        loss: (batch, draws) -> named scalars; the one called "loss" is differentiated.
    """

    name: str
    part: str
    repeat: int
    batch: int
    accumulate: int
    learning_rate: float
    reads_data: bool
    loss: Loss
