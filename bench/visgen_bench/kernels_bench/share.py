"""From kernel to model: attention's share of a phase, and what a faster attention is worth to it.

One process measures one model in one phase under all implementations of attention, in turns. With
f attention's share of the time under ours, and r the time of the same attention calls under another
implementation over their time under ours, Amdahl's law says how much slower the whole is with it:

    gain = (1 - f) + f r

f comes from profiled steps of the model, r from the step's own calls repeated alone; both are
measured, and so is the gain itself, end to end. What is left between the two is what calls cost or
save around them: caches, allocation, launches that wait.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from visgen.objectives.gan import GanRecipe
from visgen_bench.cell import PerformanceCell
from visgen_bench.cells import workload
from visgen_bench.context import Sink, Unavailable
from visgen_bench.kernels_bench import attention_calls, turns
from visgen_bench.kernels_bench.calls import prepare
from visgen_bench.kernels_bench.report import Report
from visgen_bench.kernels_bench.share_request import ShareRequest
from visgen_bench.measure import contention, timing
from visgen_kernels import resolve, unsupported
from visgen_results.statistics import Interval, block_ratio

SHARE_PAIRS = 11
METHOD_CPU = (
    "TorchDispatchMode: seconds inside visgen::attention operators of one step over those of a "
    "plain step beside it"
)
METHOD_GPU = (
    "torch.profiler: seconds of kernels inside visgen::attention operators of one step over those "
    "of a plain step beside it"
)


@dataclass(kw_only=True)
class Contender:
    """A model with one implementation of attention, ready to step."""

    report: Report
    step: Callable[[], object]
    name: str


def measure_share(request: ShareRequest, sink: Sink) -> None:
    """Measure a model in a phase under all implementations; each ends with a record."""
    from visgen_bench.presets import load_presets

    if request.device_type == "cpu":
        torch.set_num_threads(request.threads)
    if request.device_type == "cuda":
        torch.cuda.set_device(request.device)
    config = load_presets(request.include).find(request.model)
    reports = {name: Report(sink, name) for name in request.implementations}
    ours = resolve(request.device)
    able = [n for n in request.implementations if _can(n, request, config, reports[n])]
    for name in able:
        _guarded(reports[name], lambda name=name: _memory(name, request, config, reports[name]))
    contenders = {}
    for name in able:
        made = _guarded(
            reports[name], lambda name=name: _made(name, request, config, reports[name])
        )
        if made is not None:
            contenders[name] = made
    if not contenders:
        return
    with contention.Contention() as neighbours:
        rounds = _rounds(request, contenders)
    exclusive = neighbours.exclusive if request.device_type == "cpu" else None
    _latencies(request, contenders, rounds, exclusive)
    mine = contenders.get(ours)
    if mine is not None:
        _guarded(mine.report, lambda: _gains(request, mine, contenders, rounds))
    for one in contenders.values():
        one.report.end("ok")


def _can(name: str, request: ShareRequest, config: Any, report: Report) -> bool:
    """Whether this implementation can do the phase; else its record says why not."""
    cell = cell_of(request, name)
    second = request.phase == "d_step" and penalised(cell, config)
    reason = None
    try:
        workload.refuse_impossible(cell, config)
        if name == "sdpa-math":
            reason = unsupported("sdpa", device=request.device)
        else:
            reason = unsupported(name, device=request.device, second_derivative=second)
    except Unavailable as unavailable:
        reason = str(unavailable)
    if reason:
        report.end("skipped", reason)
    return reason is None


def cell_of(request: ShareRequest, name: str) -> PerformanceCell:
    """The performance cell whose phase is taken."""
    return PerformanceCell.model_validate(
        {
            "model": request.model,
            "phase": request.phase,
            "batch": request.batch,
            "dtype": request.dtype,
            "device": request.device,
            "attention": name.removesuffix("-math"),
            "seed": request.seed,
        }
    )


def penalised(cell: PerformanceCell, config: Any) -> bool:
    """Does the discriminator's loss differentiate twice?"""
    recipe = workload.recipe_of(cell, config)
    return isinstance(recipe, GanRecipe) and recipe.differentiates_twice


