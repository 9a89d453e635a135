import warnings
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from visgen_bench.metrics.errors import (
    FeatureShapeError,
    FrechetError,
    NotFiniteError,
    StateError,
    TooFewSamples,
)
from visgen_bench.metrics.frechet import (
    FrechetReference,
    frechet_distance,
    frechet_distance_of_features,
)
from visgen_bench.metrics.moments import Moments


def pair(n: int, m: int, d: int, decay: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    """Correlated features of two sides whose spectra fall as i**-decay."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -decay
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = rng.standard_normal((n, d)) * scale @ turn
    y = rng.standard_normal((m, d)) * (scale * 1.2) @ turn.T + 0.1
    return x, y


def trace_of(*sides: np.ndarray) -> float:
    return float(sum(np.var(side, axis=0, ddof=1).sum() for side in sides))


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """TTUR's formula word by word: scipy's sqrtm, an offset if it is not finite, the real part."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sqrtm warns on singular products
        root: Any = scipy.linalg.sqrtm(a @ b)
        if not np.isfinite(root).all():
            offset = np.eye(len(a)) * 1e-6
            root = scipy.linalg.sqrtm((a + offset) @ (b + offset))
    delta = x.mean(axis=0) - y.mean(axis=0)
    return float(delta @ delta + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own imports
        import torch_fidelity.metric_fid as peer
    return peer


def test_diagonal_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    d = 50
    means = rng.standard_normal((2, d))
    deviations = rng.uniform(0.1, 3, (2, d))
    n = 1001
    a, b = (Moments(n, m, np.diag(s**2) * (n - 1)) for m, s in zip(means, deviations, strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_two_known_gaussians_give_forty() -> None:
    # |(6, 0) - (0, 0)|^2 + (3 - 1)^2 + 0 = 40
    a = Moments(3, np.array([6.0, 0.0]), np.diag([9.0, 4.0]) * 2)
    b = Moments(3, np.array([0.0, 0.0]), np.diag([1.0, 4.0]) * 2)
    assert frechet_distance(a, b) == pytest.approx(40.0, rel=1e-12)


def exact(x: np.ndarray, y: np.ndarray) -> float:
    """50 digits: eigenvalues of S1^(1/2) S2 S1^(1/2)."""
    with mpmath.workdps(50):
        sides = []
        for side in (x, y):
            rows = mpmath.matrix(side.tolist())
            n, d = side.shape
            mean = mpmath.matrix([sum(rows[i, j] for i in range(n)) / n for j in range(d)])
            centred = mpmath.matrix(n, d)
            for i in range(n):
                for j in range(d):
                    centred[i, j] = rows[i, j] - mean[j]
            sides.append((mean, centred.T * centred / (n - 1)))
        (mean_a, a), (mean_b, b) = sides
        d = len(mean_a)
        values, vectors = mpmath.eigsy(a)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        inner = mpmath.eigsy(root * b * root, eigvals_only=True)
        cross = sum(mpmath.sqrt(max(v, 0)) for v in inner)
        gap = sum((mean_a[j] - mean_b[j]) ** 2 for j in range(d))
        return float(gap + sum(a[j, j] + b[j, j] for j in range(d)) - 2 * cross)


@pytest.mark.parametrize(("n", "m"), [(40, 30), (4, 30), (30, 4), (4, 3)])
def test_fifty_digits_agree_at_full_and_at_low_rank(n: int, m: int) -> None:
    x, y = pair(n, m, 6)
    expected, tolerance = exact(x, y), 1e-10 * trace_of(x, y)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, abs=tolerance)
    assert frechet_distance_of_features(x, y).value == pytest.approx(expected, abs=tolerance)
    for reference in (
        FrechetReference.from_features(x),
        FrechetReference.from_moments(Moments.of(x)),
    ):
        assert reference.to_features(y).value == pytest.approx(expected, abs=tolerance)
        assert reference.to_moments(Moments.of(y)).value == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("d", [64, 400])
def test_scipys_matrix_square_root_agrees_at_full_rank(d: int) -> None:
    x, y = pair(int(2.5 * d), 3 * d, d)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(by_sqrtm(x, y), abs=1e-9 * trace_of(x, y))


def test_the_published_formula_agrees_at_low_rank_as_far_as_it_can() -> None:
    x, y = pair(60, 200, 128)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    # sqrtm itself errs on a singular product, by 5e-7 of the trace and more.
    assert ours == pytest.approx(by_sqrtm(x, y), abs=1e-5 * trace_of(x, y))


def test_torch_fidelity_agrees_on_float64_statistics(fidelity: ModuleType) -> None:
    x, y = pair(400, 300, 100)
    statistics = [{"mu": s.mean(axis=0), "sigma": np.cov(s, rowvar=False)} for s in (x, y)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    expected = theirs[fidelity.KEY_METRIC_FID]
    assert ours == pytest.approx(expected, abs=1e-9 * trace_of(x, y))


def test_torch_fidelity_agrees_from_features_within_its_float32_mean(fidelity: ModuleType) -> None:
    x, y = (torch.from_numpy(side).float() for side in pair(400, 300, 100))
    theirs = fidelity.fid_statistics_to_metric(
        *map(fidelity.fid_features_to_statistics, (x, y)), verbose=False
    )[fidelity.KEY_METRIC_FID]
    ours = frechet_distance_of_features(x, y).value
    trace = trace_of(x.double().numpy(), y.double().numpy())
    assert ours == pytest.approx(theirs, abs=1e-6 * trace + 1e-5 * theirs)


def test_torchmetrics_agrees_through_an_identity_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own imports
        from torchmetrics.image.fid import FrechetInceptionDistance

    class Flatten(torch.nn.Module):
        num_features = 48

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).float()

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 200, (300, 3, 4, 4), generator=generator, dtype=torch.uint8)
    fake = torch.randint(20, 256, (200, 3, 4, 4), generator=generator, dtype=torch.uint8)
    peer = FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 4, 4))
    peer.update(real, real=True)
    peer.update(fake, real=False)
    x, y = (side.flatten(1).double().numpy() for side in (real, fake))
    ours = frechet_distance_of_features(x, y).value
    trace = trace_of(x, y)
    assert ours == pytest.approx(float(peer.compute()), rel=1e-6, abs=1e-9 * trace)


