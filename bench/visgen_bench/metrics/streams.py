"""Features of one extractor layer as they stream in: moments, and rows by index if needed."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visgen_bench.metrics.errors import StateError
from visgen_bench.metrics.moments import Array, Moments, float64_features

_BLOCK = 256  # rows per moment update: the sums do not depend on how images were batched
_IN_MEMORY = 64 << 20  # bytes of kept rows that stay in memory where no folder was given

Rows = NDArray[np.float32]


class FeatureStream:
    """Accumulates features (n, d) of samples that arrive in any order, each with its index.

    Args:
        width: Features of a row, d.
        samples: How many indices there are; memory for kept rows is reserved for all.
        keep: Keep every row. Else memory is d + d**2 float64 whatever `samples` is.
        moments: Sum up moments.
        path: Where kept rows lie (npy, memory-mapped); in memory or a temporary folder if None.
    """

    def __init__(
        self, width: int, samples: int, *, keep: bool, moments: bool, path: Path | None = None
    ) -> None:
        self.width = width
        self.samples = samples
        self._moments = Moments.empty(width) if moments else None
        self._pending = np.zeros((0, width), np.float32)
        self._rows = self._reserve(path) if keep else None

    def _reserve(self, path: Path | None) -> Rows:
        size = (self.samples, self.width)
        if path is None:
            if math.prod(size) * 4 <= _IN_MEMORY:
                return np.zeros(size, np.float32)
            folder = tempfile.mkdtemp(prefix="visgen-features-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = Path(folder) / "features.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            rows = np.load(path, mmap_mode="r+", allow_pickle=False)
            if rows.shape == size and rows.dtype == np.float32:
                return rows
            del rows
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=size)

    def add(self, indices: NDArray[np.int64], features: Tensor) -> None:
        """Add rows (b, d) of the samples `indices` (b,)."""
        float64_features(features)  # refuses NaN and wrong shapes before anything is changed
        rows = features.detach().cpu().numpy().astype(np.float32, copy=False)
        if self._rows is not None:
            self._rows[indices] = rows
        if self._moments is not None:
            waiting = np.concatenate((self._pending, rows))
            full = len(waiting) // _BLOCK * _BLOCK
            for start in range(0, full, _BLOCK):
                self._moments.update(waiting[start : start + _BLOCK])
            self._pending = waiting[full:].copy()

    def merge(self, other: FeatureStream, indices: NDArray[np.int64]) -> None:
        """Add what another stream saw; `indices` are the samples it has."""
        if (self._rows is None) != (other._rows is None) or self.samples != other.samples:
            raise StateError("streams that keep rows and streams that do not cannot be merged.")
        if self._rows is not None and other._rows is not None:
            for start in range(0, len(indices), 4096):
                part = indices[start : start + 4096]
                self._rows[part] = other._rows[part]
        if self._moments is not None:
            mine, theirs = self.moments(), other.moments()
            self._moments, self._pending = mine.merge(theirs), self._pending[:0]

    def moments(self) -> Moments:
        """Of all rows so far; the stream goes on unchanged."""
        if self._moments is None:
            raise StateError("this stream was told not to sum up moments.")
        held = self._moments
        whole = Moments(held.n, held.mean.copy(), held.m2.copy())
        return whole.update(self._pending) if len(self._pending) else whole

    def rows(self, indices: NDArray[np.int64]) -> Rows | None:
        """Rows of the samples `indices`, in that order, or None if they were not kept.

        All rows in order come without a copy.
        """
        if self._rows is None:
            return None
        if len(indices) == self.samples and bool((indices == np.arange(self.samples)).all()):
            return self._rows
        return self._rows[indices]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state as named arrays; kept rows are flushed to their file and not repeated here."""
        state: dict[str, NDArray[Any]] = {}
        if self._moments is not None:
            state |= dict(self._moments.arrays()) | {"pending": self._pending}
        if isinstance(self._rows, np.memmap):
            self._rows.flush()
        elif self._rows is not None:
            state["rows"] = self._rows
        return state

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from `arrays`."""
        if self._moments is not None:
            self._moments = Moments.from_arrays(state)
            self._pending = state["pending"]
        if self._rows is not None and "rows" in state:
            self._rows[:] = state["rows"]


def float64_rows(rows: Rows) -> Array:
    """Kept rows as float64, in memory."""
    return np.asarray(rows, dtype=np.float64)