def _guarded(report: Report, act: Callable[[], Any]) -> Any:
    """What `act` gives; None if it failed, and then the reason is recorded."""
    if report.ended:
        return None
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - every outcome is a row
        import traceback

        from visgen_bench.cells.performance import classify

        traceback.print_exc()
        report.end(*classify(error))
        error.__traceback__ = None
    gc.collect()
    return None


def _only_math(name: str) -> Any:
    """The context in which SDPA can be differentiated twice."""
    return sdpa_kernel(SDPBackend.MATH) if name == "sdpa-math" else contextlib.nullcontext()


def _made(name: str, request: ShareRequest, config: Any, report: Report) -> Contender:
    """The model on its device, and its step; the first two calls are over."""
    report.begin()
    cell = cell_of(request, name)
    torch.manual_seed(request.seed)
    model = config.build(attention=cell.attention)
    workload.place(model, cell, request.device)
    work = workload.build_workload(cell, config, model, request.device)

    def step() -> object:
        with _only_math(name):
            return work.call()

    work.check(step())  # also sets up the optimiser's state
    step()
    return Contender(report=report, step=step, name=name)


def _memory(name: str, request: ShareRequest, config: Any, report: Report) -> None:
    """Peak memory of a step, and attention's share of it, with no other model in this process."""
    one = _made(name, request, config, report)
    gc.collect()
    held = attention_calls.held_bytes(request.device)
    found = attention_calls.profile_step(one.step, request.device, memory=True)
    peak = held + found.allocated
    options = {"method": "torch.profiler: allocations of one step, and live tensors before it"}
    report.metric("mem_alloc_peak", peak, phase=request.phase, metric_opts=options)
    if name in attention_calls.IMPLEMENTATIONS:
        share = found.attention_bytes / peak
        report.metric("attention_memory_share", share, phase=request.phase, metric_opts=options)


def _rounds(request: ShareRequest, contenders: Mapping[str, Contender]) -> dict[str, turns.Rounds]:
    """Steps of all implementations in turns."""
    calls = {name: one.step for name, one in contenders.items()}
    turn = _turn(request, calls)
    return turns.take_turns(
        list(calls),
        turn,
        seconds=request.seconds,
        fewest=request.fewest,
        most=request.most,
        seed=request.seed,
    )


def _turn(request: ShareRequest, calls: Mapping[str, timing.Call]) -> turns.Turn:
    if request.device_type == "cpu":
        return turns.cpu_turn(calls, dict.fromkeys(calls, 1.0), request.threads)
    sync = timing.synchronizer(request.device)
    return lambda name: {"wall_sync": [timing.timed(calls[name], sync)[0]]}


def _latencies(
    request: ShareRequest,
    contenders: Mapping[str, Contender],
    rounds: Mapping[str, turns.Rounds],
    exclusive: bool | None,
) -> None:
    columns = {"l2": "warm", "phase": request.phase, "exclusive": exclusive}
    for name, one in contenders.items():
        for method, own in rounds[name].items():
            one.report.latency(own, timing_method=method, **columns)


def _gains(
    request: ShareRequest,
    ours: Contender,
    contenders: Mapping[str, Contender],
    rounds: Mapping[str, turns.Rounds],
) -> None:
    """Share, kernel speed-ups, and the predicted beside the observed gain."""
    phase = request.phase
    recorded = attention_calls.record_calls(ours.step)
    ours.report.metric("attention_calls", recorded.total, phase=phase)
    if not recorded.total:
        reason = f"no attention operator ran in {phase}"
        ours.report.metric("attention_share", None, stat="p50", phase=phase, reason=reason)
        return
    share = _share(request, ours)
    alone = _alone(request, recorded, contenders)
    method = _method(request)
    for name, one in contenders.items():
        if name == ours.name:
            continue
        observed = block_ratio(rounds[name][method], rounds[ours.name][method])
        kernel = block_ratio(alone[name], alone[ours.name])
        columns = {"phase": phase, "metric_opts": {"over": name, "by": ours.name}}
        steps, repeats = len(rounds[name][method]), len(alone[name])
        one.report.interval("gain_observed", observed, n=steps, timing_method=method, **columns)
        one.report.interval("kernel_speedup", kernel, n=repeats, timing_method=method, **columns)
        one.report.interval(
            "gain_predicted", amdahl(share, kernel), n=min(SHARE_PAIRS, repeats), predicted=True,
            **columns,
        )  # fmt: skip


