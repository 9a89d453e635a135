"""The performance cell: how fast, how much memory, how much work, for one phase of one model.

The passes run in this order, each alone: build, move, (compile,) first call, warm-up, latency,
device events, throughput, memory, energy, FLOPs, profile. Nothing is profiled or sampled inside a
timed pass. Rows are written as soon as a pass is over; what a lack of memory prevents becomes
rows with a null value and that reason, and the error goes on to the worker, which calls it "oom".
"""

import dataclasses
from typing import Any

from visgen_bench.cell import PerformanceCell
from visgen_bench.cells.ranks import Ranks
from visgen_bench.context import Context, Invalid, Unavailable
from visgen_bench.measure import (
    contention,
    energy,
    environment,
    flops,
    memory,
    peaks,
    profiling,
    timing,
)

# What every performance cell reports; after a failure those that are missing become null rows.
HEADLINES = (
    ("latency", "p50"),
    ("throughput", "value"),
    ("mem_alloc_peak", "value"),
    ("mem_reserved_peak", "value"),
    ("mem_host_peak", "value"),
    ("flops", "value"),
    ("flops_dense", "value"),
    ("mfu", "value"),
    ("energy_j_per_sample", "value"),
)


FIRST_FRAMES = 5  # calls whose median is reported


def run(cell: PerformanceCell, context: Context) -> None:
    """Measure `cell` on this rank; rank 0 writes the rows of all ranks.

    Raises:
        Unavailable: for a combination that cannot run here, before anything was measured.
        torch.OutOfMemoryError, MemoryError, RuntimeError: as the model raises them, after the
            missing headline numbers were written as null.
        ValueError: if `generate` does not give one uint8 picture a seed; nothing is timed then.
    """
    from visgen_bench.presets import config_of

    measure(cell, config_of(cell), context)


def measure(cell: PerformanceCell, config: Any, context: Context) -> None:
    """As `run`, for a config that is in hand."""
    from visgen_bench.cells.workload import refuse_impossible

    refuse_impossible(cell, config)
    report = Report(cell, context)
    try:
        _measure(cell, config, report)
    except Unavailable:
        raise
    except (RuntimeError, MemoryError) as error:
        status, reason = classify(error)
        if status == "oom":
            report.fill_missing(reason)
        raise


def classify(error: BaseException) -> tuple[str, str]:
    """(status, reason) of an error raised by a model: oom, skipped, invalid or error.

    The reason is one line and never holds a traceback, whose frames would keep tensors alive.
    """
    import torch

    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    host = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or host:
        return "oom", f"out of memory: {reason}"
    if isinstance(error, Unavailable):
        return "skipped", str(error)
    if isinstance(error, Invalid | FloatingPointError):
        return "invalid", reason
    return "error", reason


class Report:
    """Writes rows of one cell and remembers which headline numbers are still missing."""

    def __init__(self, cell: PerformanceCell, context: Context) -> None:
        self.cell = cell
        self.ranks = Ranks(context)
        self.context = context
        self.steady: bool | None = None
        self._missing = set(HEADLINES)

    def metric(self, metric: str, value: float | None, **columns: Any) -> None:
        """One row, of the cell's phase unless another is named; only rank 0 writes."""
        self._missing.discard((metric, columns.get("stat", "value")))
        if self.ranks.first:
            self.context.metric(metric, value, **{"phase": self.cell.phase, **columns})

    def statistic(self, metric: str, found: timing.Statistic, **columns: Any) -> None:
        """One row from a statistic with its interval."""
        own = {k: v for k, v in dataclasses.asdict(found).items() if v is not None}
        value = own.pop("value", None)
        self.metric(metric, value, **own, steady_state=self.steady, **columns)

    def fill_missing(self, reason: str) -> None:
        """Null rows, with the reason, for every headline number that was not reached."""
        for metric, stat in HEADLINES:
            if (metric, stat) in self._missing:
                self.metric(metric, None, stat=stat, reason=reason)


def device_of(cell: PerformanceCell, context: Context) -> str:
    """This rank's device: of several GPUs, the one with the rank's number on this host."""
    if cell.device_type == "cpu" or context.world_size == 1:
        return cell.device
    return f"{cell.device_type}:{context.rank}"


