"""Measuring one group in this process: all backends of a shape in a direction, side by side.

The passes run in this order, each alone: first call (compiling included), accuracy and
determinism, memory, warm-up, timed rounds in turns, and on a GPU graphs and Proton. A backend that
cannot take part, or fails, ends with its reason and the others go on.
"""

from __future__ import annotations

import dataclasses
import gc
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from visgen_bench.context import Sink
from visgen_bench.kernels_bench import accuracy, turns, work
from visgen_bench.kernels_bench.calls import Prepared, Side, prepare
from visgen_bench.kernels_bench.ceilings import Ceilings, ceilings
from visgen_bench.kernels_bench.executed import executed
from visgen_bench.kernels_bench.names import OURS
from visgen_bench.kernels_bench.problem import DTYPES, Problem
from visgen_bench.kernels_bench.refusals import refusal
from visgen_bench.kernels_bench.report import Report
from visgen_bench.kernels_bench.request import Group
from visgen_bench.kernels_bench.sides import make_side
from visgen_bench.measure import contention, environment, memory, timing
from visgen_kernels.shapes import SHAPES, Shape

WARM_UP_S = 0.05
TOLERANCE = 0.05


@dataclass(kw_only=True)
class Running:
    """A backend that takes part."""

    name: str
    report: Report
    side: Side
    prepared: Prepared
    steady: bool = True
    typical_s: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=dict)  # by timing method


def measure_group(group: Group, sink: Sink) -> None:
    """Measure all backends of a group; every one ends with a record."""
    if group.device_type == "cpu":
        torch.set_num_threads(group.threads)
    name_of_device = reported_name(group.device)
    sink.write({"event": "device", "device_name": name_of_device})
    if group.device_type == "cuda":
        torch.cuda.set_device(group.device)  # Triton launches on the current device
    shape = SHAPES[group.shape]
    if group.batch is not None:
        shape = dataclasses.replace(shape, batch=group.batch)
    reports = {name: Report(sink, name) for name in group.backends}
    able = [name for name in group.backends if _can(name, shape, group, reports[name])]
    if not able:
        return
    problem = Problem(shape, device=group.device, dtype=DTYPES[group.dtype], seed=group.seed)
    limits = ceilings(
        work.least_work(shape, group.direction, group.dtype),
        group.device_type,
        name_of_device,
        group.dtype,
    )
    running: dict[str, Running] = {}
    for name in able:
        found = _attempt(reports[name], lambda name=name: _begin(name, problem, group, reports))
        if found is not None:
            running[name] = found
    _accuracy(group, problem, running)
    sync = timing.synchronizer(group.device)
    for name in list(running):
        one = running[name]
        if _attempt(one.report, lambda one=one: _alone(group, one, sync)) is None:
            del running[name]
    if running:
        _in_turns(group, running)
    for one in running.values():
        if group.device_type == "cuda":
            _attempt(one.report, lambda one=one: _on_gpu(group, one, shape))
        _derived(group, problem, one, limits)
        one.report.end("ok")


def reported_name(device: str) -> str:
    """What the driver calls the device; the processor's name for a CPU."""
    if device.partition(":")[0] == "cuda":
        return torch.cuda.get_device_name(device)
    return environment.cpu_model()


def _can(name: str, shape: Shape, group: Group, report: Report) -> bool:
    reason = refusal(name, shape, group) or work.too_large(
        name, shape, group.direction, group.dtype, work.free_bytes(group.device)
    )
    if reason:
        report.end("skipped", reason)
    return reason is None


def _attempt(report: Report, act: Callable[[], Any]) -> Any:
    """What `act` gives; None if it failed, and then the backend has ended with its reason."""
    if report.ended:
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # SDPA says why a backend cannot run by warnings
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - a peer's fault is a row, whatever it is
            report.end(*_classified(error, [str(one.message) for one in said]))
            error.__traceback__ = None  # its frames hold tensors
    gc.collect()
    return None


def _classified(error: Exception, said: list[str]) -> tuple[str, str]:
    from visgen_bench.cells.performance import classify

    traceback.print_exc()
    text = str(error)
    if "No available kernel" in text or "No viable backend" in text:
        why = "; ".join(dict.fromkeys(line.strip().splitlines()[0] for line in said if line))
        return "skipped", f"torch has no such kernel for this call: {why or text}"
    status, reason = classify(error)
    return status, reason


