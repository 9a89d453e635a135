"""Trains a small TransGAN with the gradient penalty and prints its losses of every step as JSON.

python loss_curve.py IMPLEMENTATION; a process of its own: Triton reads TRITON_INTERPRET when
it decorates the kernels.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "visgen_kernels"))

from quick_interpreter import quicken
from test_loop import noise

from visgen.models.transgan import TransGANConfig
from visgen.objectives.gan import GanRecipe
from visgen.training import train

CONFIG = TransGANConfig(
    bottom_width=2,
    generator_width=64,
    latent=8,
    generator_depths=(1, 1, 1),
    discriminator_width=16,
    discriminator_depth=1,
)
RECIPE = GanRecipe(objective="wgangp-eps", steps=3, batch=2, critic_steps=1)


def main() -> None:
    """Train and print."""
    if sys.argv[1] == "triton":
        quicken()
    torch.manual_seed(0)
    model = CONFIG.build(attention=sys.argv[1])
    curve: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            RECIPE,
            examples=noise(),
            seed=3,
            log_every=1,
            checkpoint_every=3,
            folder=Path(folder),
            on_log=lambda _, losses: curve.append(losses),
        )
    weights = {
        name: float(p.detach().double().abs().sum())
        for part in model.networks().values()
        for name, p in part.named_parameters()
    }
    json.dump({"curve": curve, "weights": weights}, sys.stdout)


if __name__ == "__main__":
    main()
