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


@dataclass(frozen=True)
class Listed:
    """The first `count` keys of blocks of `size` keys, one block after the other."""

    blocks: tuple[int, ...]
    size: int
    count: int

    @property
    def run(self) -> slice | None:
        """The same as a run of keys, where it is one."""
        if not self.blocks:
            return slice(0, 0)
        if self.blocks[-1] - self.blocks[0] != len(self.blocks) - 1:
            return None
        start = self.blocks[0] * self.size
        return slice(start, start + self.count)

    @property
    def keys(self) -> Tensor:
        """Their positions, int64."""
        blocks = torch.tensor(self.blocks, dtype=torch.int64, device="cpu")
        within = torch.arange(self.size, device="cpu")
        return (blocks[:, None] * self.size + within).view(-1)[: self.count]


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

    def seen(self, sample: int, position: int) -> Listed:
        """What a query at a position of a sample sees; the blocks are in increasing order.

        Raises:
            ValueError: if a list holds a block twice, or one that no key can be in.
        """
        size, row = self.block, sample if self.by_sample else position // self.block
        listed = sorted(self.columns[self._starts[row] : self._starts[row + 1]].tolist())
        if listed and (listed[0] < 0 or len(set(listed)) < len(listed)):
            raise ValueError(
                f"the list of {'sample' if self.by_sample else 'query block'} {row} is {listed}; "
                "list each block once, counted from 0."
            )
        blocks = tuple(block for block in listed if block * size <= position)
        if not blocks:
            return Listed((), size, 0)
        return Listed(
            blocks, size, len(blocks) * size - max(0, blocks[-1] * size + size - 1 - position)
        )


def visible_keys(lists: KeyLists | None, sample: int, position: int) -> slice | Tensor:
    """Keys (as a run or as int64 positions) that a query at `position` of a sample sees."""
    if lists is None or position < 0:
        return slice(0, max(0, position + 1))
    listed = lists.seen(sample, position)
    run = listed.run
    return listed.keys if run is None else run