def _begin(name: str, problem: Problem, group: Group, reports: dict[str, Report]) -> Running:
    """Make the side, run it once, and again: what the first call takes beyond a usual one."""
    report = reports[name]
    report.begin()
    sync = timing.synchronizer(group.device)
    side = make_side(name, problem)
    whole_s, prepared = timing.timed(lambda: prepare(side, group.direction), sync)
    first_s, _ = timing.timed(prepared.call, sync)
    second_s, _ = timing.timed(prepared.call, sync)
    report.metric("first_call", whole_s + first_s, timing_method="wall_sync")
    if side.compiled:
        spent = max(0.0, whole_s + first_s - second_s)
        report.metric("compile_time", spent, timing_method="wall_sync")
    else:
        report.metric("compile_time", None, reason="nothing is compiled at run time")
    return Running(name=name, report=report, side=side, prepared=prepared, typical_s=second_s)


def _accuracy(group: Group, problem: Problem, running: dict[str, Running]) -> None:
    """Errors against float64, and whether two runs give the same bits."""
    if not running:
        return
    truth, reason = _truth(group, problem)
    for name, one in running.items():
        results = one.prepared.results
        both = _attempt(one.report, lambda results=results: (results(), results()))
        if both is None:
            continue
        found, again = both
        one.report.metric("deterministic", float(accuracy.equal_bits(found, again)), n=2)
        if isinstance(truth, accuracy.Truth) and one.side.whole:
            one.report.errors(truth.compare(found), len(truth.samples), problem.dtype)
        elif problem.shape.kind == "codebook":
            excess = accuracy.codebook_excess(problem, found["out"])
            one.report.metric("error_max", excess, phase="distance", n=len(found["out"]))
        else:
            own = f"{name} has tensors of its own; the error is that of the row with copies"
            one.report.no_errors(reason or own)
    for name in [name for name, one in running.items() if one.report.ended]:
        del running[name]


def _truth(group: Group, problem: Problem) -> tuple[accuracy.Truth | None, str | None]:
    """The definition's results, or why there are none."""
    if problem.shape.kind == "codebook":
        return None, None
    need = work.reference_bytes(problem.shape, group.direction)
    free = work.MARGIN * work.free_bytes(group.device)
    if need > free:
        return None, (
            f"the definition in float64 needs about {need / 2**30:.1f} GiB for one sample, "
            f"{free / 2**30:.1f} GiB may be used here"
        )
    return accuracy.truth(problem, group.direction), None


def _alone(group: Group, one: Running, sync: timing.Sync) -> bool:
    """Memory of a call, then its warm-up."""
    extra, options = _extra_memory(one.prepared.call, group.device)
    one.report.metric("mem_extra_peak", extra, metric_opts=options)
    rules = timing.TimingRules(
        warmup_min_s=WARM_UP_S, warmup_max_s=max(0.2, group.seconds / 4), tolerance=TOLERANCE
    )
    warmed = timing.warm_up(one.prepared.call, sync, rules)
    one.steady, one.typical_s = warmed.steady, warmed.typical_s
    return True


def _extra_memory(call: timing.Call, device: str) -> tuple[float, dict[str, Any]]:
    """Bytes at the peak of a call beyond what was there before, and how they were read."""
    if device.partition(":")[0] == "cpu":
        peaks = memory.measure_peaks(call, device, calls=1)
        return float(max(0, peaks.host - peaks.host_before)), {"method": peaks.host_method}
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    peaks = memory.measure_peaks(call, device, calls=1)
    return float((peaks.allocated or 0) - before), {"method": "caching allocator"}


