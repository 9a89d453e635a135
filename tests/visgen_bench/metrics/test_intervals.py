import numpy as np
import pytest
import scipy.stats

from visgen_bench.metrics.intervals import student_t, wilson


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (956, 1000)])
def test_wilsons_interval_is_scipys(hits: int, trials: int) -> None:
    expected = scipy.stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilsons_interval_covers_the_truth_19_times_in_20() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.07, 4000)
    inside = [low < 0.07 < high for low, high in (wilson(k / 200, 200) for k in draws)]
    assert 0.93 < np.mean(inside) < 0.97


@pytest.mark.parametrize("freedom", [9, 12, 19, 49, 1000])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=1e-3)


def test_few_degrees_of_freedom_are_refused() -> None:
    with pytest.raises(ValueError, match="8 degrees"):
        student_t(8)
