"""What a performance cell repeats: one call that samples, or one optimiser step of one part.

`sample` draws a batch of pictures or clips up to uint8. A step (`PARTS`) is what the training loop
does (`visgen.training.UpdateRunner`): loss with its penalties, backward, clipping, optimiser. Real
samples, codes and conditions are synthetic: speed does not depend on them.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visgen.conditions import Actions, ClassLabel, Condition, FirstFrames, Text, combined
from visgen.objectives.gan import GanRecipe
from visgen.objectives.prediction import PredictorRecipe
from visgen.objectives.update import Update
from visgen.objectives.videogpt import CodeBatch, PriorRecipe, VqvaeRecipe
from visgen.seeds import Draws, integers, sample_seeds
from visgen.training import UpdateRunner
from visgen_bench import media
from visgen_bench.cell import PerformanceCell
from visgen_bench.cells.generated import check_clips, check_pictures
from visgen_bench.context import Unavailable
from visgen_bench.measure.memory import PeakMeter
from visgen_bench.recipes import Recipe

PARTS = {
    "d_step": "discriminator",
    "g_step": "generator",
    "vqvae_step": "vqvae",
    "prior_step": "prior",
    "predictor_step": "predictor",
}
_RECIPES: dict[str, type[VqvaeRecipe | PriorRecipe | PredictorRecipe]] = {
    "vqvae_step": VqvaeRecipe,
    "prior_step": PriorRecipe,
    "predictor_step": PredictorRecipe,
}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A network counts as convolutional, and channels_last as meant for it, if most weights are in 4-d
# kernels wider than one pixel: elsewhere the format changes nothing but the row's label.
CONVOLUTIONAL_SHARE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipWork:
    """What one drawn clip consists of.

    `tokens` are the codes that are drawn for it, `cache_bytes` what the keys and values of a batch
    take; both None for a model without codes. `first_frame` draws as much as a first frame takes.
    """

    frames: int
    tokens: int | None = None
    cache_bytes: int | None = None
    first_frame: Callable[[], object] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One call of a phase; `metered` is the same call, marking the parts of a step as it goes.

    `check` raises ValueError if what a call gave is not what the phase makes; it is never timed.
    `unit` is the throughput's; `clips` is None for pictures and for training steps.
    """

    call: Callable[[], object]
    metered: Callable[[PeakMeter], object]
    samples: int
    check: Callable[[object], None] = lambda _: None
    unit: str = "img/s"
    clips: ClipWork | None = None


def recipe_of(cell: PerformanceCell, config: Any) -> Recipe:
    """The recipe of a step, at the cell's batch and without accumulation.

    The cell's own, else the preset's; else that of the objective with its defaults, for a GAN
    TransGAN's without augmentation.
    """
    own = cell.recipe or getattr(config, "recipe", None)
    if cell.phase not in _RECIPES:
        if not isinstance(own, GanRecipe):
            own = GanRecipe(objective="wgangp-eps", steps=1, batch=cell.batch)
        return dataclasses.replace(
            own, batch=cell.batch, g_batch=cell.batch, accumulate_d=1, accumulate_g=1
        )
    kind = _RECIPES[cell.phase]
    if not isinstance(own, kind):
        own = kind(steps=1, batch=cell.batch)
    return dataclasses.replace(own, batch=cell.batch, accumulate=1)


def refuse_impossible(cell: PerformanceCell, config: Any) -> None:
    """Raise Unavailable, with the reason, for a combination that cannot run here."""
    if not hasattr(config, "build"):
        raise Unavailable(f"{cell.model} draws from data and has no network to time")
    if cell.device_type == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"device {cell.device}: torch sees no CUDA device here")
    if cell.memory_format == "channels_last":
        _refuse_unused_format(cell, config)
    if cell.phase != "sample":
        _refuse_impossible_step(cell, recipe_of(cell, config))
    if cell.compile and cell.device_type == "cpu" and not _has_compiler():
        raise Unavailable(
            "torch.compile on a CPU needs a C++ compiler (g++ or clang++), none found"
        )


