"""Inception Score (arXiv:1606.03498): how sharp and how varied the predicted classes are.

    IS = exp( mean_x KL( p(y|x) || p(y) ) )        per split; mean over splits

Higher is better; 1 at least, the number of classes at most. Published: 50,000 samples in 10
splits, from the 2015 Inception's logits without their bias. Split edges are i*N//S, sums run in
float64 from log_softmax.

Its state is one row per split (sum of p, sum of p log p, count), so it streams, merges and
resumes; which split a sample belongs to follows from its index, through the fixed shuffle that
torch-fidelity uses (a folder sorted by class would otherwise give splits of one class).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import FeatureShapeError, StateError, TooFewSamples
from visgen_bench.metrics.moments import Array, float64_features

_SHUFFLE_SEED = 2020


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (ddof 0) over splits; the latter is no confidence interval."""

    value: float
    split_std: float


def split_of(samples: int, splits: int = 10, shuffle: bool = True) -> NDArray[np.int64]:
    """The split that each sample index belongs to: int64 (samples,)."""
    position = np.arange(samples)
    if shuffle:
        order = np.random.RandomState(_SHUFFLE_SEED).permutation(samples)
        position = np.empty(samples, dtype=np.int64)
        position[order] = np.arange(samples)
    edges = [i * samples // splits for i in range(1, splits)]
    return np.searchsorted(np.array(edges), position, side="right")


@dataclass
class ScoreAccumulator:
    """Sums over the samples seen so far, per split.

    Attributes:
        count: int64 (splits,).
        probability: float64 (splits, classes), sum of p(y|x).
        negentropy: float64 (splits,), sum of sum_y p log p.
    """

    count: NDArray[np.int64]
    probability: Array
    negentropy: Array

    @classmethod
    def empty(cls, classes: int, splits: int = 10) -> Self:
        """Nothing seen yet."""
        return cls(np.zeros(splits, np.int64), np.zeros((splits, classes)), np.zeros(splits))

    def update(self, logits: Tensor | NDArray[Any], split: NDArray[np.int64]) -> None:
        """Add rows: logits (b, classes) of any float dtype, the split of each row (b,)."""
        values = float64_features(logits, "logits")
        if values.shape[1] != self.probability.shape[1]:
            raise FeatureShapeError(
                f"logits have {values.shape[1]} classes, the sums {self.probability.shape[1]}."
            )
        shifted = values - values.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        np.add.at(self.count, split, 1)
        np.add.at(self.probability, split, p)
        np.add.at(self.negentropy, split, (p * log_p).sum(axis=1))

    def merge(self, other: ScoreAccumulator) -> None:
        """Add what another rank saw."""
        if self.probability.shape != other.probability.shape:
            raise StateError(
                f"scores of {other.probability.shape} splits and classes do not add to "
                f"{self.probability.shape}."
            )
        self.count += other.count
        self.probability += other.probability
        self.negentropy += other.negentropy

    def score(self) -> InceptionScore:
        """The score of all samples seen.

        Raises:
            TooFewSamples: if a split has fewer than 10 samples on average.
        """
        total, splits = int(self.count.sum()), len(self.count)
        if total < 10 * splits or self.count.min() == 0:
            raise TooFewSamples(
                f"an Inception Score in {splits} splits needs {10 * splits} samples, got {total}."
            )
        marginal = self.probability / self.count[:, None]
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))  # 0 log 0 = 0
        divergence = self.negentropy / self.count - (marginal * log_marginal).sum(axis=1)
        scores = np.exp(divergence)
        return InceptionScore(float(scores.mean()), float(scores.std()))


def inception_score(
    logits: Tensor | NDArray[Any], splits: int = 10, shuffle: bool = True
) -> InceptionScore:
    """Inception Score of logits (n, classes).

    Args:
        logits: Row i belongs to sample i.
        splits: Parts of n // splits samples.
        shuffle: Shuffle first, as torch-fidelity does (seed 2020); without, splits follow the order
            given.
    """
    values = float64_features(logits, "logits")
    if len(values) < 10 * splits:
        raise TooFewSamples(
            f"an Inception Score in {splits} splits needs {10 * splits} samples, got {len(values)}."
        )
    sums = ScoreAccumulator.empty(values.shape[1], splits)
    sums.update(values, split_of(len(values), splits, shuffle))
    return sums.score()
