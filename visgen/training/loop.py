"""Training: batches by counter, updates in order, a moving average, and exact resume.

Everything random is a function of (seed, step, place in the batch), and everything that a step
changes is in the checkpoint, so a run that was killed and one that was not give the same weights
bit for bit on one machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from visgen.checkpoints import CheckpointError, read, save_weights, sha256_of, write
from visgen.checkpoints.weights import check_shapes, part_states
from visgen.objectives.gan import GanRecipe, updates
from visgen.objectives.update import Update
from visgen.seeds import Draws, permutation, sample_seeds
from visgen.training.moving_average import MovingAverage, decay_at
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


class TrainingImages(Protocol):
    """What the loop needs of a data set."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def splits(self) -> Mapping[str, Tensor]: ...

    def images(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor: ...


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left behind.

    Attributes:
        steps: Training steps done, over all attempts.
        seconds: Wall time, over all attempts.
        weights: Safetensors file of the generator's moving average.
        sha256: Of that file.
        figures: Last value of every logged figure, `update/name`.
    """

    steps: int
    seconds: float
    weights: Path
    sha256: str
    figures: dict[str, float]


class Batches:
    """Real images by counter: epoch e is a permutation drawn from (seed, e)."""

    def __init__(
        self, data: TrainingImages, split: str, size: tuple[int, int], seed: int, device: str
    ) -> None:
        self.data = data
        self.indices = data.splits[split]
        self.size = size
        self.seed = seed
        self.device = device
        self._epoch = -1
        self._order = self.indices

    def take(self, start: int, count: int) -> Tensor:
        """Images at places start .. start + count - 1 of the endless sequence: uint8."""
        chosen = [self._index(place) for place in range(start, start + count)]
        return self.data.images(torch.stack(chosen), self.size).to(self.device)

    def _index(self, place: int) -> Tensor:
        epoch, offset = divmod(place, len(self.indices))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self.indices[permutation(self.seed, f"epoch-{epoch}", len(self.indices))]
        return self._order[offset]


class Training:
    """One run's state: runners, moving average, position."""

    def __init__(
        self,
        model: Any,
        recipe: GanRecipe,
        data: TrainingImages,
        *,
        split: str = "train",
        seed: int,
        device: str,
        dtype: Precision,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.updates = updates(model, recipe)
        self.runners = {
            u.name: UpdateRunner(model, u, betas=recipe.betas, clip=recipe.clip, dtype=dtype)
            for u in self.updates
        }
        self.average = MovingAverage(model.networks()["generator"])
        self.batches = Batches(data, split, model.image_size, seed, device)
        lasting = {k: v for k, v in asdict(recipe).items() if k != "steps"}  # a run may go on
        self.identity = json.dumps(
            {
                "recipe": lasting,
                "seed": seed,
                "data": data.fingerprint,
                "split": split,
                "dtype": dtype,
            },
            sort_keys=True,
        )
        self.step = 0
        self.seconds = 0.0  # of earlier attempts
        self._started = time.monotonic()

    def run_step(self) -> dict[str, float]:
        """All updates of one step and the moving average; returns `update/name` figures."""
        self.model.train()
        figures: dict[str, float] = {}
        for update in self.updates:
            for repeat in range(update.repeat):
                values = self._run_update(update, self.step * update.repeat + repeat)
                figures |= {f"{update.name}/{name}": value for name, value in values.items()}
        self.step += 1
        self.average.update(self._decay())
        return figures

    def _run_update(self, update: Update, count: int) -> dict[str, float]:
        places = torch.arange(count * update.batch, (count + 1) * update.batch)
        seeds = sample_seeds(self.seed, places).to(self.device)
        draws = Draws(seeds, f"train-{self.seed}/{update.name}", count)
        batch = self.batches.take(int(places[0]), update.batch) if update.reads_data else None
        return self.runners[update.name].run(batch, draws)

    def _decay(self) -> float:
        recipe = self.recipe
        if recipe.ema is not None:
            return recipe.ema
        seen = self.step * recipe.critic_steps * recipe.batch
        return decay_at(seen, recipe.batch, recipe.ema_half_life, recipe.ema_warmup)

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
        averaged = {f"generator.{k}": t for k, t in self.average.state.items()}
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
    recipe: GanRecipe,
    data: TrainingImages,
    *,
    split: str = "train",
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
        model: A GAN of the catalogue, with `networks()`, `latent` and `image_size`.
        recipe: How it is trained.
        data: Resized to the model's images.
        split: Which of its pictures are learned from.
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
    run = Training(model, recipe, data, split=split, seed=seed, device=device, dtype=dtype)
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
        generator = part_states({"generator": model.networks()["generator"]})
        for key, tensor in run.average.state.items():
            generator[f"generator.{key}"].copy_(tensor)
    model.eval()
    return TrainResult(run.step, run.elapsed(), weights, sha256_of(weights), figures)
