"""Adversarial objectives: what the discriminator and the generator minimise in turn.

`wgangp-eps` is TransGAN's: Wasserstein with a gradient penalty (arXiv:1704.00028) and a drift term
that squares the batch's mean logit (arXiv:1710.10196 squares each logit; the released code does
not). `hinge` is arXiv:1705.02894, `nonsaturating` arXiv:1406.2661. R1 (arXiv:1801.04406, eq. 9) may
be added to any of them, lazily (arXiv:1912.04958, appendix B): every `r1_every`-th step, times
`r1_every`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.objectives.diffaugment import check_policy, diffaugment
from visgen.objectives.update import Update
from visgen.pixels import to_unit_range
from visgen.seeds import Draws

Objective = Literal["wgangp-eps", "hinge", "nonsaturating"]
OBJECTIVES: tuple[Objective, ...] = ("wgangp-eps", "hinge", "nonsaturating")
PENALTY_WEIGHT = 10.0
DRIFT_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class GanRecipe:
    """How a GAN is trained: `critic_steps` discriminator updates, then one of the generator.

    Batches are what one optimiser step sees; `accumulate_*` cuts them into micro-batches. The
    moving average of the generator has either a fixed decay `ema`, or a half-life in images that
    ramps up over `ema_warmup` times the images seen so far (TransGAN: 500,000 and 0.1).
    """

    objective: Objective
    steps: int
    batch: int
    g_batch: int | None = None  # the generator's; None: the same as `batch`
    critic_steps: int = 1
    lr_g: float = 1e-4
    lr_d: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    clip: float | None = 5.0  # of the gradient's norm
    accumulate_g: int = 1
    accumulate_d: int = 1
    r1: float = 0.0
    r1_every: int = 1
    diffaugment: tuple[str, ...] = ()
    flip: bool = False  # mirror real images with probability one half
    ema: float | None = None
    ema_half_life: float = 500_000.0
    ema_warmup: float = 0.1
    recompute: bool = False  # activation checkpointing

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective={self.objective!r} is unknown; known: {', '.join(OBJECTIVES)}."
            )
        for name in ("steps", "batch", "critic_steps", "accumulate_g", "accumulate_d", "r1_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1.")
        for batch, parts in (
            (self.batch, self.accumulate_d),
            (self.g_batch or self.batch, self.accumulate_g),
        ):
            if batch % parts:
                raise ValueError(f"a batch of {batch} cannot be cut into {parts} equal parts.")
        check_policy(self.diffaugment)

    @property
    def differentiates_twice(self) -> bool:
        """Whether the discriminator's loss holds a gradient of itself."""
        return self.objective == "wgangp-eps" or self.r1 > 0

    @property
    def kept(self) -> str:
        """The generator is what is used afterwards."""
        return "generator"

    def updates(self, model: Gan) -> tuple[Update, ...]:
        """The discriminator's update, then the generator's."""
        return updates(model, self)

    def decay(self, step: int) -> float:
        """Of the generator's moving average after so many steps."""
        if self.ema is not None:
            return self.ema
        seen = step * self.critic_steps * self.batch
        return decay_at(seen, self.batch, self.ema_half_life, self.ema_warmup)


def decay_at(images_seen: int, batch: int, half_life: float, warmup: float) -> float:
    """TransGAN's ramp: 0.5^(batch / n), n = min(half_life, warmup * images_seen) (released code).

    Args:
        images_seen: Real images so far, this step's included.
        batch: Real images of one discriminator update.
        half_life: In images, reached at the end of the ramp.
        warmup: Share of the images seen that the half-life may be.
    """
    images = min(half_life, warmup * images_seen)
    return 0.5 ** (batch / max(images, 1e-8))


class Gan(Protocol):
    """What the objectives ask of a model."""

    @property
    def latent(self) -> int: ...

    @property
    def generator(self) -> nn.Module: ...

    @property
    def discriminator(self) -> nn.Module: ...


