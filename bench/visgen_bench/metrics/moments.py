"""Mean and scatter of a stream of features, exact under merging.

    mean = 1/n sum x        M2 = sum (x - mean)(x - mean)'

Both are centred all the way (Chan, Golub, LeVeque 1983): raw second moments lose 0.8 % in float64
already at mean 1000 and deviation 1e-3. The covariance is M2 / (n - ddof). State: d + d**2
float64, whatever n is.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import FeatureShapeError, NotFiniteError, StateError, TooFewSamples

Array = NDArray[np.float64]


def float64_features(features: Tensor | NDArray[Any], name: str = "features") -> Array:
    """Features as a float64 array (n, d) on the CPU.

    Raises:
        FeatureShapeError: if they are not two-dimensional, or d is 1 (a flattened buffer makes a
            distance of about zero out of anything).
        NotFiniteError: on NaN or infinity; names the first row.
    """
    raw = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if raw.ndim != 2 or raw.shape[1] < 2:
        raise FeatureShapeError(
            f"{name} has shape {raw.shape}; it must be (n, d) with d >= 2. A flattened buffer "
            "must be reshaped."
        )
    array = np.asarray(raw, dtype=np.float64)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise NotFiniteError(
            f"{name} holds NaN or infinity, first in row {row} of {len(array)}; "
            "look at the images or the extractor of that row."
        )
    return array


def same_width(a: int, b: int) -> None:
    """Raise FeatureShapeError unless both feature sets have the same width."""
    if a != b:
        raise FeatureShapeError(
            f"the two sides have {a} and {b} features; both must come from one extractor and layer."
        )


@dataclass
class Moments:
    """Number, mean and scatter of features.

    Attributes:
        n: Rows seen.
        mean: float64 (d,).
        m2: float64 (d, d), sum of centred outer products.
    """

    n: int
    mean: Array
    m2: Array

    @classmethod
    def empty(cls, width: int) -> Self:
        """Nothing seen yet, of `width` features."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: Tensor | NDArray[Any]) -> Self:
        """Of all rows at once: features (n, d) of any float dtype."""
        array = float64_features(features)
        if len(array) == 0:
            return cls.empty(array.shape[1])
        mean = array.mean(axis=0)
        centred = array - mean
        return cls(len(array), mean, centred.T @ centred)

    @property
    def width(self) -> int:
        """Features per row, d."""
        return self.mean.shape[0]

    def update(self, features: Tensor | NDArray[Any]) -> Self:
        """Add rows (b, d) of any float dtype; sums run in float64."""
        array = float64_features(features)
        same_width(self.width, array.shape[1])
        return self.merge(Moments.of(array))

    def merge(self, other: Moments) -> Self:
        """Add what another stream saw; equal to having seen both, to rounding.

        Merge ranks in rank order where bits must repeat.
        """
        same_width(self.width, other.width)
        n = self.n + other.n
        if other.n == 0:
            return self
        delta = other.mean - self.mean
        self.m2 += other.m2
        if self.n > 0:
            self.m2 += np.outer(delta, delta * (self.n * (other.n / n)))
        self.mean = self.mean + delta * (other.n / n)
        self.n = n
        return self

    def covariance(self, ddof: int = 1) -> Array:
        """M2 / (n - ddof), float64 (d, d).

        Args:
            ddof: 1 for the unbiased estimate, 0 for division by n (StyleGAN's statistics).

        Raises:
            TooFewSamples: if n < 2.
        """
        check_ddof(ddof)
        if self.n < 2:
            raise TooFewSamples(f"a covariance needs at least 2 samples, got {self.n}.")
        return self.m2 / (self.n - ddof)

    def arrays(self) -> dict[str, Array | NDArray[np.int64]]:
        """The state as named arrays: `n` int64 (), `mean`, `m2`."""
        return {"n": np.array(self.n, dtype=np.int64), "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The inverse of `arrays`; StateError where an array is missing or misshapen."""
        try:
            n, mean, m2 = int(arrays["n"]), arrays["mean"], arrays["m2"]
        except KeyError as missing:
            raise StateError(f"moments lack the array {missing}; found {sorted(arrays)}.") from None
        if mean.ndim != 1 or m2.shape != (len(mean), len(mean)):
            raise StateError(f"moments of shapes mean {mean.shape}, m2 {m2.shape} do not fit.")
        return cls(n, np.array(mean, dtype=np.float64), np.array(m2, dtype=np.float64))

    def save(self, path: Path) -> None:
        """Write an npz without pickles, whole or not at all."""
        save_arrays(path, self.arrays())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; bitwise the same."""
        return cls.from_arrays(load_arrays(path))

    def all_gather(self) -> Moments:
        """Of all ranks of the default process group, in rank order: the same bits on each."""
        import torch
        import torch.distributed as dist

        mine = torch.from_numpy(np.concatenate((self.mean, self.m2.ravel())))
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([self.n]))
        parts = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(parts, mine)
        whole = Moments.empty(self.width)
        for count, part in zip(counts, parts, strict=True):
            values, d = part.numpy(), self.width
            whole.merge(Moments(int(count), values[:d].copy(), values[d:].reshape(d, d).copy()))
        return whole


def check_ddof(ddof: int) -> None:
    """Raise ValueError unless `ddof` is 0 or 1."""
    if ddof not in (0, 1):
        raise ValueError(f"ddof={ddof}; it is 1 (unbiased, TTUR) or 0 (divide by n, StyleGAN).")


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays as an npz: to a temporary file, then renamed; no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz; pickled objects inside are refused.

    Raises:
        StateError: if the file is not an npz of plain arrays.
    """
    try:
        # Opened here, because np.load leaves a file that is no archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StateError(f"{path} is not an npz of plain arrays ({error}); delete it.") from error
