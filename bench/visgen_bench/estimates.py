"""What a cell may cost before it has run: from its own history, else from a model of its FLOPs.

An estimate is never a measurement: it is printed with its basis, and an unknown one is None.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visgen_bench.cell import (
    DEFAULT_SAMPLES,
    Cell,
    PerformanceCell,
    QualityCell,
    TrainCell,
    threads_of,
)
from visgen_results.rows import to_rows
from visgen_results.store import Store

# What one CPU core is assumed to do; an order of magnitude, and printed as such.
FLOPS_PER_CORE = 10e9
EXTRACTOR_S_PER_IMAGE = 0.006  # EfficientNet-Lite0 at 64 px on one core, measured 167 images/s
BASE_BYTES = 600 * 2**20  # an interpreter that has imported torch
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
    seconds = (cell.samples or DEFAULT_SAMPLES) * EXTRACTOR_S_PER_IMAGE / threads_of(cell)
    return Estimate(
        seconds=seconds, memory=BASE_BYTES, disk=GRID_BYTES, basis="model: 6 ms a sample and core"
    )


def _by_flops(cell: Cell, config: Any) -> Estimate:
    if cell.device_type != "cpu":
        return Estimate()
    size, per_sample = _size_and_flops(config)
    rate = FLOPS_PER_CORE * threads_of(cell)
    basis = "model: 10 GFLOP/s a core"
    if per_sample is None:
        return Estimate(memory=BASE_BYTES + size, disk=0, basis="model: size of the networks")
    once = per_sample / rate
    if isinstance(cell, QualityCell):
        samples = cell.samples or DEFAULT_SAMPLES
        seconds = samples * (once + EXTRACTOR_S_PER_IMAGE / threads_of(cell))
        return Estimate(seconds=seconds, memory=BASE_BYTES + 2 * size, disk=GRID_BYTES, basis=basis)
    if isinstance(cell, TrainCell):
        # Forward and backward of both networks; the critic's share is taken as the generator's.
        per_step = 3 * once * (cell.recipe.batch * cell.recipe.critic_steps * 2 + cell.recipe.batch)
        return Estimate(
            seconds=per_step * cell.recipe.steps,
            memory=BASE_BYTES + 5 * size,
            disk=5 * size,
            basis=basis,
        )
    return Estimate(
        seconds=_performance_seconds(cell, once), memory=BASE_BYTES + 2 * size, disk=0, basis=basis
    )


def _performance_seconds(cell: PerformanceCell, once: float) -> float:
    """Warm-up, latency and window passes; each lasts its minimum, or its minimum of calls."""
    call = once * cell.batch * (1 if cell.phase == "sample" else 9)
    warm = max(cell.warmup_min_s, 3 * call)
    measured = min(cell.max_duration_s, max(cell.min_duration_s, cell.min_iters * call))
    return warm + 2 * measured + 4 * call


@functools.cache
def _size_and_flops(config: Any) -> tuple[int, float | None]:
    """(bytes of all parameters, FLOPs of one sample), without memory for either."""
    import torch

    from visgen_bench.measure.flops import count_flops

    with torch.device("meta"):
        model = config.build(attention="reference")
        networks = model.networks().values()
        size = sum(p.numel() * p.element_size() for n in networks for p in n.parameters())
    seeds = torch.empty(1, dtype=torch.int64, device="meta")
    try:
        return size, count_flops(lambda: model.generate(seeds)).flops
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return size, None  # a model that cannot run on meta; its size is known all the same