def _measure(cell: PerformanceCell, config: Any, report: Report) -> None:
    from visgen_bench.cells import workload

    device = device_of(cell, report.context)
    sync = timing.synchronizer(device)
    model = _prepare(cell, config, device, report)
    work = workload.build_workload(
        cell, config, model, device, report.ranks.rank, report.ranks.size
    )
    _first_calls(cell, work, sync, report)
    typical_s = _warm_up(cell, work.call, sync, report)
    _latency(cell, work.call, sync, device, typical_s, report)
    rate = _throughput(cell, work, sync, typical_s, report)
    _clips(work, rate, sync, report)
    _memory(work, device, report)
    _energy(work, sync, device, report)
    per_sample = _flops(cell, config, report)
    _utilisation(cell, device, per_sample, rate, report)
    if cell.profile and report.ranks.first:
        profiling.profile(work.call, sync, cell.device_type, report.context.artifacts)
    report.ranks.leave()


def rules_of(cell: PerformanceCell) -> timing.TimingRules:
    """The cell's own durations; on a GPU warm-up lasts at least a second."""
    shortest = max(cell.warmup_min_s, 0.0 if cell.device_type == "cpu" else 1.0)
    return timing.TimingRules(
        warmup_min_s=min(shortest, cell.warmup_max_s),
        warmup_max_s=cell.warmup_max_s,
        min_iters=cell.min_iters,
        min_duration_s=min(cell.min_duration_s, cell.max_duration_s),
        max_duration_s=cell.max_duration_s,
    )


def _prepare(cell: PerformanceCell, config: Any, device: str, report: Report) -> Any:
    """Build, move and, if asked, wrap for compilation; sizes of the parts."""
    import torch

    from visgen_bench.cells import workload

    torch.manual_seed(cell.seed)
    nothing = timing.synchronizer("cpu")
    built_s, model = timing.timed(lambda: config.build(attention=cell.attention), nothing)
    sync = timing.synchronizer(device)
    moved_s, _ = timing.timed(lambda: workload.place(model, cell, device), sync)
    for metric, seconds in (("model_build", built_s), ("to_device", moved_s)):
        slowest = max(report.ranks.gather(seconds))
        report.metric(metric, slowest, phase="total", timing_method="wall_sync")
    if cell.compile:
        compiled = workload.compile_networks(model, cell, report.context.state)
        report.context.progress(f"torch.compile: {', '.join(compiled)}")
    sizes = memory.part_sizes(model.networks())
    for part, size in sizes.items():
        report.metric("params", size.params, phase=part)
        report.metric("mem_params", size.param_bytes, phase=part)
        report.metric("mem_buffers", size.buffer_bytes, phase=part)
    return model


def _first_calls(cell: PerformanceCell, work: Any, sync: timing.Sync, report: Report) -> None:
    """The cold call, and a look at what it gave; with compilation also a second call.

    The difference of the two is the compiling.
    """
    first_s, given = timing.timed(work.call, sync)
    work.check(given)
    report.metric("first_call", max(report.ranks.gather(first_s)), timing_method="wall_sync")
    if cell.compile:
        second_s, _ = timing.timed(work.call, sync)
        spent = max(report.ranks.gather(first_s - second_s))
        report.metric("compile_time", spent, timing_method="wall_sync")


def _warm_up(cell: PerformanceCell, call: timing.Call, sync: timing.Sync, report: Report) -> float:
    """Seconds of a typical call on the slowest rank."""
    warmed = timing.warm_up(call, sync, rules_of(cell))
    everyone = report.ranks.gather(warmed)
    report.steady = all(one.steady for one in everyone)
    seconds = max(one.seconds for one in everyone)
    calls = max(one.calls for one in everyone)
    report.metric("warmup", seconds, n=calls, steady_state=report.steady, timing_method="wall_sync")
    return max(one.typical_s for one in everyone)


