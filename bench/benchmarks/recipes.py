"""Two full training steps of every published recipe, at true size and batch 1, on this machine.

    python bench/benchmarks/recipes.py
    python bench/benchmarks/recipes.py 'transgan-*' 'videogpt-paper-bair:*'

A recipe that nobody ran is not a recipe: every loss and gradient must be finite. Each recipe runs
in a process of its own; the peak is that process's VmHWM. Images, clips and codes are uniform
noise, a prior's conditions too: nothing is learned. Patterns choose among names PRESET:OBJECTIVE.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgen.catalogue import find
from visgen.models.prior import PriorConfig
from visgen.objectives.videogpt import CodeBatch
from visgen.training.loop import Training
from visgen_bench.cell import TrainCell
from visgen_bench.suite import from_text


class NoisePixels:
    """Sixteen images (3, h, w) or clips (t, 3, h, w) of uniform noise."""

    fingerprint, count = "noise", 16

    def __init__(self, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (16, *shape), dtype=torch.uint8, generator=generator)

    def take(self, places: Tensor, seeds: Tensor) -> Tensor:
        """uint8 (n, *shape)."""
        return self.pixels[places]


class NoiseCodes:
    """Sixteen grids of uniform codes, each under all conditions that the prior takes."""

    fingerprint, count = "noise", 16

    def __init__(self, config: PriorConfig) -> None:
        generator = torch.Generator().manual_seed(0)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(16, *shape, generator=generator) - 0.5

        codes = torch.randint(0, config.codes, (16, *config.grid), generator=generator)
        conditions = {}
        if config.classes:
            conditions["labels"] = torch.arange(16) % config.classes
        if config.actions:
            conditions["actions"] = uniform(config.actions)
        if config.frames:
            conditions["frames"] = uniform(3, config.frames, *(config.frame_size,) * 2)
        self.all = CodeBatch(codes, conditions)

    def take(self, places: Tensor, seeds: Tensor) -> CodeBatch:
        """Codes int64 (n, t, h, w)."""
        conditions = {kind: all_[places] for kind, all_ in self.all.conditions.items()}
        return CodeBatch(self.all.codes[places], conditions)


def noise(model: Any, objective: str) -> NoisePixels | NoiseCodes:
    """What a model is trained on by an objective."""
    if objective == "prior":
        return NoiseCodes(model.config.prior)
    if objective == "vqvae":
        frames, *size = model.clip_size
        return NoisePixels((frames, 3, *size))
    return NoisePixels((3, *model.image_size))


def published() -> dict[str, TrainCell]:
    """Every train cell of the suites in `suites/published`, by preset and objective."""
    folder = resources.files("visgen_bench") / "suites/published"
    found: dict[str, TrainCell] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        for placed in from_text(file.read_text("utf-8"), file.name).cells:
            if isinstance(placed.cell, TrainCell):
                found[f"{placed.cell.model}:{placed.cell.recipe.objective}"] = placed.cell
    return found


def smallest(recipe: Any) -> Any:
    """The recipe at batch 1."""
    sizes = ("batch", "g_batch", "accumulate", "accumulate_d", "accumulate_g")
    return replace(recipe, **{name: 1 for name in sizes if hasattr(recipe, name)})


def run(name: str) -> dict[str, Any]:
    """Two steps of one recipe; raises FloatingPointError if a figure is not finite."""
    cell = published()[name]
    torch.manual_seed(cell.seed)
    model: Any = find(cell.model).build()
    recipe = smallest(cell.recipe)
    examples = noise(model, recipe.objective)
    training = Training(model, recipe, examples, seed=cell.seed, device="cpu", dtype="fp32")
    start = time.perf_counter()
    training.run_step()
    figures = training.run_step()
    seconds = time.perf_counter() - start
    broken = [figure for figure, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(f"{name}: {', '.join(broken)} not finite.")
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "updates": {update.name: 2 * update.repeat for update in recipe.updates(model)},
        "seconds": seconds,
        "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024,
        "figures": figures,
    }


def row(name: str, done: dict[str, Any]) -> str:
    """One recipe as a row of the table."""

    def last(figure: str) -> str:
        found = {k: v for k, v in done["figures"].items() if k.endswith(f"/{figure}")}
        return ", ".join(f"{value:.3g}" for value in found.values()) or "-"

    updates = ", ".join(f"{count} {update}" for update, count in done["updates"].items())
    return (
        f"| {name} | {updates} | {done['seconds']:.1f} | {done['peak_bytes'] / 2**30:.2f} "
        f"| {last('loss')} | {last('gradient_norm')} |\n"
    )


def main() -> None:
    """Print one Markdown row a recipe."""
    if sys.argv[1:2] == ["--one"]:
        sys.stdout.write(json.dumps(run(sys.argv[2])) + "\n")
        return
    patterns = sys.argv[1:] or ["*"]
    sys.stdout.write("| recipe | updates | s | peak GiB | last losses | last gradient norms |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for name in published():
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            raise SystemExit(1)
        sys.stdout.write(row(name, json.loads(done.stdout.splitlines()[-1])))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
