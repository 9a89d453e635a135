from pathlib import Path

import numpy as np
import pytest
import torch

from visgen_bench.metrics.errors import (
    FeatureShapeError,
    NotFiniteError,
    StateError,
    TooFewSamples,
)
from visgen_bench.metrics.moments import Moments, load_arrays


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_moments_are_the_mean_and_the_covariance_of_numpy() -> None:
    x = features(500, 20)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.covariance(), np.cov(x, rowvar=False), rtol=1e-11)
    np.testing.assert_allclose(moments.covariance(0), np.cov(x, rowvar=False, ddof=0), rtol=1e-11)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [500], [250, 251, 999], list(range(7, 1000, 7))])
def test_any_partition_and_order_gives_the_same_moments(cuts: list[int]) -> None:
    x = features(1000, 20) * 3 + 5
    whole = Moments.of(x)
    parts = [Moments.of(part) for part in np.split(x, cuts)]
    for order in (range(len(parts)), reversed(range(len(parts)))):
        merged = Moments.empty(20)
        for i in order:
            merged.merge(parts[i])
        assert merged.n == 1000
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        scale = np.abs(whole.m2).max()
        np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-11, atol=1e-11 * scale)


def test_merging_groups_of_ranks_is_associative() -> None:
    parts = np.split(features(900, 16), 3)
    left = Moments.of(parts[0]).merge(Moments.of(parts[1])).merge(Moments.of(parts[2]))
    right = Moments.of(parts[0]).merge(Moments.of(parts[1]).merge(Moments.of(parts[2])))
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-11, atol=1e-10)


def test_a_far_mean_costs_no_digits() -> None:
    # Raw second moments lose 0.8 % here.
    x = features(4000, 4)
    far = Moments.empty(4)
    for block in np.split(x * 1e-3 + 1000.0, 40):
        far.update(block)
    near = Moments.of(x)
    np.testing.assert_allclose(far.covariance() * 1e6, near.covariance(), rtol=1e-6, atol=1e-7)


def test_saved_and_loaded_moments_are_the_same_bits(tmp_path: Path) -> None:
    moments = Moments.of(features(50, 8))
    moments.save(tmp_path / "deep" / "moments.npz")
    again = Moments.load(tmp_path / "deep" / "moments.npz")
    assert again.n == moments.n
    assert (again.mean == moments.mean).all()
    assert (again.m2 == moments.m2).all()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["moments.npz"]


def test_interrupted_and_resumed_moments_are_the_same_bits(tmp_path: Path) -> None:
    blocks = np.split(features(1000, 8), 10)
    straight = Moments.empty(8)
    for block in blocks:
        straight.update(block)
    first = Moments.empty(8)
    for block in blocks[:4]:
        first.update(block)
    first.save(tmp_path / "m.npz")
    resumed = Moments.load(tmp_path / "m.npz")
    for block in blocks[4:]:
        resumed.update(block)
    assert (resumed.m2 == straight.m2).all()
    assert (resumed.mean == straight.mean).all()


def test_a_pickle_in_a_state_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", n=np.array([object()]))
    with pytest.raises(StateError, match="plain arrays"):
        load_arrays(tmp_path / "bad.npz")


def test_half_a_state_file_is_refused(tmp_path: Path) -> None:
    Moments.of(features(50, 8)).save(tmp_path / "m.npz")
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "m.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StateError, match="delete it"):
        Moments.load(tmp_path / "m.npz")


def test_moments_that_lack_an_array_are_refused() -> None:
    with pytest.raises(StateError, match="mean"):
        Moments.from_arrays({"n": np.array(1), "m2": np.eye(2)})


def test_float32_features_are_summed_in_float64() -> None:
    x = torch.from_numpy(features(1000, 8)).float()
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.double().mean(dim=0).numpy(), rtol=1e-12)
    assert moments.m2.dtype == np.float64


def test_flat_features_are_refused() -> None:
    with pytest.raises(FeatureShapeError, match="flattened"):
        Moments.of(np.zeros(100))
    with pytest.raises(FeatureShapeError):
        Moments.of(np.zeros((100, 1)))


def test_other_widths_are_refused() -> None:
    with pytest.raises(FeatureShapeError, match="4 and 5"):
        Moments.empty(4).update(np.zeros((3, 5)))


def test_nan_is_refused_and_its_row_named() -> None:
    x = features(10, 4)
    x[7, 2] = np.nan
    moments = Moments.empty(4)
    with pytest.raises(NotFiniteError, match="row 7"):
        moments.update(x)
    assert moments.n == 0


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(TooFewSamples):
        Moments.of(features(1, 4)).covariance()


def test_ddof_is_zero_or_one() -> None:
    with pytest.raises(ValueError, match="ddof=2"):
        Moments.of(features(5, 4)).covariance(2)
