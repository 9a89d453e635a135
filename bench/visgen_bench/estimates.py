"""What a cell may cost before it has run: from its own history, else from a model of its FLOPs.

An estimate is never a measurement: it is printed with its basis, and an unknown one is None.
"""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visgen.objectives.gan import GanRecipe
from visgen_bench import media
from visgen_bench.cell import (
    DEFAULT_SAMPLES,
    Cell,
    PerformanceCell,
    Phase,
    QualityCell,
    Sampled,
    TrainCell,
    threads_of,
)
from visgen_bench.recipes import Recipe
from visgen_results.rows import to_rows
from visgen_results.store import Store

# What one CPU core is assumed to do; an order of magnitude, and printed as such.
FLOPS_PER_CORE = 10e9
EXTRACTOR_S_PER_IMAGE = 0.006  # EfficientNet-Lite0 at 64 px on one core, measured 167 images/s
WORKER_BYTES = 420 * 2**20  # a worker that has imported torch, measured
EXTRACTOR_BYTES = 180 * 2**20  # a feature network, its activations, features
# Buffers inside operators and the allocator's slack: with it the model meets the measured peaks of
# TransGAN-CIFAR (sampling at batch 8 and 32, D step at batch 8) within 4 %.
SLACK = 1.8
GRID_BYTES = 300 * 2**10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds, bytes of memory, bytes on disk; None where nothing is known."""

    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    basis: str = "unknown"


UNKNOWN = Estimate()


def estimate(cell: Cell, config: Any, past: Mapping[str, Any] | None, store: Store) -> Estimate:
    """The cost of a cell.

    Args:
        cell: As it will run.
        config: Its preset; None for a folder of images.
        past: The newest ok `runs` row of the same cell, if there is one.
        store: Where that run's peak memory is looked up.
    """
    if past is not None:
        return Estimate(
            seconds=past["duration_s"],
            memory=_past_memory(store, past["run_id"]),
            disk=GRID_BYTES if cell.kind == "quality" else 0,
            basis=f"history: run {past['run_id']}",
        )
    if config is None or not hasattr(config, "build"):
        return _by_extraction(cell)
    return _by_flops(cell, config)


def _past_memory(store: Store, run_id: str) -> int | None:
    rows = to_rows(store.read("metrics"))
    peaks = [
        row["value"]
        for row in rows
        if row["run_id"] == run_id and row["metric"] == "mem_host_peak" and row["value"]
    ]
    return int(max(peaks)) if peaks else None


def _by_extraction(cell: Cell) -> Estimate:
    """A cell that draws nothing from a network: the features of its samples are its cost."""
    if not isinstance(cell, QualityCell):
        return Estimate()
    samples = (cell.samples or DEFAULT_SAMPLES) * _frames(cell, None)
    seconds = samples * EXTRACTOR_S_PER_IMAGE / threads_of(cell)
    return Estimate(
        seconds=seconds,
        memory=WORKER_BYTES + EXTRACTOR_BYTES,
        disk=GRID_BYTES,
        basis="model: 6 ms a sample and core",
    )


def _by_flops(cell: Cell, config: Any) -> Estimate:
    if cell.device_type != "cpu":
        return Estimate()
    if isinstance(cell, QualityCell):
        return _quality(cell, config)
    if isinstance(cell, TrainCell):
        return _train(cell, config)
    return _performance(cell, config)


def _frames(cell: QualityCell, config: Any) -> int:
    """Pictures that the extractor sees of one sample."""
    if not media.is_video(cell.data):
        return 1
    return media.clip_of(cell, config).frames


_BASIS = "model: 10 GFLOP/s a core, weights and live tensors of one batch"


def _quality(cell: QualityCell, config: Any) -> Estimate:
    work = _work(config, "sample", cell.batch, None, _asked(cell))
    samples = cell.samples or DEFAULT_SAMPLES
    memory = WORKER_BYTES + EXTRACTOR_BYTES + work.weights
    if work.flops is None or work.live is None:
        return Estimate(memory=memory, disk=GRID_BYTES, basis=work.basis)
    rate = FLOPS_PER_CORE * threads_of(cell)
    looked = _frames(cell, config) * EXTRACTOR_S_PER_IMAGE / threads_of(cell)
    once = work.flops / cell.batch / rate + looked
    memory += int(SLACK * work.live)
    return Estimate(seconds=samples * once, memory=memory, disk=GRID_BYTES, basis=work.basis)


def _train(cell: TrainCell, config: Any) -> Estimate:
    """Every update at the recipe's batches; weights, gradients, an average, at most two moments."""
    recipe, pieces = cell.recipe, _pieces(cell.recipe)
    works = [_work(config, phase, max(1, n // parts), recipe) for phase, n, parts, _ in pieces]
    memory, disk = WORKER_BYTES + 5 * works[0].weights, 5 * works[0].weights
    flops = [
        None if work.flops is None else work.flops * parts * repeat
        for work, (_, _, parts, repeat) in zip(works, pieces, strict=True)
    ]
    live = [work.live for work in works]
    if None in flops or None in live:
        return Estimate(memory=memory, disk=disk, basis="model: size of the networks")
    seconds = recipe.steps * sum(filter(None, flops)) / (FLOPS_PER_CORE * threads_of(cell))
    memory += int(SLACK * max(filter(None, live)))
    return Estimate(seconds=seconds, memory=memory, disk=disk, basis=_BASIS)


def _pieces(recipe: Recipe) -> tuple[tuple[Phase, int, int, int], ...]:
    """(phase, batch, micro-batches, repeats) of every update of a training step."""
    if isinstance(recipe, GanRecipe):
        return (
            ("d_step", recipe.batch, recipe.accumulate_d, recipe.critic_steps),
            ("g_step", recipe.g_batch or recipe.batch, recipe.accumulate_g, 1),
        )
    phases: dict[str, Phase] = {"vqvae": "vqvae_step", "prior": "prior_step"}
    phase = phases.get(recipe.objective, "predictor_step")
    return ((phase, recipe.batch, recipe.accumulate, 1),)


def _performance(cell: PerformanceCell, config: Any) -> Estimate:
    """Warm-up, latency and window passes; each lasts its minimum, or its minimum of calls."""
    work = _work(config, cell.phase, cell.batch, cell.recipe, _asked(cell))
    memory = WORKER_BYTES + work.weights + work.moments
    if work.flops is None or work.live is None:
        return Estimate(memory=memory, disk=0, basis=work.basis)
    call = work.flops / (FLOPS_PER_CORE * threads_of(cell))
    warm = max(cell.warmup_min_s, 3 * call)
    measured = min(cell.max_duration_s, max(cell.min_duration_s, cell.min_iters * call))
    seconds = warm + 2 * measured + 4 * call
    memory += int(SLACK * work.live)
    return Estimate(seconds=seconds, memory=memory, disk=0, basis=work.basis)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One call of a phase at one batch: bytes and FLOPs; None if the model cannot run on meta.

    `weights` are the bytes of all parts, `moments` those of the optimiser of the part that is
    trained, `live` what the call's own tensors hold at most.
    """

    weights: int
    moments: int
    flops: float | None
    live: int | None

    @property
    def basis(self) -> str:
        """What an estimate from this rests on."""
        return "model: size of the networks" if self.flops is None else _BASIS


Asked = tuple[str | None, tuple[tuple[str, float | int | bool], ...]]  # condition, sampling
NOTHING: Asked = (None, ())


def _asked(cell: Sampled) -> Asked:
    return cell.condition, tuple(sorted((cell.sampling or {}).items()))


@functools.cache
def _work(
    config: Any, phase: Phase, batch: int, recipe: Recipe | None, asked: Asked = NOTHING
) -> Work:
    """The work of a call, from shapes alone."""
    import torch

    from visgen_bench.cells.workload import PARTS, held_call, shape_only_call
    from visgen_bench.context import Unavailable
    from visgen_bench.footprint import peak_bytes
    from visgen_bench.measure.flops import count_flops

    with torch.device("meta"):
        networks = config.build(attention="reference").networks()
    sizes = {
        part: sum(p.numel() * p.element_size() for p in network.parameters())
        for part, network in networks.items()
    }
    moments = 2 * sizes.get(PARTS.get(phase, ""), 0)
    condition, sampling = asked
    cell = PerformanceCell(
        model="estimated",
        phase=phase,
        batch=batch,
        recipe=recipe,
        condition=condition,
        sampling=dict(sampling) or None,
    )
    flops, live = None, None
    with contextlib.suppress(
        RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, Unavailable
    ):
        flops = float(count_flops(shape_only_call(cell, config)).flops)
        live = peak_bytes(held_call(cell, config))
    return Work(weights=sum(sizes.values()), moments=moments, flops=flops, live=live)
