import math

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen.baselines.statistical import (
    PRESETS,
    IndependentPixelsConfig,
    PCAGaussianConfig,
    RealImagesConfig,
    principal_components,
    real_subset,
)
from visgen.data import open_data
from visgen.seeds import sample_seeds
from visgen.tasks import ImageGenerator


def digits(side: int) -> Tensor:
    data = open_data(f"digits:{side}")
    return data.images(data.split("train"))


def colours(n: int, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("side", [8, 16])
def test_sample_depends_on_its_seed_alone_not_on_its_batch(preset: str, side: int) -> None:
    model = PRESETS[preset].fit(digits(side), run_seed=3)
    seeds = sample_seeds(3, torch.arange(40))
    together = model.generate(seeds)
    one_by_one = torch.cat([model.generate(seed[None]) for seed in seeds])
    backwards = model.generate(seeds.flip(0)).flip(0)
    assert isinstance(model, ImageGenerator)
    assert (together.dtype, together.shape) == (torch.uint8, (40, 3, side, side))
    assert model.image_size == (side, side)
    assert torch.equal(together, one_by_one)
    assert torch.equal(together, backwards)
    assert torch.equal(together[:, 0], together[:, 2])  # a grey set gives grey pictures
    assert len(together.flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_conditions_and_other_pictures_are_refused(preset: str) -> None:
    model = PRESETS[preset].fit(colours(30))
    with pytest.raises(ValueError, match="unconditional"):
        model.generate(torch.tensor([1]), condition=3)  # pyright: ignore[reportArgumentType]
    for wrong in (colours(30).float(), colours(30)[:, :1], colours(0)):
        with pytest.raises(ValueError, match=r"fitted to uint8 \(n, 3, h, w\)"):
            PRESETS[preset].fit(wrong)


def test_real_images_do_not_repeat_until_all_are_drawn() -> None:
    images = colours(100)
    model = RealImagesConfig().fit(images, run_seed=7)
    drawn = model.generate(sample_seeds(7, torch.arange(100)))
    assert sorted(map(tuple, drawn.flatten(1).tolist())) == sorted(
        map(tuple, images.flatten(1).tolist())
    )
    assert not torch.equal(drawn, images)
    first = images[real_subset(torch.arange(100), 7, 25)]
    assert torch.equal(drawn[:25], first)


def test_samples_beyond_the_set_and_of_other_runs_are_training_images_all_the_same() -> None:
    images = colours(50)
    model = RealImagesConfig().fit(images, run_seed=7)
    known = set(map(tuple, images.flatten(1).tolist()))
    for run_seed, start in ((7, 50), (8, 0)):
        seeds = sample_seeds(run_seed, torch.arange(start, start + 500))
        drawn = model.generate(seeds)
        assert set(map(tuple, drawn.flatten(1).tolist())) == known
        assert torch.equal(model.generate(seeds[100:101])[0], drawn[100])


def test_real_subsets_are_seeded_without_repeats_and_bounded() -> None:
    train = open_data("digits:8").split("train")
    first, second = real_subset(train, 0, 1000), real_subset(train, 1, 1000)
    assert len(set(first.tolist())) == 1000
    assert set(first.tolist()) <= set(train.tolist())
    assert torch.equal(first, real_subset(train, 0, 1000))
    # Two draws of 1,000 of 1,437 share 1000^2 / 1437 = 696 on average, with deviation 8.
    assert 656 < len(set(first.tolist()) & set(second.tolist())) < 736
    with pytest.raises(ValueError, match="there are 1437; ask for at most 1437"):
        real_subset(train, 0, 1438)


def test_independent_pixels_have_the_training_distribution_pixel_by_pixel() -> None:
    images = digits(8)
    n = 4000
    drawn = IndependentPixelsConfig().fit(images).generate(torch.arange(n))
    for level in images.unique():
        expected = (images[:, 0] == level).double().mean(dim=0)
        found = (drawn[:, 0] == level).double().mean(dim=0)
        allowed = 5 * (expected * (1 - expected) / n).sqrt()  # 5 binomial deviations
        assert bool(((found - expected).abs() <= allowed).all())


def test_independent_pixels_are_uncorrelated_where_digits_are_not() -> None:
    images = digits(8)
    drawn = IndependentPixelsConfig().fit(images).generate(torch.arange(4000))
    # Pixels that are nearly always blank have correlations far from normal, so busy ones only.
    used = images[:, 0].flatten(1).double().std(dim=0) > 40

    def correlations(pictures: Tensor) -> np.ndarray:
        matrix = np.corrcoef(pictures[:, 0].flatten(1)[:, used].double().numpy().T)
        return np.abs(matrix - np.eye(len(matrix)))

    assert correlations(drawn).max() < 5.5 / math.sqrt(4000)
    assert correlations(images).max() > 0.5


def test_channels_of_a_pixel_come_from_the_same_picture() -> None:
    images = colours(20)
    drawn = IndependentPixelsConfig(draw_size=None).fit(images).generate(torch.arange(50))
    for row, column in ((0, 0), (3, 2)):
        known = set(map(tuple, images[:, :, row, column].tolist()))
        assert set(map(tuple, drawn[:, :, row, column].tolist())) <= known


@pytest.mark.parametrize("side", [16, 32])
def test_upsampled_digits_get_their_eight_pixel_values_back(side: int) -> None:
    model = IndependentPixelsConfig().fit(digits(side))
    error = (model.values - 255 / 16 * (digits(8) / (255 / 16)).round()).abs().max()
    assert model.values.shape[-2:] == (8, 8)
    assert float(error) < 1.5  # levels are 16 apart


def test_principal_components_are_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(0)
    tall = torch.randn(200, 12, dtype=torch.float64, generator=generator) * torch.arange(1, 13)
    for rows in (tall, tall[:10]):  # more rows than columns, and fewer
        mean, axes, deviations = principal_components(rows, 5)
        peer = PCA(5, svd_solver="full").fit(rows.numpy())
        np.testing.assert_allclose(mean, peer.mean_, atol=1e-12)
        np.testing.assert_allclose(deviations**2, peer.explained_variance_, rtol=1e-10)
        alignment = np.abs((axes.numpy() * peer.components_).sum(axis=1))
        np.testing.assert_allclose(alignment, 1, atol=1e-9)


def test_gaussian_has_mean_and_covariance_of_its_components_in_the_limit() -> None:
    images = digits(8)
    model = PCAGaussianConfig().fit(images)
    n = 40_000
    drawn = model.unclipped(torch.arange(n))
    covariance = model.axes.T @ model.axes
    # Deviation of an entry of the sample covariance: sqrt((C_ii C_jj + C_ij^2) / n).
    spread = covariance.diagonal()
    deviation = ((spread[:, None] * spread[None, :] + covariance**2) / n).sqrt()
    assert bool(((drawn.T.cov() - covariance).abs() <= 6 * deviation + 1e-9).all())
    assert bool(((drawn.mean(dim=0) - model.mean).abs() <= 6 * (spread / n).sqrt() + 1e-9).all())
    # The share of the digits' variance that scikit-learn's PCA(20) reports on these 1,437 images.
    total = images[:, 0].flatten(1).double().var(dim=0).sum()
    assert float(spread.sum() / total) == pytest.approx(0.8948630646451713, rel=1e-9)


def test_gaussian_of_colour_images_keeps_the_channels_apart() -> None:
    images = torch.zeros(40, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = torch.arange(40)[:, None, None] + 100  # only red varies
    drawn = PCAGaussianConfig(components=1).fit(images).generate(torch.arange(500))
    assert int(drawn[:, 1:].max()) == 0
    assert len(drawn[:, 0].unique()) > 30
    assert torch.equal(drawn[:, 0, 0, 0], drawn[:, 0, 1, 1])


def test_too_few_or_too_many_images_for_the_components_are_named() -> None:
    with pytest.raises(ValueError, match="20 images of 48 values have at most 19 components"):
        PCAGaussianConfig().fit(colours(20))
    with pytest.raises(ValueError, match="at least 1"):
        PCAGaussianConfig(components=0)
    many = torch.zeros(8200, 3, 64, 64, dtype=torch.uint8)
    many[0, 0] = 1
    with pytest.raises(ValueError, match="at most 8192 images"):
        PCAGaussianConfig().fit(many)
