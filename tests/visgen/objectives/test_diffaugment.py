"""DiffAugment: each operation's effect on pictures whose result is known."""

from __future__ import annotations

import pytest
import torch

from visgen.objectives.diffaugment import diffaugment
from visgen.seeds import Draws, sample_seeds


def draws(n: int, step: int = 0) -> Draws:
    return Draws(sample_seeds(0, torch.arange(n)), step=step)


def test_translation_moves_a_dot_by_whole_pixels_within_its_limit() -> None:
    images = torch.zeros(200, 1, 20, 20)
    images[:, :, 10, 10] = 3.0
    moved = diffaugment(images, ["translation"], draws(200))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((200,), 3.0))
    places = moved.flatten(1).argmax(dim=1)
    offsets = torch.stack((places // 20 - 10, places % 20 - 10))
    assert offsets.min() == -4  # 0.2 of 20
    assert offsets.max() == 4
    assert len(offsets.T.unique(dim=0)) > 60


def test_translation_fills_with_zero() -> None:
    moved = diffaugment(torch.ones(50, 3, 8, 8), ["translation:0.125"], draws(50))
    assert moved.min() == 0
    assert moved.mean(dim=(1, 2, 3)).min() >= (7 / 8) ** 2 - 1e-6


def test_color_leaves_a_grey_pictures_channels_equal_and_shifts_by_at_most_a_half() -> None:
    flat = torch.full((500, 3, 4, 4), 0.25)
    out = diffaugment(flat, ["color"], draws(500))
    assert torch.allclose(out, out[:, :1, :1, :1].expand_as(out), atol=1e-6)
    shift = out[:, 0, 0, 0] - 0.25
    assert -0.5 <= shift.min() < -0.45
    assert 0.45 < shift.max() <= 0.5


def test_color_scales_contrast_about_the_mean_between_a_half_and_three_halves() -> None:
    images = torch.zeros(500, 3, 2, 2)
    images[:, :, 0] = 1.0  # grey: saturation does nothing
    out = diffaugment(images, ["color"], draws(500))
    contrast = out[:, 0, 0, 0] - out[:, 0, 1, 0]
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5


@pytest.mark.parametrize(
    ("token", "side", "smallest", "largest"),
    [("cutout", 16, 16, 64), ("stl_erase_ratio", 48, 100, 44 * 44)],
)
def test_rectangles_come_in_three_batches_of_ten(
    token: str, side: int, smallest: int, largest: int
) -> None:
    erased = []
    for step in range(200):
        out = diffaugment(torch.ones(2, 1, side, side), [token], draws(2, step))
        erased.append((out == 0).sum(dim=(1, 2, 3)))
    areas = torch.stack(erased)
    coins = (areas > 0).all(dim=1)
    assert torch.equal(coins, (areas > 0).any(dim=1))  # one coin a batch
    assert 0.3 - 0.13 < coins.float().mean() < 0.3 + 0.13  # 4 standard deviations
    assert areas[coins].min() >= smallest
    assert areas.max() <= largest


def test_cutout_of_half_the_side_is_whole_when_it_lies_inside() -> None:
    areas = [
        int((diffaugment(torch.ones(1, 1, 16, 16), ["cutout"], draws(1, s)) == 0).sum())
        for s in range(100)
    ]
    assert max(areas) == 64


def test_gradients_flow_twice_through_the_whole_policy() -> None:
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    policy = ["translation", "cutout", "color"]

    def augmented(x: torch.Tensor) -> torch.Tensor:
        return diffaugment(x, policy, draws(2)).square()

    assert torch.autograd.gradcheck(augmented, (images,))
    assert torch.autograd.gradgradcheck(augmented, (images,))


def test_a_sample_is_augmented_by_its_own_seed() -> None:
    images = torch.randn(4, 3, 8, 8)
    policy = ["translation", "color"]
    whole = diffaugment(images, policy, draws(4))
    last = diffaugment(images[3:], policy, Draws(sample_seeds(0, torch.tensor([3]))))
    torch.testing.assert_close(whole[3:], last)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("colour", 'nearest: "color"'),
        ("color:0.5", "takes no ratio"),
        ("translation:2", "between 0 and 1"),
        ("translation:x", "between 0 and 1"),
    ],
)
def test_a_wrong_token_is_refused(token: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffaugment(torch.zeros(1, 3, 4, 4), [token], draws(1))
