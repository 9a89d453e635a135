"""Which keys of a cache a query sees: all up to its own, or those of listed blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeyBlocks:
    """Key blocks listed for every sample, for its current position.

    offsets (b + 1,) and columns (listed,) are int32 in CSR form: sample b sees key blocks
    columns[offsets[b] : offsets[b + 1]], each listed once, and in them keys up to its position. The
    content may change from step to step, in place, without a word to the host.
    """

    offsets: Tensor
    columns: Tensor
    block: int = 32

    def __post_init__(self) -> None:
        if self.block < 1 or self.offsets.ndim != 1 or self.columns.ndim != 1:
            raise ValueError(
                "KeyBlocks: offsets (b + 1,) and columns (listed,) have one axis and block is at "
                f"least 1; got {tuple(self.offsets.shape)}, {tuple(self.columns.shape)}, "
                f"block {self.block}."
            )


@dataclass(frozen=True, eq=False)
class KeyLists:
    """Lists of key blocks as the operator has them: of samples, or of the positions' own blocks."""

    offsets: Tensor
    columns: Tensor
    block: int
    by_sample: bool

    @property
    def average_keys(self) -> int:
        """Keys of a list, on average, rounded up."""
        lists = max(1, self.offsets.shape[0] - 1)
        return -(-self.columns.shape[0] * self.block // lists)

    def to(self, device: str | torch.device) -> KeyLists:
        """The same on a device."""
        offsets, columns = self.offsets.to(device), self.columns.to(device)
        return KeyLists(offsets, columns, self.block, self.by_sample)

    @cached_property
    def _starts(self) -> list[int]:
        return self.offsets.tolist()

    def blocks(self, sample: int, position: int) -> list[int]:
        """The blocks that a query at a position sees, in increasing order.

        Raises:
            ValueError: if a list holds a block twice, or one that no key can be in.
        """
        row = sample if self.by_sample else position // self.block
        start, stop = self._starts[row], self._starts[row + 1]
        listed = sorted(self.columns[start:stop].tolist())
        if listed and (listed[0] < 0 or len(set(listed)) < len(listed)):
            raise ValueError(
                f"the list of {'sample' if self.by_sample else 'query block'} {row} is {listed}; "
                "list each block once, counted from 0."
            )
        return [column for column in listed if column * self.block <= position]


def visible_keys(lists: KeyLists | None, sample: int, position: int) -> slice | Tensor:
    """Keys (as a run or as int64 positions) that a query at `position` of a sample sees."""
    if position < 0:
        return slice(0, 0)
    if lists is None:
        return slice(0, position + 1)
    blocks, size = lists.blocks(sample, position), lists.block
    if not blocks:
        return slice(0, 0)
    end = min(position + 1, blocks[-1] * size + size)
    if blocks[-1] - blocks[0] == len(blocks) - 1:
        return slice(blocks[0] * size, end)
    keys = torch.tensor(blocks)[:, None] * size + torch.arange(size)
    return keys.view(-1)[: len(blocks) * size - (blocks[-1] * size + size - end)]