def _refuse_unused_format(cell: PerformanceCell, config: Any) -> None:
    with torch.device("meta"):
        model = config.build(attention=cell.attention)
    for part, network in model.networks().items():
        if not is_convolutional(network):
            raise Unavailable(
                f"channels_last lays out convolution weights; {cell.model}'s {part} has few"
            )


def _refuse_impossible_step(cell: PerformanceCell, recipe: Recipe) -> None:
    if cell.devices > 1:
        raise Unavailable(
            f"{cell.phase} over {cell.devices} devices needs data-parallel updates, "
            "which the training loop does not have yet"
        )
    if cell.dtype == "fp16":
        raise Unavailable(f"{cell.phase} in fp16 needs loss scaling; use bf16")
    penalised = isinstance(recipe, GanRecipe) and recipe.differentiates_twice
    if cell.compile and cell.phase == "d_step" and penalised:
        raise Unavailable(
            "d_step with a gradient penalty differentiates twice, which torch.compile cannot"
        )


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def is_convolutional(network: nn.Module) -> bool:
    """True if most of the network's weights are in convolution kernels wider than one pixel."""
    sizes = [(p.numel(), p.ndim == 4 and max(p.shape[2:]) > 1) for p in network.parameters()]
    kernels = sum(size for size, kernel in sizes if kernel)
    return kernels > CONVOLUTIONAL_SHARE * sum(size for size, _ in sizes)


def place(model: Any, cell: PerformanceCell, device: str) -> None:
    """Move the networks to the device, in the cell's memory format."""
    if cell.memory_format == "channels_last":
        for network in model.networks().values():
            network.to(memory_format=torch.channels_last)
    model.to(device)


def compile_networks(model: Any, cell: PerformanceCell, folder: Path) -> tuple[str, ...]:
    """Compile in place what the phase may compile; the names of these parts.

    The compiler's caches are a new folder below `folder`, so that every compile is a cold one.

    In a step only the generator: a discriminator names its noise by the step's number, which
    torch.compile takes for a constant and would compile anew at every step.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-", dir=folder)
    parts = [name for name in model.networks() if name == "generator" or cell.phase == "sample"]
    for name in parts:
        model.networks()[name].compile()
    return tuple(parts)


def autocast(cell: PerformanceCell, device: str) -> Any:
    """The context that gives the cell's dtype; weights stay float32."""
    if cell.dtype == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, AUTOCAST[cell.dtype])


def sampling(
    cell: PerformanceCell, config: Any, model: Any, device: str, rank: int, world: int
) -> Workload:
    """Draw `batch` samples; rank r of w has the samples r, r + w, ... of the run."""
    indices = torch.arange(cell.batch) * world + rank
    seeds = sample_seeds(cell.seed, indices).to(device)
    asked = sample_arguments(cell, config)

    def call() -> Tensor:
        with autocast(cell, device):
            return model.generate(seeds, *asked)

    def check(samples: object) -> None:
        look = check_clips if media.has_clips(cell, config) else check_pictures
        look(samples, cell.batch, model, cell.model)

    clips = _clip_work(cell, config, model, seeds, asked) if asked else None
    return Workload(
        call=call,
        metered=lambda meter: call(),
        samples=cell.batch,
        check=check,
        unit="clips/s" if clips else "img/s",
        clips=clips,
    )


def _clip_work(
    cell: PerformanceCell, config: Any, model: Any, seeds: Tensor, asked: tuple[Any, ...]
) -> ClipWork:
    """Frames of a clip; of a model with codes also what it draws and keeps for it."""
    frames = (cell.sampling or {}).get("frames") or config.clip_size[0]
    if not hasattr(model, "preview"):
        return ClipWork(frames=int(frames))
    return ClipWork(
        frames=int(frames),
        tokens=model.codes_of(*asked),
        cache_bytes=model.cache_bytes(len(seeds), *asked),
        first_frame=lambda: model.preview(seeds, *asked),
    )


