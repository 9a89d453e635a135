"""What a generator can be asked for. A condition holds one entry for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassLabel:
    """labels: int64 (n,), numbers of classes."""

    labels: Tensor


@dataclass(frozen=True, eq=False)
class FirstFrames:
    """frames: uint8 (n, k, 3, h, w), 0..255: how the clip begins."""

    frames: Tensor


@dataclass(frozen=True, eq=False)
class Actions:
    """actions: float32 (n, d), what is done during the clip."""

    actions: Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """sentences: one for each sample."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Several at once, each of another kind.

    Raises:
        ValueError: for two of one kind.
    """

    several: tuple[ClassLabel | FirstFrames | Actions | Text, ...]

    def __post_init__(self) -> None:
        kinds = [type(one).__name__ for one in self.several]
        twice = {kind for kind in kinds if kinds.count(kind) > 1}
        if twice:
            raise ValueError(f"Conditions hold {', '.join(sorted(twice))} twice; give each once.")


Condition = ClassLabel | FirstFrames | Actions | Text | Conditions
Single = ClassLabel | FirstFrames | Actions | Text
Part = TypeVar("Part", ClassLabel, FirstFrames, Actions, Text)


def combined(parts: Sequence[Single]) -> Condition | None:
    """One condition of several parts; None of none."""
    if len(parts) > 1:
        return Conditions(tuple(parts))
    return parts[0] if parts else None


def parts_of(condition: Condition | None) -> tuple[Single, ...]:
    """What a condition consists of; nothing of None."""
    if condition is None:
        return ()
    return condition.several if isinstance(condition, Conditions) else (condition,)


def part_of(condition: Condition | None, kind: type[Part]) -> Part | None:
    """The part of that kind, if there is one."""
    return next((one for one in parts_of(condition) if isinstance(one, kind)), None)