def _latency(
    cell: PerformanceCell,
    call: timing.Call,
    sync: timing.Sync,
    device: str,
    typical_s: float,
    report: Report,
) -> None:
    """Latencies of all ranks pooled from raw samples, and each rank's own median."""
    report.ranks.barrier()
    with contention.Contention() as neighbours:
        series = [timing.wall_sync(call, sync, rules_of(cell))]
    if cell.device_type == "cuda":
        series.append(timing.events(call, device, rules_of(cell), typical_s))
    for own in series:
        everyone = report.ranks.gather(own)
        pooled = [seconds for one in everyone for seconds in one.seconds]
        columns = {"timing_method": own.method, "l2": "warm", "n": len(pooled)}
        columns |= _exclusive(neighbours, report)
        options = {"percentile_method": timing.PERCENTILE_METHOD, **_setting(neighbours)}
        for found in timing.summary(pooled):
            report.statistic("latency", found, metric_opts=options, **columns)
        report.metric("outlier_frac", timing.outlier_fraction(pooled), **columns)
        name = "latency" if own.method == "wall_sync" else f"latency_{own.method}"
        for rank, one in enumerate(everyone):
            alone = len(everyone) == 1
            if report.ranks.first:
                report.context.series(
                    name,
                    one.seconds,
                    phase=cell.phase,
                    rank=-1 if alone else rank,
                    offsets=one.offsets,
                )
            if not alone:
                median = timing.summary(one.seconds)[0]
                columns["n"] = len(one.seconds)
                report.statistic("latency", median, rank=rank, **columns)


def _exclusive(neighbours: contention.Contention, report: Report) -> dict[str, Any]:
    """The column that says whether others used a CPU meanwhile; on a GPU the energy pass does."""
    if report.cell.device_type != "cpu" or report.ranks.size > 1:
        return {}
    return {"exclusive": neighbours.exclusive}


def _setting(neighbours: contention.Contention) -> dict[str, Any]:
    """What a time depends on beside the cell: switches, threads, others on the cores."""
    share = None if neighbours.share is None else round(neighbours.share, 4)
    return {"switches": environment.numeric_switches(), "cpu_share_of_others": share}


def _throughput(
    cell: PerformanceCell, work: Any, sync: timing.Sync, typical_s: float, report: Report
) -> float:
    """Samples per second of all ranks together, and each rank's own."""
    blocks, iterations = timing.window_plan(rules_of(cell), typical_s)
    barrier = report.ranks.barrier if report.ranks.size > 1 else None
    with contention.Contention() as neighbours:
        own = timing.wall_window(
            work.call, sync, blocks=blocks, iterations=iterations, barrier=barrier
        )
    everyone = report.ranks.gather(own)
    columns = {"timing_method": "wall_window", "l2": "warm", "unit": work.unit}
    columns |= _exclusive(neighbours, report)
    together = timing.throughput(everyone, work.samples)
    samples = work.samples * blocks * iterations
    options = {"blocks": blocks, "iterations": iterations, **_setting(neighbours)}
    report.statistic(
        "throughput", together, n=samples * len(everyone), metric_opts=options, **columns
    )
    for rank, one in enumerate(everyone):
        if report.ranks.first:
            rates = [work.samples * b.iterations / ((b.end_ns - b.start_ns) * 1e-9) for b in one]
            starts = [(b.start_ns - one[0].start_ns) * 1e-9 for b in one]
            place = -1 if len(everyone) == 1 else rank
            report.context.series("throughput", rates, phase=cell.phase, rank=place, offsets=starts)
        if len(everyone) > 1:
            alone = timing.throughput([one], work.samples)
            report.statistic("throughput", alone, n=samples, rank=rank, **columns)
    return together.value or 0.0


