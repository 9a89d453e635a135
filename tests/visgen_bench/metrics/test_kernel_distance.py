import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from visgen_bench.metrics.errors import FeatureShapeError, NotFiniteError, TooFewSamples
from visgen_bench.metrics.kernel_distance import (
    block_standard_error,
    kernel_distance,
    kid_full,
    squared_mmd,
)


def pair(n: int, m: int, d: int = 32, shift: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + shift


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own imports
        import torch_fidelity.metric_kid as peer
    return peer


def dense(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, with loops for what must be left out."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    off_x = sum(kernel(x, x)[i, j] for i in range(n) for j in range(n) if i != j)
    off_y = sum(kernel(y, y)[i, j] for i in range(m) for j in range(m) if i != j)
    return off_x / (n * (n - 1)) + off_y / (m * (m - 1)) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_full_statistic_is_its_definition_for_any_block(block: int) -> None:
    x, y = pair(50, 37)
    assert kid_full(x, y, block).value == pytest.approx(dense(x, y), abs=1e-12)


def test_torch_fidelitys_mmd_agrees_in_float64_and_in_its_float32(fidelity: ModuleType) -> None:
    x, y = (side.astype(np.float32) for side in pair(200, 200))
    options = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    options |= {"kid_kernel_poly_coef0": 1, "kid_kernel": "poly"}
    wide = fidelity.kernel_mmd(x.astype(np.float64), y.astype(np.float64), **options)
    assert squared_mmd(x, y) == pytest.approx(wide, abs=1e-12)
    assert squared_mmd(x, y) == pytest.approx(fidelity.kernel_mmd(x, y, **options), abs=5e-7)


def test_subsets_are_those_of_torch_fidelity(fidelity: ModuleType) -> None:
    x, y = (torch.from_numpy(side) for side in pair(300, 250))
    theirs = fidelity.kid_features_to_metric(
        x, y, kid_subsets=10, kid_subset_size=100, rng_seed=2020, verbose=False
    )
    ours = kernel_distance(x, y, subsets=10, subset_size=100)
    assert ours.value == pytest.approx(theirs[fidelity.KEY_METRIC_KID_MEAN], abs=1e-12)
    assert ours.subset_std == pytest.approx(theirs[fidelity.KEY_METRIC_KID_STD], abs=1e-12)


def test_equal_distributions_give_zero_on_average_and_may_give_less() -> None:
    rng = np.random.default_rng(1)
    values = [
        kid_full(rng.standard_normal((60, 8)), rng.standard_normal((60, 8))).value
        for _ in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


def test_too_few_samples_are_an_error_and_never_shrink_the_subsets() -> None:
    x, y = pair(99, 200)
    with pytest.raises(TooFewSamples, match="subset_size <= 99"):
        kernel_distance(x, y, subset_size=100)
    with pytest.raises(TooFewSamples):
        kid_full(x[:1], y)


def test_bad_features_are_refused() -> None:
    x, y = pair(20, 20)
    with pytest.raises(FeatureShapeError, match="32 and 31"):
        kid_full(x, y[:, :31])
    with pytest.raises(FeatureShapeError, match="flattened"):
        kid_full(x.ravel(), y)
    x[4, 4] = np.nan
    with pytest.raises(NotFiniteError):
        kid_full(x, y)


def test_features_of_a_mapped_file_give_the_same_number(tmp_path: Path) -> None:
    x, y = (side.astype(np.float32) for side in pair(60, 50))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert kid_full(mapped, y).value == kid_full(x, y).value


def test_the_block_error_is_the_spread_of_fresh_block_means() -> None:
    rng = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(150):
        x, y = rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 0.5
        error, blocks = block_standard_error(x, y)
        errors.append(error)
        assert blocks == 10
        means.append(
            np.mean(
                [squared_mmd(a, b) for a, b in zip(np.split(x, 10), np.split(y, 10), strict=True)]
            )
        )
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.2)


def test_the_block_error_is_not_too_small_for_the_full_statistic() -> None:
    rng = np.random.default_rng(0)
    errors, values = [], []
    for _ in range(100):
        x, y = rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 0.5
        errors.append(block_standard_error(x, y)[0])
        values.append(kid_full(x, y).value)
    assert np.mean(errors) > 0.9 * np.std(values)


def test_sides_of_unequal_size_fill_equally_many_blocks() -> None:
    x, y = pair(1000, 25)
    error, blocks = block_standard_error(x, y)
    assert blocks == 10
    assert error > 0
    with pytest.raises(TooFewSamples, match="20 samples"):
        block_standard_error(x, y[:19])
