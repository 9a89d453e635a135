"""Training: batches by counter, updates in order, a moving average, and exact resume.

Everything random is a function of (seed, step, place in the batch), and everything that a step
changes is in the checkpoint, so a run that was killed and one that was not give the same weights
bit for bit on one machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgen.checkpoints import CheckpointError, read, save_weights, sha256_of, write
from visgen.checkpoints.weights import check_shapes, part_states
from visgen.objectives.recipe import Recipe
from visgen.objectives.update import Update
from visgen.seeds import Draws, permutation, sample_seeds
from visgen.training.examples import Examples
from visgen.training.moving_average import MovingAverage
from visgen.training.update_runner import Precision, UpdateRunner

STATE_FILE = "state.safetensors"
WEIGHTS_FILE = "weights.safetensors"


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was infinite or NaN; `weights` is the last good file, if any."""

    def __init__(self, step: int, reason: str, weights: Path | None) -> None:
        kept = (
            f"the weights of the last checkpoint are kept in {weights.name}"
            if weights
            else "no checkpoint yet"
        )
        super().__init__(
            f"step {step}: {reason}; {kept}. Lower the learning rate or clip gradients."
        )
        self.step = step
        self.weights = weights


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left behind.

    Attributes:
        steps: Training steps done, over all attempts.
        seconds: Wall time, over all attempts.
        weights: Safetensors file of the moving average of the recipe's part.
        sha256: Of that file.
        figures: Last value of every logged figure, `update/name`.
    """

    steps: int
    seconds: float
    weights: Path
    sha256: str
    figures: dict[str, float]


class Batches:
    """Examples by counter: epoch e is a permutation drawn from (seed, e)."""

    def __init__(self, examples: Examples, seed: int, device: str) -> None:
        self.examples = examples
        self.seed = seed
        self.device = device
        self._epoch = -1
        self._order = torch.arange(0)

    def take(self, start: int, seeds: Tensor) -> Any:
        """Examples at places start, start + 1, ... of the endless sequence, one for each seed."""
        places = [self._place(start + i) for i in range(len(seeds))]
        return self.examples.take(torch.stack(places), seeds).to(self.device)

    def _place(self, number: int) -> Tensor:
        epoch, offset = divmod(number, self.examples.count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = permutation(self.seed, f"epoch-{epoch}", self.examples.count)
        return self._order[offset]


class Training:
    """One run's state: runners, moving average, position."""

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        examples: Examples,
        *,
        seed: int,
        device: str,
        dtype: Precision,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.updates = recipe.updates(model)
        self.runners = {
            u.name: UpdateRunner(model, u, betas=recipe.betas, clip=recipe.clip, dtype=dtype)
            for u in self.updates
        }
        self.average = MovingAverage(model.networks()[recipe.kept])
        self.batches = Batches(examples, seed, device)
        whole = asdict(recipe)  # type: ignore[call-overload]
        lasting = {k: v for k, v in whole.items() if k != "steps"}  # a run may go on
        self.identity = json.dumps(
            {
                "recipe": lasting,
                "seed": seed,
                "data": examples.fingerprint,
                "dtype": dtype,
            },
            sort_keys=True,
        )
        self.step = 0
        self.seconds = 0.0  # of earlier attempts
        self._started = time.monotonic()

    def run_step(self) -> dict[str, float]:
        """All updates of one step and the moving average; returns `update/name` figures."""
        trained = {update.part for update in self.updates}
        for part, network in self.model.networks().items():
            network.train(part in trained)  # what is not trained is as when it is used
        figures: dict[str, float] = {}
        for update in self.updates:
            for repeat in range(update.repeat):
                values = self._run_update(update, self.step * update.repeat + repeat)
                figures |= {f"{update.name}/{name}": value for name, value in values.items()}
        self.step += 1
        self.average.update(self.recipe.decay(self.step))
        return figures

    def _run_update(self, update: Update, count: int) -> dict[str, float]:
        places = torch.arange(count * update.batch, (count + 1) * update.batch)
        seeds = sample_seeds(self.seed, places).to(self.device)
        draws = Draws(seeds, f"train-{self.seed}/{update.name}", count)
        batch = self.batches.take(int(places[0]), seeds) if update.reads_data else None
        return self.runners[update.name].run(batch, draws)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = part_states(self.model.networks())
        tensors |= {f"average.{k}": t for k, t in self.average.state.items()}
        for name, runner in self.runners.items():
            tensors |= {f"optimizer.{name}.{k}": t for k, t in runner.state().items()}
        return tensors

    def elapsed(self) -> float:
        """Seconds of training, earlier attempts included up to their last checkpoint."""
        return self.seconds + time.monotonic() - self._started

    def save(self, folder: Path) -> Path:
        """Write the moving average as the weights one would use, then the whole state.

        In this order the weights are never older than the state that a resumed run goes on from.
        """
        weights = folder / WEIGHTS_FILE
        averaged = {f"{self.recipe.kept}.{k}": t for k, t in self.average.state.items()}
        save_weights(weights, averaged, {"step": str(self.step), "seed": str(self.seed)})
        metadata = {"step": str(self.step), "identity": self.identity}
        metadata["seconds"] = repr(self.elapsed())
        write(folder / STATE_FILE, self._tensors(), metadata)
        return weights

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Continue from `folder` if it has a state.

        Raises:
            CheckpointError: if the state is damaged or belongs to another recipe, seed or data set.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return
        tensors, metadata = read(path)
        if metadata.get("identity") != self.identity:
            raise CheckpointError(
                f"{path} was written by another recipe, seed, precision or data set; "
                "give a new folder or remove it to start again."
            )
        for runner in self.runners.values():
            prefix = f"optimizer.{runner.update.name}."
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            runner.load_state({k: t.clone() for k, t in own.items()})
        expected = part_states(self.model.networks())
        found = {k: t for k, t in tensors.items() if not k.startswith(("optimizer.", "average."))}
        check_shapes(found, expected, path)
        for key, tensor in found.items():
            expected[key].copy_(tensor)
        prefix = "average."
        self.average.load(
            {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        )
        self.step = int(metadata["step"])
        self.seconds = float(metadata["seconds"])


def train(
    model: Any,
    recipe: Recipe,
    examples: Examples,
    *,
    seed: int,
    folder: Path,
    device: str = "cpu",
    dtype: Precision = "fp32",
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    log_every: int = 20,
    checkpoint_every: int = 200,
) -> TrainResult:
    """Train to `recipe.steps` steps, continuing from `folder` if a checkpoint is there.

    Args:
        model: Of the catalogue, with `networks()`.
        recipe: How it is trained.
        examples: What it learns from.
        seed: Of all draws and the order of images. The initial weights are the caller's.
        folder: Holds the state and the weights; written atomically every `checkpoint_every` steps.
        device: Where to train.
        dtype: `fp32`, or `bf16` for autocast.
        on_log: Called with (step, figures) every `log_every` steps and after the last.
        log_every: Steps.
        checkpoint_every: Steps.

    Raises:
        NonFiniteLoss: if a loss or gradient is not finite; the last checkpoint stays.
        CheckpointError: if the folder belongs to another run.
    """
    model.to(device)
    run = Training(model, recipe, examples, seed=seed, device=device, dtype=dtype)
    run.load(folder)
    weights = folder / WEIGHTS_FILE
    figures: dict[str, float] = {}
    while run.step < recipe.steps:
        try:
            figures = run.run_step()
        except FloatingPointError as error:
            kept = weights if weights.exists() else None
            raise NonFiniteLoss(run.step, str(error), kept) from error
        last = run.step == recipe.steps
        if on_log and (last or run.step % log_every == 0):
            on_log(run.step, figures)
        if last or run.step % checkpoint_every == 0:
            run.save(folder)
    if not math.isfinite(sum(float(t.float().sum()) for t in run.average.state.values())):
        raise NonFiniteLoss(run.step, "the moving average is not finite", None)
    with torch.no_grad():
        kept = model.networks()[recipe.kept].state_dict()
        for key, tensor in run.average.state.items():
            kept[key].copy_(tensor)
    model.eval()
    return TrainResult(run.step, run.elapsed(), weights, sha256_of(weights), figures)