def _clips(work: Any, rate: float, sync: timing.Sync, report: Report) -> None:
    """What a clip adds: rates of its frames and codes, its seconds, its cache, its first frame.

    The rates are the throughput's; the first frame is a call of its own, the median of several.
    """
    found = work.clips
    if found is None or not rate:
        return
    columns = {"timing_method": "wall_window", "l2": "warm"}
    report.metric("clip_seconds", 1 / rate, **columns)
    report.metric("frame_rate", rate * found.frames, **columns)
    if found.tokens:
        report.metric("token_rate", rate * found.tokens, **columns)
    if found.cache_bytes is not None:
        report.metric("mem_cache", float(found.cache_bytes))
    if found.first_frame is not None:
        seconds = [timing.timed(found.first_frame, sync)[0] for _ in range(FIRST_FRAMES)]
        slowest = max(report.ranks.gather(sorted(seconds)[FIRST_FRAMES // 2]))
        report.metric("first_frame", slowest, n=FIRST_FRAMES, timing_method="wall_sync")


def _memory(work: Any, device: str, report: Report) -> None:
    """Peaks of two calls in a pass of their own; a step also by its forward, backward, optimiser.

    Host memory adds up over the ranks of a host; a device's is the largest rank's.
    """
    report.ranks.barrier()
    with memory.PeakMeter(device) as meter:
        for _ in range(2):
            work.metered(meter)
    everyone = report.ranks.gather(meter.peaks())
    parts = ["total", *(part for part in everyone[0] if part != "total")]
    for part in parts:
        phase = report.cell.phase if part == "total" else part
        own = [one[part] for one in everyone]
        _memory_rows(report, memory.over_ranks(own), phase=phase)
        if len(own) > 1 and part == "total":
            for rank, one in enumerate(own):
                _memory_rows(report, one, phase=phase, rank=rank)


def _memory_rows(report: Report, found: memory.MemoryPeaks, **columns: Any) -> None:
    options = {"method": found.host_method, "before": found.host_before}
    report.metric("mem_host_peak", found.host, metric_opts=options, **columns)
    for metric, value in (
        ("mem_alloc_peak", found.allocated),
        ("mem_reserved_peak", found.reserved),
    ):
        reason = memory.NO_DEVICE_MEMORY if value is None else None
        report.metric(metric, value, reason=reason, **columns)


def _energy(work: Any, sync: timing.Sync, device: str, report: Report) -> None:
    """Energy of the GPU over a window of its own; null with the reason on anything else."""
    found = _energy_of(work, sync, device)
    samples = work.samples * found.calls
    per_sample = None if found.joules is None else found.joules / samples
    columns = {"exclusive": found.exclusive, "throttled": found.throttled}
    report.metric(
        "energy_j_per_sample",
        per_sample,
        reason=found.reason,
        n=samples or None,
        **columns,
    )
    for metric, value in (
        ("energy_j", found.joules),
        ("power_w_mean", found.power_mean_w),
        ("power_w_idle", found.power_idle_w),
    ):
        if value is not None:
            report.metric(metric, value, **columns)


def _energy_of(work: Any, sync: timing.Sync, device: str) -> energy.Energy:
    if not device.startswith("cuda"):
        return energy.unavailable(f"no energy counter is read on {device.split(':')[0]}")
    nvml, reason = energy.open_nvml()
    if nvml is None:
        return energy.unavailable(reason or "NVML is not available")
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return energy.measure_energy(work.call, sync, nvml, energy.handle_of(nvml, uuid))


def _flops(cell: PerformanceCell, config: Any, report: Report) -> float | None:
    """FLOPs of one sample, counted on meta; null with the reason if the model cannot run there."""
    from visgen_bench.cells import workload

    options = {"convention": flops.CONVENTION, "per": "sample", "counted_on": "meta"}
    try:
        count = flops.count_flops(workload.shape_only_call(cell, config))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = f"not countable on meta: {classify(error)[1]}"
        report.metric("flops", None, reason=reason, metric_opts=options)
        report.metric("flops_dense", None, reason=reason, metric_opts=options)
        return None
    by_operator = {name: number / cell.batch for name, number in count.by_operator.items()}
    per_sample = count.flops / cell.batch
    report.metric("flops", per_sample, metric_opts={**options, "by_operator": by_operator})
    report.metric("flops_dense", count.flops_dense / cell.batch, metric_opts=options)
    return per_sample


def _utilisation(
    cell: PerformanceCell,
    device: str,
    flops_per_sample: float | None,
    samples_per_second: float,
    report: Report,
) -> None:
    """MFU from `flops`, with the peak and where it is from; null with the reason without a peak."""
    import torch

    name = environment.device_name(cell.device_type)
    if cell.device_type == "cuda":
        name = torch.cuda.get_device_name(device)
    peak = peaks.peak_for(
        cell.device_type,
        name,
        cell.dtype,
        tf32=bool(torch.backends.cuda.matmul.allow_tf32),
        peak_tflops=cell.peak_tflops,
    )
    value, reason = peaks.utilisation(flops_per_sample, samples_per_second, cell.devices, peak)
    options = {"of": "flops", "peak_flops": peak.flops, "peak_source": peak.source}
    report.metric("mfu", value, reason=reason, metric_opts=options)
