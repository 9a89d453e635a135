"""One kind of optimiser step: which part it changes, how often, and what it minimises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from visgen.seeds import Draws

Loss = Callable[[Any, Draws], dict[str, Tensor]]
Schedule = Callable[[int], float]
Optimizer = Literal["adam", "muon"]


def constant(step: int) -> float:
    """The learning rate as it is."""
    return 1.0


def cosine(steps: int) -> Schedule:
    """From 1 at step 0 to 0 after so many steps, as half a cosine."""
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


@dataclass(frozen=True, kw_only=True)
class Update:
    """An optimiser step of one part of a model.

    Attributes:
        name: How its figures are called.
        part: Key of `model.networks()`; only this part's parameters change.
        repeat: Steps of it in one training step.
        batch: Samples of one step, over all micro-batches.
        accumulate: Micro-batches that a batch is cut into.
        learning_rate: The optimiser's.
        reads_data: Whether `loss` gets a batch of examples or None.
        loss: (batch, draws) -> named scalars; the one called "loss" is differentiated.
        schedule: What the learning rate is multiplied by, from how often the update was run.
        optimizer: Of all its parameters; see `visgen.training.muon` for Muon.
    """

    name: str
    part: str
    repeat: int
    batch: int
    accumulate: int
    learning_rate: float
    reads_data: bool
    loss: Loss
    schedule: Schedule = constant
    optimizer: Optimizer = "adam"
