"""Splits of a data set by name: its own, and the two halves that a floor is taken from.

The floor of a folder is the distance of its one half from its other half. The halves are a seeded
permutation's, so that a folder sorted by class gives two of the same kind.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen.data.videos import VideoData

HALVES = ("half-a", "half-b")


def indices(data: "Data | VideoData", split: str) -> Tensor:
    """Indices of a split: int64 (n,). `half-a` and `half-b` are equally large and disjoint.

    Raises:
        DataError: if there is no such split; lists those there are.
    """
    if split not in HALVES or split in data.splits:
        return data.split(split)
    from visgen.seeds import permutation

    order = permutation(0, "halves", len(data))
    size = len(order) // 2
    return order[:size] if split == "half-a" else order[size : 2 * size].to(torch.int64)