def test_all_routes_agree_where_there_are_fewer_samples_than_features() -> None:
    x, y = pair(60, 90, 200)
    route = frechet_distance_of_features(x, y)
    assert route.solver == "svd"
    factors = [FrechetReference.from_moments(Moments.of(side)) for side in (x, y)]
    cross = np.linalg.svd(factors[0].factor.T @ factors[1].factor, compute_uv=False).sum()
    gap = np.square(factors[0].mean - factors[1].mean).sum()
    two_eigh = gap + factors[0].trace + factors[1].trace - 2 * cross
    trace = route.trace
    assert route.value == pytest.approx(two_eigh, abs=1e-11 * trace)
    truncated = factors[0].to_moments(Moments.of(y)).value
    assert route.value == pytest.approx(truncated, abs=1e-10 * trace)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    plain = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ b @ root), 0, None)).sum()
    assert route.value == pytest.approx(
        gap + np.trace(a) + np.trace(b) - 2 * plain, abs=1e-7 * trace
    )


@pytest.mark.parametrize(("n", "m"), [(300, 200), (20, 500), (500, 20), (20, 30)])
def test_a_factored_reference_agrees_with_the_direct_route(n: int, m: int) -> None:
    x, y = pair(n, m, 64, decay=2.0)
    expected = frechet_distance_of_features(x, y)
    for reference in (
        FrechetReference.from_features(x),
        FrechetReference.from_moments(Moments.of(x)),
        FrechetReference.from_arrays(FrechetReference.from_features(x).arrays()),
    ):
        for found in (reference.to_features(y), reference.to_moments(Moments.of(y))):
            assert found.value == pytest.approx(expected.value, abs=1e-10 * expected.trace)
            assert found.trace == pytest.approx(expected.trace, rel=1e-12)


def test_ddof_zero_scales_each_covariance_by_its_share() -> None:
    x, y = pair(50, 50, 10)
    gap = float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum())
    unbiased, biased = (frechet_distance(Moments.of(x), Moments.of(y), ddof) for ddof in (1, 0))
    assert biased - gap == pytest.approx((unbiased - gap) * 49 / 50, rel=1e-10)
    # The statistics of StyleGAN's code: raw second moments over n.
    sides = []
    for side in (x, y):
        mean = side.mean(axis=0)
        sides.append((mean, side.T @ side / len(side) - np.outer(mean, mean)))
    root: Any = scipy.linalg.sqrtm(sides[0][1] @ sides[1][1])
    expected = gap + np.trace(sides[0][1] + sides[1][1] - 2 * np.real(root))
    assert biased == pytest.approx(expected, rel=1e-10)


