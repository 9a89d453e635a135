import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from visgen_bench.metrics.errors import NotFiniteError, StateError
from visgen_bench.metrics.moments import Moments
from visgen_bench.metrics.streams import FeatureStream


def features(n: int, d: int = 16) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_moments_do_not_depend_on_how_rows_were_batched() -> None:
    x = features(1000)
    found = []
    for batch in (1, 7, 256, 1000):
        stream = FeatureStream(16, 1000, keep=False, moments=True)
        for part in torch.arange(1000).split(batch):
            stream.add(part.numpy(), x[part])
        found.append(stream.moments())
    assert all((each.m2 == found[0].m2).all() for each in found)
    np.testing.assert_allclose(found[0].m2, Moments.of(x).m2, rtol=1e-11, atol=1e-9)


def test_rows_come_back_by_index_whatever_the_order(tmp_path: Path) -> None:
    x = features(50)
    for path in (None, tmp_path / "rows.npy"):
        stream = FeatureStream(16, 50, keep=True, moments=False, path=path)
        for part in reversed(torch.arange(50).split(7)):
            stream.add(part.numpy(), x[part])
        rows = stream.rows(np.arange(50))
        assert rows is not None
        assert (rows == x.numpy()).all()
        some = stream.rows(np.array([3, 9]))
        assert some is not None
        assert (some == x[[3, 9]].numpy()).all()


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    def peak(samples: int) -> int:
        stream = FeatureStream(64, samples, keep=False, moments=True)
        batch = features(100, 64)
        tracemalloc.start()
        for first in range(0, samples, 100):
            stream.add(np.arange(first, first + 100), batch)
        stream.moments()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1000)  # what is allocated once
    assert peak(20_000) < 1.1 * peak(2000)


def test_large_kept_rows_lie_in_a_file_that_goes_with_the_stream() -> None:
    stream = FeatureStream(1280, 20_000, keep=True, moments=False)
    rows = stream._rows
    assert isinstance(rows, np.memmap)
    folder = Path(str(rows.filename)).parent
    assert folder.exists()
    del rows, stream
    assert not folder.exists()


def test_a_row_with_nan_is_refused_and_changes_nothing() -> None:
    stream = FeatureStream(16, 50, keep=True, moments=True)
    bad = features(3)
    bad[1, 1] = float("nan")
    with pytest.raises(NotFiniteError):
        stream.add(np.arange(3), bad)
    assert stream.moments().n == 0


def test_moments_that_were_not_asked_for_are_an_error() -> None:
    with pytest.raises(StateError):
        FeatureStream(16, 50, keep=True, moments=False).moments()


def test_streams_of_other_kinds_do_not_merge() -> None:
    streams = [FeatureStream(16, 50, keep=keep, moments=True) for keep in (True, False)]
    with pytest.raises(StateError):
        streams[0].merge(streams[1], np.arange(0))