def _in_turns(group: Group, running: dict[str, Running]) -> None:
    """The paired comparison: latencies of all, and speed-ups of ours over the others."""
    names = list(running)
    with contention.Contention() as neighbours:
        rounds = turns.take_turns(
            names,
            _turn(group, running),
            seconds=group.seconds,
            fewest=group.fewest,
            most=group.most,
            seed=group.seed,
        )
    exclusive = neighbours.exclusive if group.device_type == "cpu" else None
    for name, one in running.items():
        for method, own in rounds[name].items():
            l2 = "cold" if method == "events" else "warm"
            columns = {"timing_method": method, "l2": l2, "steady_state": one.steady}
            one.latencies[method] = turns.flat(own)
            one.report.latency(own, exclusive=exclusive, **columns)
            for other in names if name in OURS else ():
                if other not in OURS:
                    one.report.speedup(other, rounds[other][method], own, **columns)


def _turn(group: Group, running: dict[str, Running]) -> turns.Turn:
    """Events after a flush on a GPU, clocks on a CPU."""
    if group.device_type != "cuda":
        calls = {name: one.prepared.call for name, one in running.items()}
        typical = {name: one.typical_s for name, one in running.items()}
        return turns.cpu_turn(calls, typical, group.threads)
    from visgen_bench.kernels_bench import gpu_timing

    flush = gpu_timing.Flush(group.device)

    def turn(name: str) -> turns.Times:
        one = running[name]
        count = gpu_timing.calls_in_a_turn(one.typical_s)
        return {"events": gpu_timing.cold_events(one.prepared.call, flush, group.device, count)}

    return turn


def _on_gpu(group: Group, one: Running, shape: Shape) -> bool:
    """Methods beside events: synchronised calls, CUDA graphs, Proton."""
    from visgen_bench.kernels_bench import gpu_timing

    sync = timing.synchronizer(group.device)
    rules = timing.TimingRules(min_duration_s=0.1, max_duration_s=max(0.2, group.seconds))
    series = timing.wall_sync(one.prepared.call, sync, rules)
    one.report.latency([list(series.seconds)], timing_method="wall_sync", l2="warm")
    flush = gpu_timing.Flush(group.device)
    samples = min(50, gpu_timing.calls_in_a_turn(one.typical_s) * group.fewest)
    try:
        captured = gpu_timing.Captured(lambda: _anew(group, one.name, shape), flush, group.device)
        one.latencies["graph"] = captured.cold(samples)
        one.report.latency([one.latencies["graph"]], timing_method="graph", l2="cold")
        replays, calls = captured.warm(one.typical_s, 10)
        one.report.latency([replays], timing_method="graph", l2="warm", calls=calls)
    except RuntimeError as error:
        reason = f"not capturable: {str(error).splitlines()[0]}"
        one.report.no_latency(reason, timing_method="graph")
        torch.cuda.synchronize(group.device)
    try:
        kernels = gpu_timing.proton(one.prepared.call)
        one.report.latency([kernels], timing_method="profiler", l2="cold")
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"Proton: {str(error).splitlines()[0]}"
        one.report.no_latency(reason, timing_method="profiler")
    return True


def _anew(group: Group, name: str, shape: Shape) -> timing.Call:
    """The same call on leaves of its own.

    A leaf remembers the stream that it was first used on, and autograd would wait for that one,
    which a captured graph must not.
    """
    problem = Problem(shape, device=group.device, dtype=DTYPES[group.dtype], seed=group.seed)
    return prepare(make_side(name, problem), group.direction).call


def _derived(group: Group, problem: Problem, one: Running, limits: Ceilings) -> None:
    """Work, rates and shares of ceilings; from the graph's times where there are some."""
    least = work.least_work(problem.shape, group.direction, group.dtype)
    report = one.report
    report.metric("flops", least.flops)
    report.metric("flops_dense", work.dense_flops(problem.shape, group.direction))
    report.metric("bytes_least", least.bytes)
    report.metric("exp_least", least.exponentials)
    found = executed(one.name, problem.shape, group)
    kernels = {"kernels": found.kernels} if found.kernels else None
    report.metric("flops_executed", found.flops, reason=found.reason, metric_opts=kernels)
    if group.device_type == "cpu":
        reason = "needs a GPU; this ran on a CPU"
        report.no_latency(reason, timing_method="events")
        report.no_latency(reason, timing_method="graph")
        report.no_latency(reason, timing_method="profiler")
    method = "graph" if one.latencies.get("graph") else next(iter(one.latencies))
    seconds = timing.percentile(one.latencies[method], 50)
    report.rates(least, seconds, limits, timing_method=method)
