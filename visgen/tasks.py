"""What a model of each task can be asked for.

A model implements the contracts that its paper has. Pictures at every border are uint8 (n, 3, h,
w), 0..255.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class ImageGenerator(Protocol):
    """Draws pictures."""

    image_size: tuple[int, int]

    def generate(self, seeds: Tensor, condition: Any = None, sampling: Any = None) -> Tensor:
        """Pictures that depend on their seed alone, never on batch size, rank or world size.

        Args:
            seeds: int64 (n,).
            condition: A condition of the model, or None; ValueError where the model takes none.
            sampling: The model's own frozen dataclass of sampling choices, or None for its
                defaults.

        Returns:
            uint8 (n, 3, h, w), 0..255.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """Has named parts that are counted, trained and stored apart."""

    def networks(self) -> dict[str, nn.Module]:
        """Every trainable part: `generator`, `discriminator`, ..."""
        ...


class ModelConfig(Protocol):
    """A preset of the catalogue: a frozen dataclass with the paper's names."""

    @property
    def family(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    def build(self, attention: str | None = None) -> Any:
        """The untrained model; `attention` names an implementation of visgen_kernels."""
        ...


def refuse_condition(model: str, condition: object) -> None:
    """Raise ValueError if an unconditional model is given a condition."""
    if condition is not None:
        raise ValueError(f"{model} is unconditional, got condition={condition!r}; leave it None.")
