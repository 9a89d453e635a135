import contextlib
import io
import warnings

import numpy as np
import pytest
import torch

from visgen_bench.metrics.errors import FeatureShapeError, TooFewSamples
from visgen_bench.metrics.prdc import prdc, radii


def pair(n: int = 200, m: int = 150, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) * 0.8 + 0.3


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_authors_package_agrees_exactly(k: int) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the peer's thread pool
        from prdc import compute_prdc

        theirs = compute_prdc(*pair(), nearest_k=k)
    ours = prdc(*pair(), k=k, block=64)
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(value, rel=1e-15), name


def test_torch_fidelity_agrees_up_to_ties_and_float32() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own imports
        import torch_fidelity.metric_prc as peer
    real, fake = pair()
    theirs = peer.prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=3, verbose=False,
        prc_batch_size=1000, save_cpu_ram=False,
    )  # fmt: skip
    ours = prdc(real, fake, k=3)
    assert ours.precision == pytest.approx(theirs[peer.KEY_METRIC_PRECISION], abs=3 / len(fake))
    assert ours.recall == pytest.approx(theirs[peer.KEY_METRIC_RECALL], abs=3 / len(real))


def test_points_on_a_line_have_known_radii() -> None:
    x = np.zeros((5, 2))
    x[:, 0] = [0, 1, 3, 7, 15]
    assert radii(x, k=1).tolist() == [1, 1, 2, 4, 8]
    assert radii(x, k=2).tolist() == [3, 2, 3, 6, 12]


def test_balls_are_open() -> None:
    real = np.zeros((4, 2))
    real[:, 0] = [0, 1, 10, 11]  # every radius is 1 for k 1
    fake = np.zeros((2, 2))
    fake[:, 0] = [2, 5]  # exactly on the rim of the ball at 1, and far from all
    assert prdc(real, fake, k=1).precision == 0.0
    fake[0, 0] = 1.999999
    assert prdc(real, fake, k=1).precision == 0.5


def test_a_set_is_inside_itself_whatever_the_rounding() -> None:
    # Every fake is a real sample: distance 0 to itself, and ties at the k-th neighbour of each.
    x = np.random.default_rng(0).standard_normal((300, 64)) * 100 + 1000
    found = prdc(x, x.copy(), k=5, block=37)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    # A sample lies in its own ball and in those whose k - 1 nearer neighbours it is one of.
    assert found.density == pytest.approx(1.0)


def test_results_do_not_depend_on_the_block() -> None:
    assert len({prdc(*pair(), block=b) for b in (1, 50, 1000)}) == 1


def test_known_radii_change_nothing() -> None:
    real, fake = pair()
    assert prdc(real, fake, real_radii=radii(real)) == prdc(real, fake)


def test_samples_of_one_value_have_empty_balls() -> None:
    real, fake = pair()
    fake[:] = real[0]
    found = prdc(real, fake)
    assert found.precision == 1.0
    assert found.recall == 0.0


def test_as_many_samples_as_neighbours_are_too_few() -> None:
    real, fake = pair()
    with pytest.raises(TooFewSamples, match="at least 6 samples, got 5"):
        prdc(real, fake[:5])
    with pytest.raises(TooFewSamples):
        prdc(real[:5], fake)


def test_other_widths_are_refused() -> None:
    real, fake = pair()
    with pytest.raises(FeatureShapeError):
        prdc(real, fake[:, :3])
