"""TransGAN on CPU against the released structure in plain eager PyTorch: time and peak memory.

    python bench/benchmarks/transgan_step.py [--preset transgan-cifar10] [--batch 8] [--rounds 12]

Times are taken in turn in one process (ours, eager, ours, ... in random order within a pair); the
ratio is the median of the pairs' ratios with a bootstrap interval. Peak host memory is VmHWM of a
process of its own per phase and variant, after one warm-up call and a reset of the counter.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from transgan_eager import EagerDiscriminator, EagerGenerator

from visgen.catalogue import find
from visgen.models.transgan import TransGANConfig
from visgen.objectives.gan import GanRecipe, updates
from visgen.seeds import Draws, sample_seeds
from visgen.training import UpdateRunner

PHASES = ("generator_forward", "d_step")
VARIANTS = ("visgen", "eager")


class DrawnNoise(nn.Module):
    """The eager discriminator with noise from torch's own generator, as released."""

    def __init__(self, network: EagerDiscriminator, tokens: list[int]) -> None:
        super().__init__()
        self.network = network
        self.tokens = tokens

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Images (b, 3, h, w) -> logits (b,)."""
        del draws
        noise = [torch.randn(len(images), n, 1) for n in self.tokens]
        return self.network(images, noise).squeeze(-1)


class EagerGan(nn.Module):
    """Both eager networks with what the objectives ask for."""

    def __init__(self, config: TransGANConfig) -> None:
        super().__init__()
        short = {"layer": "ln", "pixel": "pn"}
        self.latent = config.latent
        self.generator = EagerGenerator(
            config.bottom_width,
            config.generator_width,
            config.latent,
            config.generator_depths,
            short[config.generator_norm],
        )
        size, depth = config.image_size[0], config.discriminator_depth
        fine = (size // config.patch) ** 2
        tokens = [fine] * depth + [fine // 4] * depth + [fine // 4 + 1]
        network = EagerDiscriminator(
            size,
            config.discriminator_width,
            depth,
            config.patch,
            short[config.discriminator_norm],
        )
        self.discriminator = DrawnNoise(network, tokens)

    def networks(self) -> dict[str, nn.Module]:
        """As the training loop names them."""
        return {"generator": self.generator, "discriminator": self.discriminator}


def call_of(phase: str, variant: str, preset: str, batch: int) -> Callable[[], object]:
    """The piece of work to be measured, ready to run."""
    config = find(preset)
    torch.manual_seed(0)
    model = config.build() if variant == "visgen" else EagerGan(config)
    seeds = sample_seeds(0, torch.arange(batch))
    if phase == "generator_forward":
        latents = Draws(seeds).normal("latent", (config.latent,))
        return lambda: _forward(model, latents)
    policy = ("translation", "cutout", "color")
    recipe = GanRecipe(objective="wgangp-eps", steps=1, batch=batch, diffaugment=policy)
    update = updates(model, recipe)[0]
    runner = UpdateRunner(model, update, betas=recipe.betas, clip=recipe.clip)
    real = torch.randint(0, 256, (batch, 3, *config.image_size), dtype=torch.uint8)
    return lambda: runner.run(real, Draws(seeds))


@torch.no_grad()
def _forward(model: nn.Module, latents: Tensor) -> Tensor:
    return model.get_submodule("generator")(latents)


def paired(phase: str, preset: str, batch: int, rounds: int) -> dict[str, object]:
    """Seconds of both variants and the ratio ours / eager with a 95 % bootstrap interval."""
    calls = {variant: call_of(phase, variant, preset, batch) for variant in VARIANTS}
    for call in calls.values():
        call()
        call()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    order = random.Random(0)
    for _ in range(rounds):
        for variant in order.sample(VARIANTS, 2):
            start = time.perf_counter()
            calls[variant]()
            seconds[variant].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["visgen"], seconds["eager"], strict=True)]
    medians = sorted(statistics.median(order.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return {
        "phase": phase,
        "batch": batch,
        "visgen_s": statistics.median(seconds["visgen"]),
        "eager_s": statistics.median(seconds["eager"]),
        "ratio": statistics.median(ratios),
        "interval": (medians[249], medians[9749]),
        "n": rounds,
    }


def peak(phase: str, variant: str, preset: str, batch: int) -> int:
    """VmHWM in bytes of one call, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "import transgan_step as t; "
        f"print(t.measure_peak({phase!r}, {variant!r}, {preset!r}, {batch}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return int(done.stdout.split()[-1])


def measure_peak(phase: str, variant: str, preset: str, batch: int) -> int:
    """Peak resident bytes of the second call; writing 5 to clear_refs resets the counter."""
    call = call_of(phase, variant, preset, batch)
    call()
    Path("/proc/self/clear_refs").write_text("5")
    call()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Print one line a phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="transgan-cifar10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for phase in PHASES:
        row = paired(phase, options.preset, options.batch, options.rounds)
        for variant in VARIANTS:
            row[f"{variant}_peak_bytes"] = peak(phase, variant, options.preset, options.batch)
        if options.json:
            sys.stdout.write(json.dumps(row) + "\n")
            continue
        low, high = row["interval"]  # type: ignore[misc]
        sys.stdout.write(
            f"{phase} b{options.batch}: ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}] "
            f"({row['visgen_s']:.3f} s against {row['eager_s']:.3f} s, n {row['n']}); peak "
            f"{row['visgen_peak_bytes'] / 2**20:.0f} MiB against "  # type: ignore[operator]
            f"{row['eager_peak_bytes'] / 2**20:.0f} MiB\n"  # type: ignore[operator]
        )


if __name__ == "__main__":
    main()
