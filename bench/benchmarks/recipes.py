"""Two full training steps of every published recipe, at true size and batch 1, on this machine.

    python bench/benchmarks/recipes.py

A recipe that nobody ran is not a recipe: every loss and gradient must be finite. Each recipe runs
in a process of its own; the peak is that process's VmHWM. Images are uniform noise: nothing is
learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from visgen.catalogue import find
from visgen.training.loop import Training
from visgen_bench.cell import TrainCell
from visgen_bench.suite import from_text


class NoiseImages:
    """Sixteen images of uniform noise."""

    fingerprint, count = "noise", 16

    def __init__(self, size: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (16, 3, *size), dtype=torch.uint8, generator=generator)

    def take(self, places: Tensor, seeds: Tensor) -> Tensor:
        """uint8 (n, 3, h, w)."""
        return self.images[places]


def published() -> dict[str, TrainCell]:
    """Every train cell of the suites in `suites/published`, by preset."""
    folder = resources.files("visgen_bench") / "suites/published"
    found: dict[str, TrainCell] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        for placed in from_text(file.read_text("utf-8"), file.name).cells:
            if isinstance(placed.cell, TrainCell):
                found[placed.cell.model] = placed.cell
    return found


def run(preset: str) -> dict[str, float | int | str]:
    """Two steps of one recipe; raises FloatingPointError if a figure is not finite."""
    cell = published()[preset]
    torch.manual_seed(cell.seed)
    model = find(preset).build()
    recipe = replace(cell.recipe, batch=1, g_batch=1, accumulate_d=1, accumulate_g=1)
    images = NoiseImages(model.image_size)
    training = Training(model, recipe, images, seed=cell.seed, device="cpu", dtype="fp32")
    start = time.perf_counter()
    training.run_step()
    figures = training.run_step()
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "preset": preset,
        "d_updates": 2 * recipe.critic_steps,
        "g_updates": 2,
        "seconds": seconds,
        "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024,
        "gradient_norm_g": figures["generator/gradient_norm"],
        "gradient_norm_d": figures["discriminator/gradient_norm"],
    }


def main() -> None:
    """Print one Markdown row a recipe."""
    if len(sys.argv) == 2:
        sys.stdout.write(json.dumps(run(sys.argv[1])) + "\n")
        return
    sys.stdout.write("| recipe | D + G updates | s | peak GiB | last gradient norms D, G |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for preset in published():
        command = [sys.executable, __file__, preset]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            raise SystemExit(1)
        row = json.loads(done.stdout.splitlines()[-1])
        sys.stdout.write(
            f"| {preset} | {row['d_updates']} + {row['g_updates']} | {row['seconds']:.1f} "
            f"| {row['peak_bytes'] / 2**30:.2f} "
            f"| {row['gradient_norm_d']:.3g}, {row['gradient_norm_g']:.3g} |\n"
        )


if __name__ == "__main__":
    main()