def amdahl(share: Interval, kernel: Interval) -> Interval:
    """(1 - f) + f r, its interval from the corners of both intervals."""

    def gain(f: float, r: float) -> float:
        return 1.0 - f + f * r

    corners = [gain(f, r) for f in (share.low, share.high) for r in (kernel.low, kernel.high)]
    method = "corners of the intervals of attention's share and of the kernel's speed-up"
    return Interval(gain(share.value, kernel.value), min(corners), max(corners), method)


def _share(request: ShareRequest, ours: Contender) -> Interval:
    """Attention's share of the time: the median over pairs of a plain and a watched step."""
    gpu = request.device_type != "cpu"
    sync = timing.synchronizer(request.device)
    clock = time.process_time if request.threads == 1 else time.perf_counter
    shares = []
    for _ in range(SHARE_PAIRS):
        if gpu:
            plain = timing.timed(ours.step, sync)[0]
            found = attention_calls.profile_step(ours.step, request.device, memory=False)
            shares.append(found.kernels_s / plain)
        else:
            start = clock()
            ours.step()
            plain = clock() - start
            shares.append(attention_calls.attention_seconds(ours.step, clock) / plain)
    low, high = timing.median_interval(shares) or (min(shares), max(shares))
    share = Interval(timing.percentile(shares, 50), low, high, "order statistics, 95 %")
    ours.report.interval(
        "attention_share", share, n=len(shares), stat="p50", phase=request.phase,
        timing_method="profiler" if gpu else _method(request),
        metric_opts={"method": METHOD_GPU if gpu else METHOD_CPU},
    )  # fmt: skip
    return share


def _method(request: ShareRequest) -> str:
    """The clock that shares and gains are taken by."""
    alone = request.device_type == "cpu" and request.threads == 1
    return "cpu_time" if alone else "wall_sync"


def _alone(
    request: ShareRequest,
    recorded: attention_calls.Recorded,
    contenders: Mapping[str, Contender],
) -> dict[str, list[list[float]]]:
    """Seconds of all attention calls of one step, repeated alone, by implementation and round."""
    sums = {name: _sum_of_calls(name, request, recorded) for name in contenders}
    found = turns.take_turns(
        list(sums),
        lambda name: {"sum": [sums[name]()]},
        seconds=request.seconds,
        fewest=request.fewest,
        most=request.most,
        seed=request.seed,
    )
    return {name: one["sum"] for name, one in found.items()}


def _sum_of_calls(
    name: str, request: ShareRequest, recorded: attention_calls.Recorded
) -> Callable[[], float]:
    """Times each distinct call once, and adds them up as often as the step makes them."""
    prepared = []
    implementation = name.removesuffix("-math")
    with _only_math(name):
        for (signature, direction), count in recorded.counts.items():
            side = attention_calls.replay(signature, recorded, implementation)
            call = prepare(side, direction).call
            call()  # warm
            prepared.append((call, count))
    seconds = _clock(request)

    def total() -> float:
        with _only_math(name):
            return sum(count * seconds(call) for call, count in prepared)

    return total


def _clock(request: ShareRequest) -> Callable[[timing.Call], float]:
    """Seconds of a call: of the CPU with one thread, else of the wall."""
    if request.device_type == "cuda":
        from visgen_bench.kernels_bench.gpu_timing import cold_events

        return lambda call: timing.percentile(
            cold_events(call, lambda: None, request.device, 5), 50
        )
    turn_threads = request.threads
    return lambda call: next(
        iter(reversed(turns.cpu_turn({"": call}, {"": 1.0}, turn_threads)("").values()))
    )[0]
