"""What the training loop asks of a recipe, whatever is trained."""

from __future__ import annotations

from typing import Any, Protocol

from visgen.objectives.update import Update


class Recipe(Protocol):
    """A frozen dataclass: how one part of a model, or two in turn, are trained."""

    @property
    def steps(self) -> int:
        """Training steps, each of all updates."""
        ...

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest norm of a part's gradient; None: not clipped."""
        ...

    @property
    def kept(self) -> str:
        """The part whose moving average is the result."""
        ...

    def updates(self, model: Any) -> tuple[Update, ...]:
        """The updates of one training step, in order."""
        ...

    def decay(self, step: int) -> float:
        """The moving average's decay after so many steps; 0: the weights themselves."""
        ...


def check_counts(*, steps: int, batch: int, accumulate: int) -> None:
    """Raise ValueError unless all are 1 or more and the batch can be cut into equal parts."""
    for name, value in (("steps", steps), ("batch", batch), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1.")
    if batch % accumulate:
        raise ValueError(f"a batch of {batch} cannot be cut into {accumulate} equal parts.")