def sample_arguments(cell: PerformanceCell, config: Any) -> tuple[Any, ...]:
    """What `generate` is given beside the seeds."""
    if not media.has_clips(cell, config):
        return ()
    choices = None if cell.sampling is None else config.sampling_choices(**cell.sampling)
    return synthetic_condition(cell, config), choices


def synthetic_images(n: int, size: tuple[int, int], seed: int) -> Tensor:
    """Uniform noise, uint8 (n, 3, h, w)."""
    return _noise(n, (3, *size), seed)


def synthetic_clips(n: int, clip_size: tuple[int, int, int], seed: int) -> Tensor:
    """Uniform noise, uint8 (n, t, 3, h, w)."""
    frames, *size = clip_size
    return _noise(n, (frames, 3, *size), seed)


def _noise(n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    seeds = sample_seeds(seed, torch.arange(n))
    return integers(seeds, "images", 0, 256, shape).to(torch.uint8)


def synthetic_condition(cell: PerformanceCell, config: Any) -> Condition | None:
    """What the cell's condition asks of `batch` clips; what exactly does not change the speed."""
    n, parts = cell.batch, []
    rows, columns = config.clip_size[1:]
    for kind in cell.conditions:
        if kind == "class":
            parts.append(ClassLabel(torch.arange(n) % config.prior.classes))
        elif kind == "frames":
            clips = synthetic_clips(n, (config.context, rows, columns), cell.seed)
            parts.append(FirstFrames(clips))
        elif kind == "text":
            parts.append(Text((" ".join(config.prior.words[: config.prior.text_tokens]),) * n))
        else:
            parts.append(Actions(torch.ones(n, config.prior.actions)))
    return combined(parts)


def synthetic_batch(cell: PerformanceCell, config: Any, model: Any) -> Any:
    """What one step of the cell's phase learns from."""
    if not media.has_clips(cell, config):
        return synthetic_images(cell.batch, model.image_size, cell.seed)
    if cell.phase != "prior_step":
        return synthetic_clips(cell.batch, config.clip_size, cell.seed)
    seeds = sample_seeds(cell.seed, torch.arange(cell.batch))
    codes = integers(seeds, "codes", 0, config.prior.codes, config.prior.grid)
    return CodeBatch(codes, model.condition_tensors(synthetic_condition(cell, config)))


def step_update(cell: PerformanceCell, config: Any, model: Any) -> tuple[Update, Recipe]:
    """The update that the phase carries out, and its recipe.

    Raises Unavailable if the model has no such part.
    """
    recipe = recipe_of(cell, config)
    part = PARTS[cell.phase]
    if part not in model.networks():
        raise Unavailable(f"{cell.phase} trains a {part}, and {cell.model} has none")
    found = [update for update in recipe.updates(model) if update.part == part]
    return found[0], recipe


def training_step(cell: PerformanceCell, config: Any, model: Any, device: str) -> Workload:
    """One optimiser step of the phase's part, by the training loop's own runner."""
    update, recipe = step_update(cell, config, model)
    for part, network in model.networks().items():
        network.train(part == update.part or not media.has_clips(cell, config))
    real = synthetic_batch(cell, config, model).to(device)
    seeds = sample_seeds(cell.seed, torch.arange(cell.batch)).to(device)
    meters: list[PeakMeter] = []

    def loss(batch: Any, draws: Draws) -> dict[str, Tensor]:
        values = update.loss(batch, draws)
        for meter in meters:
            meter.mark("fwd")
        return values

    runner = UpdateRunner(
        model,
        dataclasses.replace(update, loss=loss),
        betas=recipe.betas,
        clip=recipe.clip,
        dtype="bf16" if cell.dtype == "bf16" else "fp32",
    )

    def backward_is_over(*_: object) -> None:
        for meter in meters:
            meter.mark("bwd")

    runner.optimizer.register_step_pre_hook(backward_is_over)
    steps = iter(range(2**62))

    def call() -> object:
        draws = Draws(seeds, f"performance/{cell.phase}", next(steps))
        return runner.run(real if update.reads_data else None, draws)

    def metered(meter: PeakMeter) -> object:
        meters.append(meter)
        try:
            result = call()
            meter.mark("opt")
            return result
        finally:
            meters.remove(meter)

    unit = "clips/s" if media.has_clips(cell, config) else "img/s"
    return Workload(call=call, metered=metered, samples=cell.batch, unit=unit)


def build_workload(
    cell: PerformanceCell, config: Any, model: Any, device: str, rank: int = 0, world: int = 1
) -> Workload:
    """The cell's phase on a model that lies on `device`."""
    if cell.phase == "sample":
        return sampling(cell, config, model, device, rank, world)
    return training_step(cell, config, model, device)


class _NoDraws(Draws):
    """Draws of the right shape and no values: on meta the integer rounds only cost time."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(len(self.seeds), *shape, device="meta")

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self.normal(name, shape)

    def integers(self, name: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.empty(len(self.seeds), *shape, dtype=torch.int64, device="meta")

    def fork(self, name: str) -> Draws:
        return _NoDraws(self.seeds, f"{self.stream}/{name}", self.step)


def shape_only_call(cell: PerformanceCell, config: Any) -> Callable[[], object]:
    """The phase on the meta device with the dense attention: shapes flow, nothing is computed.

    A step runs its loss and its backward pass; the optimiser has no countable operation.
    """
    with torch.device("meta"):
        model = config.build(attention="reference")
    seeds = torch.empty(cell.batch, dtype=torch.int64, device="meta")
    if media.has_clips(cell, config):
        return _clip_call(cell, config, model, seeds)
    if cell.phase == "sample":
        return lambda: model.generate(seeds)
    update, _ = step_update(cell, config, model)
    model.train()
    for part, network in model.networks().items():
        network.requires_grad_(part == update.part)
    real = torch.empty(cell.batch, 3, *model.image_size, dtype=torch.uint8, device="meta")

    def call() -> None:
        values = update.loss(real if update.reads_data else None, _NoDraws(seeds, "count"))
        values["loss"].backward()

    return call


def held_call(cell: PerformanceCell, config: Any) -> Callable[[], object]:
    """As `shape_only_call`, for what a phase holds at a time rather than for what it computes.

    A model that draws code after code never holds the whole of `work`; its decoder is the peak.
    """
    with torch.device("meta"):
        model = config.build(attention="reference")
    if cell.phase != "sample" or not hasattr(model, "codes_of"):
        return shape_only_call(cell, config)
    codes = torch.empty(cell.batch, *config.prior.grid, dtype=torch.int64, device="meta")
    return lambda: model.decode(codes)


def _clip_call(
    cell: PerformanceCell, config: Any, model: Any, seeds: Tensor
) -> Callable[[], object]:
    """As `shape_only_call`; a model that draws code after code says what all of them together do.

    Drawing one code depends on the one before, which meta tensors do not hold: `work` of the model
    runs what its cached steps compute, all at once.
    """
    asked = sample_arguments(cell, config)
    if cell.phase == "sample":
        whole = getattr(model, "work", None) or model.generate
        return lambda: whole(seeds, *asked)
    update, _ = step_update(cell, config, model)
    # In eval mode: dropout and a moving codebook ask for values, and multiply no matrices.
    for part, network in model.networks().items():
        network.requires_grad_(part == update.part)
    batch = synthetic_batch(cell, config, model).to("meta")

    def call() -> None:
        update.loss(batch, _NoDraws(seeds, "count"))["loss"].backward()

    return call