def _wgan(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean() + DRIFT_WEIGHT * real.mean().square()


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def _nonsaturating(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


_CRITIC: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
    "wgangp-eps": _wgan,
    "hinge": _hinge,
    "nonsaturating": _nonsaturating,
}


def input_gradient(
    discriminate: Callable[[Tensor, Draws], Tensor], images: Tensor, draws: Draws
) -> Tensor:
    """D logit / d image for every sample, itself differentiable: (b, 3, h, w)."""
    images = images.detach().requires_grad_()
    logits = discriminate(images, draws)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient


def gradient_penalty(gradient: Tensor) -> Tensor:
    """Mean of (norm of a sample's gradient - 1)^2, a scalar (arXiv:1704.00028, eq. 3)."""
    return (gradient.flatten(1).norm(dim=1) - 1.0).square().mean()


def r1_penalty(gradient: Tensor) -> Tensor:
    """Half the mean squared norm of a sample's gradient, a scalar (arXiv:1801.04406, eq. 9)."""
    return 0.5 * gradient.flatten(1).square().sum(dim=1).mean()


def _mirror(images: Tensor, draws: Draws) -> Tensor:
    chosen = draws.uniform("mirror").to(images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class GanLosses:
    """The two losses of one GAN under one recipe."""

    def __init__(self, gan: Gan, recipe: GanRecipe) -> None:
        self.gan = gan
        self.recipe = recipe

    def discriminate(self, images: Tensor, draws: Draws) -> Tensor:
        """Logits (b,) of images seen through fresh augmentations."""
        seen = diffaugment(images, self.recipe.diffaugment, draws.fork("augment"))
        return self.gan.discriminator(seen, draws.fork("discriminator"))

    def discriminator(self, batch: Tensor | None, draws: Draws) -> dict[str, Tensor]:
        """Real images uint8 (b, 3, h, w) against as many fakes."""
        if batch is None:
            raise ValueError("the discriminator's loss needs real images, got None.")
        recipe = self.recipe
        real = to_unit_range(batch)
        if recipe.flip:
            real = _mirror(real, draws)
        with torch.no_grad():
            fake = self.gan.generator(draws.normal("latent", (self.gan.latent,)))
        real_logits = self.discriminate(real, draws.fork("real"))
        fake_logits = self.discriminate(fake, draws.fork("fake"))
        critic = _CRITIC[recipe.objective](real_logits, fake_logits)
        out = {"loss": critic, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
        if recipe.objective == "wgangp-eps":
            mix = draws.uniform("mix", (1, 1, 1)).to(real)
            between = torch.lerp(fake.float(), real, mix)  # mix of real, 1 - mix of fake
            gradient = input_gradient(self.discriminate, between, draws.fork("penalty"))
            out["penalty"] = gradient_penalty(gradient)
            out["loss"] = out["loss"] + PENALTY_WEIGHT * out["penalty"]
        if recipe.r1 and draws.step % recipe.r1_every == 0:
            gradient = input_gradient(self.discriminate, real, draws.fork("r1"))
            out["r1"] = r1_penalty(gradient)
            out["loss"] = out["loss"] + recipe.r1 * recipe.r1_every * out["r1"]
        return out

    def generator(self, batch: Tensor | None, draws: Draws) -> dict[str, Tensor]:
        """As many fakes as the draws have seeds; `batch` is not looked at."""
        del batch
        fake = self.gan.generator(draws.normal("latent", (self.gan.latent,)))
        logits = self.discriminate(fake, draws.fork("fake"))
        saturates = self.recipe.objective != "nonsaturating"
        return {"loss": -logits.mean() if saturates else F.softplus(-logits).mean()}


def updates(gan: Gan, recipe: GanRecipe) -> tuple[Update, ...]:
    """The discriminator's and the generator's update of one training step, in order."""
    for network in (gan.generator, gan.discriminator):
        if hasattr(network, "recompute"):
            network.recompute = recipe.recompute  # type: ignore[assignment]
        elif recipe.recompute:
            raise ValueError(f"{type(network).__qualname__} has no activation checkpointing.")
    losses = GanLosses(gan, recipe)
    return (
        Update(
            name="discriminator",
            part="discriminator",
            repeat=recipe.critic_steps,
            batch=recipe.batch,
            accumulate=recipe.accumulate_d,
            learning_rate=recipe.lr_d,
            reads_data=True,
            loss=losses.discriminator,
        ),
        Update(
            name="generator",
            part="generator",
            repeat=1,
            batch=recipe.g_batch or recipe.batch,
            accumulate=recipe.accumulate_g,
            learning_rate=recipe.lr_g,
            reads_data=False,
            loss=losses.generator,
        ),
    )