def test_the_distance_is_symmetric() -> None:
    for n, m in ((300, 200), (30, 200)):
        x, y = (Moments.of(side) for side in pair(n, m, 64))
        trace = np.trace(x.covariance()) + np.trace(y.covariance())
        assert frechet_distance(x, y) == pytest.approx(
            frechet_distance(y, x), abs=1e-10 * float(trace)
        )


@pytest.mark.parametrize("n", [20, 64, 65, 300])
def test_the_distance_to_itself_is_zero(n: int) -> None:
    x, _ = pair(n, 2, 64)
    moments = Moments.of(x)
    bound = 1e-10 * 2 * trace_of(x)
    assert frechet_distance(moments, moments) <= bound
    assert frechet_distance_of_features(x, x).value <= bound
    assert FrechetReference.from_features(x).to_features(x).value <= bound


def test_rotation_changes_nothing_and_scaling_scales_squared() -> None:
    x, y = pair(300, 200, 32)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 32)))[0]
    plain = frechet_distance(Moments.of(x), Moments.of(y))
    turned = frechet_distance(Moments.of(x @ turn), Moments.of(y @ turn))
    scaled = frechet_distance(Moments.of(3 * x), Moments.of(3 * y))
    assert turned == pytest.approx(plain, rel=1e-9)
    assert scaled == pytest.approx(9 * plain, rel=1e-9)


def test_samples_of_one_value_have_a_distance_too() -> None:
    x, y = pair(50, 60, 8)
    y[:] = y[0]
    expected = np.square(x.mean(axis=0) - y[0]).sum() + trace_of(x)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-12)
    assert FrechetReference.from_features(y).to_features(x).value == pytest.approx(expected)
    assert frechet_distance(Moments.of(y), Moments.of(y)) == pytest.approx(0.0, abs=1e-12)


def test_a_small_negative_is_clamped_and_its_raw_value_kept() -> None:
    x, _ = pair(40, 2, 64)
    found = FrechetReference.from_features(x).to_features(x)
    assert found.value >= 0
    assert found.value == max(found.raw, 0.0)


def test_a_large_negative_is_an_error() -> None:
    # Statistics that contradict each other: the trace of a covariance cannot be below its factor's.
    x, y = pair(40, 30, 8)
    good = FrechetReference.from_features(x)
    bad = FrechetReference(good.n, good.mean, good.factor * 3, good.trace, good.ddof)
    with pytest.raises(FrechetError, match="do not belong together"):
        bad.to_features(y * 3)


def test_one_sample_is_too_few() -> None:
    x, y = pair(1, 30, 8)
    with pytest.raises(TooFewSamples):
        frechet_distance(Moments.of(x), Moments.of(y))
    with pytest.raises(TooFewSamples):
        frechet_distance_of_features(x, y)
    with pytest.raises(TooFewSamples):
        FrechetReference.from_features(y).to_features(x)


def test_other_widths_flat_features_and_nan_are_refused() -> None:
    x, y = pair(30, 30, 8)
    with pytest.raises(FeatureShapeError, match="8 and 7"):
        frechet_distance(Moments.of(x), Moments.of(y[:, :7]))
    with pytest.raises(FeatureShapeError, match="8 and 7"):
        frechet_distance_of_features(x, y[:, :7])
    with pytest.raises(FeatureShapeError, match="flattened"):
        frechet_distance_of_features(x.ravel(), y)
    x[3, 3] = np.inf
    with pytest.raises(NotFiniteError, match="row 3"):
        frechet_distance_of_features(x, y)
    moments = Moments.of(y)
    moments.mean[0] = np.nan
    with pytest.raises(NotFiniteError):
        frechet_distance(moments, Moments.of(y))


def test_a_reference_that_lacks_an_array_is_refused() -> None:
    with pytest.raises(StateError, match="factor"):
        FrechetReference.from_arrays({"n": np.array(3), "mean": np.zeros(2)})


@pytest.mark.parametrize("d", [8, 256, 300])
def test_a_triangular_factor_gives_what_the_dense_product_gives(d: int) -> None:
    # 300 is no multiple of the block.
    x, y = pair(2 * d, 3 * d, d)
    reference = FrechetReference.from_moments(Moments.of(x))
    assert reference.triangular
    dense = FrechetReference(reference.n, reference.mean, reference.factor, reference.trace)
    assert not dense.triangular
    other = Moments.of(y)
    expected = dense.to_moments(other)
    assert reference.to_moments(other).value == pytest.approx(
        expected.value, abs=1e-13 * expected.trace
    )


