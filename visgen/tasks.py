"""What a model of each task can be asked for.

A model implements the contracts that its paper has. Pictures at every border are uint8 (n, 3, h,
w), clips uint8 (n, t, 3, h, w), 0..255.
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
class VideoGenerator(Protocol):
    """Draws clips. Its config names the conditions it takes, and those it draws nothing without."""

    clip_size: tuple[int, int, int]  # frames, rows, columns

    def generate(self, seeds: Tensor, condition: Any = None, sampling: Any = None) -> Tensor:
        """Clips that depend on their seed and condition alone.

        Args:
            seeds: int64 (n,).
            condition: A condition of `visgen.conditions` with n entries, or None.
            sampling: The model's own frozen dataclass of sampling choices, or None for its
                defaults.

        Returns:
            uint8 (n, t, 3, h, w), 0..255.

        Raises:
            ValueError: for a condition that the model does not take, or lacks.
        """
        ...


@runtime_checkable
class CodeLikelihood(Protocol):
    """Gives the codes of clips a likelihood; never one of pixels."""

    def nats_per_code(self, clips: Tensor, condition: Any = None) -> Tensor:
        """Mean negative log-likelihood of a code: float (n,) for clips uint8 (n, t, 3, h, w)."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Makes codes of clips, and clips of codes."""

    @property
    def code_count(self) -> int:
        """Codes that there are."""
        ...

    def encode(self, clips: Tensor) -> Tensor:
        """Clips uint8 (n, t, 3, h, w) -> codes int64 (n, ...)."""
        ...

    def reconstruct(self, clips: Tensor) -> Tensor:
        """What the codes keep of clips, of the same shape."""
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
