"""Adversarial losses in closed form on networks whose logits and gradients are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from visgen.objectives.gan import GanRecipe, updates
from visgen.seeds import Draws, sample_seeds


class ConstantGenerator(nn.Module):
    """Emits an image of one value, a parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, latents: Tensor) -> Tensor:
        return self.value.expand(len(latents), 3, 2, 2)


class LinearCritic(nn.Module):
    """Logit = slope * sum of pixels: its input gradient is `slope` in all 12 places."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        del draws
        return self.slope * images.sum(dim=(1, 2, 3))


class Toy(nn.Module):
    latent = 4

    def __init__(self, value: float, slope: float) -> None:
        super().__init__()
        self.generator = ConstantGenerator(value)
        self.discriminator = LinearCritic(slope)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}


SLOPE, FAKE = 0.25, -0.5
REAL_LOGIT, FAKE_LOGIT = 12 * SLOPE, 12 * SLOPE * FAKE  # real images are all 255, that is 1.0
NORM = SLOPE * math.sqrt(12)


def losses(recipe: GanRecipe, step: int = 0) -> tuple[dict[str, float], float]:
    critic, generator = updates(Toy(FAKE, SLOPE), recipe)
    draws = Draws(sample_seeds(0, torch.arange(4)), step=step)
    real = torch.full((4, 3, 2, 2), 255, dtype=torch.uint8)
    values = {name: float(value.detach()) for name, value in critic.loss(real, draws).items()}
    return values, float(generator.loss(None, draws)["loss"].detach())


def test_wasserstein_with_penalty_and_drift() -> None:
    values, generator = losses(GanRecipe(objective="wgangp-eps", steps=1, batch=4))
    penalty = (NORM - 1) ** 2
    assert values["penalty"] == pytest.approx(penalty, rel=1e-5)
    expected = FAKE_LOGIT - REAL_LOGIT + 1e-3 * REAL_LOGIT**2 + 10 * penalty
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert generator == pytest.approx(-FAKE_LOGIT)


def test_hinge() -> None:
    values, generator = losses(GanRecipe(objective="hinge", steps=1, batch=4))
    assert values["loss"] == pytest.approx(max(0, 1 - REAL_LOGIT) + max(0, 1 + FAKE_LOGIT))
    assert generator == pytest.approx(-FAKE_LOGIT)


def test_nonsaturating() -> None:
    values, generator = losses(GanRecipe(objective="nonsaturating", steps=1, batch=4))
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert values["loss"] == pytest.approx(softplus(-REAL_LOGIT) + softplus(FAKE_LOGIT))
    assert generator == pytest.approx(softplus(-FAKE_LOGIT))


def test_lazy_r1_is_added_every_fourth_step_and_weighs_four_times() -> None:
    recipe = GanRecipe(objective="hinge", steps=1, batch=4, r1=0.5, r1_every=4)
    base, _ = losses(GanRecipe(objective="hinge", steps=1, batch=4))
    for step in range(8):
        values, _ = losses(recipe, step)
        extra = 0.5 * 4 * 0.5 * NORM**2 if step % 4 == 0 else 0.0
        assert values["loss"] - base["loss"] == pytest.approx(extra, abs=1e-6)


def test_the_penalty_is_differentiated_into_the_critic() -> None:
    toy = Toy(FAKE, SLOPE)
    critic, _ = updates(toy, GanRecipe(objective="wgangp-eps", steps=1, batch=4))
    draws = Draws(sample_seeds(0, torch.arange(4)))
    real = torch.full((4, 3, 2, 2), 255, dtype=torch.uint8)
    critic.loss(real, draws)["loss"].backward()
    # d/ds [12 s fake - 12 s + 1e-3 (12 s)^2 + 10 (s sqrt(12) - 1)^2]
    expected = 12 * FAKE - 12 + 2e-3 * 144 * SLOPE + 20 * (NORM - 1) * math.sqrt(12)
    assert float(toy.discriminator.slope.grad or 0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "wgan"}, "objective='wgan' is unknown; known: wgangp-eps"),
        ({"batch": 0}, "batch=0; it must be at least 1"),
        ({"accumulate_d": 3}, "a batch of 4 cannot be cut into 3"),
        ({"diffaugment": ("colour",)}, 'nearest: "color"'),
    ],
)
def test_a_wrong_recipe_says_what_is_possible(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GanRecipe(**{"objective": "hinge", "steps": 1, "batch": 4, **change})