def test_a_feature_that_never_varies_is_no_obstacle() -> None:
    x, y = pair(300, 200, 32)
    x[:, 5] = 0.25
    reference = FrechetReference.from_moments(Moments.of(x))
    assert not reference.triangular
    expected = frechet_distance_of_features(np.delete(x, 5, axis=1), np.delete(y, 5, axis=1)).value
    alone = float((y[:, 5].mean() - 0.25) ** 2 + y[:, 5].var(ddof=1))
    independent = y.copy()
    independent[:, 5] = independent[:, 5].mean()
    found = reference.to_moments(Moments.of(independent)).value
    assert found + float(y[:, 5].var(ddof=1)) == pytest.approx(expected + alone, rel=1e-9)


def by_singular_values(x: np.ndarray, y: np.ndarray) -> float:
    """Nuclear norm of the cross product by an SVD, with nothing squared."""
    a, b = ((side - side.mean(axis=0)) / np.sqrt(len(side) - 1) for side in (x, y))
    cross = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    gap = float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum())
    return gap + trace_of(x, y) - 2 * cross


@pytest.mark.parametrize(("n", "m"), [(520, 520), (520, 900), (900, 520)])
def test_many_samples_of_a_mild_spectrum_take_the_gram_route_and_agree(n: int, m: int) -> None:
    x, y = pair(n, m, 700)
    found = frechet_distance_of_features(x, y)
    assert found.solver == "gram"
    expected, tolerance = by_singular_values(x, y), 1e-12 * found.trace
    assert found.value == pytest.approx(expected, abs=tolerance)
    again = FrechetReference.from_features(x).to_features(y)
    assert again.solver == "gram"
    assert again.value == pytest.approx(expected, abs=tolerance)


def test_a_steep_spectrum_goes_to_the_singular_values() -> None:
    # Deviations from 1 to 1e-9: the squares of the small singular values lie below rounding.
    rng = np.random.default_rng(0)
    scale = np.logspace(0, -9, 700)
    x, y = (rng.standard_normal((520, 700)) * scale for _ in range(2))
    found = frechet_distance_of_features(x, y)
    assert found.solver == "svd"
    assert found.value == pytest.approx(by_singular_values(x, y), abs=1e-13 * found.trace)
    a, b = (side - side.mean(axis=0) for side in (x, y))
    product = a @ b.T / 519
    squared = np.linalg.eigvalsh(product @ product.T)
    singular = np.linalg.svd(product, compute_uv=False)
    # What was avoided: without the bound the distance would be off by more than it allows.
    off = 2 * abs(np.sqrt(np.clip(squared, 0, None)).sum() - singular.sum())
    assert off > 1e-9 * found.trace
    assert FrechetReference.from_features(x).to_features(y).solver == "svd"


def test_whatever_route_is_taken_a_billionth_of_the_trace_is_kept() -> None:
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((640, 640)))[0]
    routes = set()
    for exponent in (0.25, 0.5, 0.75, 1.0, 1.5):
        scale = np.arange(1, 641) ** -exponent
        x, y = (rng.standard_normal((600, 640)) * scale @ turn + 0.1 * side for side in range(2))
        found = frechet_distance_of_features(x, y)
        routes.add(found.solver)
        assert found.value == pytest.approx(by_singular_values(x, y), abs=1e-9 * found.trace)
    assert routes == {"gram", "svd"}


def test_large_sets_that_are_equal_or_of_low_rank_keep_their_distance() -> None:
    x, y = pair(560, 560, 600)
    assert frechet_distance_of_features(x, x).value <= 1e-9 * 2 * trace_of(x)
    x[280:] = x[:280]  # half of the singular values are zeros
    found = frechet_distance_of_features(x, y)
    assert found.value == pytest.approx(by_singular_values(x, y), abs=1e-12 * found.trace)
    y[:] = y[0]  # no singular value at all
    expected = np.square(x.mean(axis=0) - y[0]).sum() + trace_of(x)
    assert frechet_distance_of_features(x, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-70, 1e70])
def test_features_whose_fourth_powers_leave_the_range_are_no_obstacle(scale: float) -> None:
    x, y = pair(520, 520, 600)
    plain, scaled = (
        frechet_distance_of_features(x, y),
        frechet_distance_of_features(scale * x, scale * y),
    )
    assert scaled.solver == "svd"
    assert scaled.value == pytest.approx(scale**2 * plain.value, rel=1e-9)
