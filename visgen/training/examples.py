"""Where the loop takes its batches from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Examples(Protocol):
    """Examples by place; what a batch of them is, the objective knows.

    A batch can be cut by a slice, for accumulation, and moved by `.to(device)`.
    """

    @property
    def fingerprint(self) -> str:
        """Of content and order."""
        ...

    @property
    def count(self) -> int: ...

    def take(self, places: Tensor, seeds: Tensor) -> Any:
        """A batch of the examples at `places`, int64 (n,) in 0 .. count - 1.

        seeds: int64 (n,), for whatever is drawn while reading.
        """
        ...


class ImageSet(Protocol):
    """What is asked of a set of pictures."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def splits(self) -> Mapping[str, Tensor]: ...

    def images(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor: ...


class Pictures:
    """Pictures of one split at one size; a batch is uint8 (n, 3, h, w)."""

    def __init__(self, data: ImageSet, split: str, size: tuple[int, int]) -> None:
        self.data, self.size = data, size
        self.indices = data.splits[split]
        self.fingerprint = f"{data.fingerprint}:{split}:{size[0]}x{size[1]}"

    @property
    def count(self) -> int:
        """Pictures of the split."""
        return len(self.indices)

    def take(self, places: Tensor, seeds: Tensor) -> Tensor:
        """Pictures at places; nothing is drawn."""
        return self.data.images(self.indices[places], self.size)


class VideoSet(Protocol):
    """What is asked of a set of clips."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def splits(self) -> Mapping[str, Tensor]: ...

    def videos(self, indices: Tensor, seeds: Tensor | None = None) -> Tensor: ...


class Clips:
    """Clips of one split; a batch is uint8 (n, t, 3, h, w)."""

    def __init__(self, data: VideoSet, split: str) -> None:
        self.data, self.indices = data, data.splits[split]
        self.fingerprint = f"{data.fingerprint}:{split}"

    @property
    def count(self) -> int:
        """Clips of the split."""
        return len(self.indices)

    def take(self, places: Tensor, seeds: Tensor) -> Tensor:
        """Clips at places; where each begins is drawn by its seed if the set's policy says so."""
        return self.data.videos(self.indices[places], seeds)
