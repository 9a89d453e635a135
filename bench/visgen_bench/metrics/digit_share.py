"""What the digit judge says of samples: which classes appear, and how many are clearly digits.

    digit_classes    number of classes that at least 2 % of the samples are assigned to; 10 at best
    digit_confident  share of samples whose top probability exceeds 0.9

Neither proves anything alone: pixel noise finds 9 classes. They stand beside fd_lite0 and its
reference rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import TooFewSamples
from visgen_bench.metrics.moments import float64_features


@dataclass
class DigitCounts:
    """Counts over samples.

    Attributes:
        classes: int64 (10,), samples assigned to each class.
        confident: Samples whose top probability exceeds `above`.
        above: The bound, strict.
    """

    classes: NDArray[np.int64]
    confident: int
    above: float

    @classmethod
    def empty(cls, above: float = 0.9, classes: int = 10) -> Self:
        """Nothing seen yet."""
        return cls(np.zeros(classes, np.int64), 0, above)

    def update(self, probabilities: Tensor) -> None:
        """Add rows (b, 10) of class probabilities."""
        values = float64_features(probabilities, "probabilities")
        self.classes += np.bincount(values.argmax(axis=1), minlength=len(self.classes))
        self.confident += int((values.max(axis=1) > self.above).sum())

    def merge(self, other: DigitCounts) -> None:
        """Add what another rank saw."""
        self.classes += other.classes
        self.confident += other.confident

    def found(self, min_share: float = 0.02) -> int:
        """Classes with at least `min_share` of the samples."""
        return int((self.classes >= min_share * self._total()).sum())

    def confident_share(self) -> float:
        """Share of confident samples."""
        return self.confident / self._total()

    def _total(self) -> int:
        total = int(self.classes.sum())
        if total == 0:
            raise TooFewSamples("no sample was judged yet.")
        return total
