"""Findings as rows of the result tables: one run a kernel, layer and target, one row a figure.

What was read from the code is a fact of it; what a model says of a device carries predicted=true.
A figure that cannot be had is null, with its reason.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visgen_bench.cell import canonical_json, content_key
from visgen_bench.kernels_static.examine import Finding
from visgen_bench.kernels_static.request import OwnTask, Task
from visgen_kernels.roofline import Work, devices, devices_of, floor
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.analysis import Analysis, Prediction
from visgen_kernels.static.counts import Access
from visgen_kernels.static.report import LoopCost, Report
from visgen_kernels.static.specimens import DTYPES
from visgen_kernels.static.targets import TARGETS
from visgen_kernels.static.work import direction_work
from visgen_results import schema
from visgen_results.store import new_run_id

SUITE = "kernels-static"
OP = "attention"
Row = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """The `runs` row of a kernel and its `metrics` rows."""

    run: Row
    metrics: list[Row]


def record(finding: Finding, common: Mapping[str, Any]) -> Recorded:
    """Rows of one finding; `common` are columns of machine, version and commit."""
    run = {**common, **_identity(finding), **_ending(finding)}
    return _with_copies(run, _figures(finding))


def record_direction(
    task: Task, members: Sequence[Finding], common: Mapping[str, Any]
) -> Recorded | None:
    """Rows of a whole direction of a layer: its floor, and what its kernels add up to.

    None if a kernel of it is missing, or if it is one kernel anyhow (the codebook's).
    """
    shape = SHAPES[task.shape]
    if task.kernels or not members or any(one.analysis is None for one in members):
        return None
    if shape.kind == "codebook":
        return None
    work = direction_work(task.direction, shape, itemsize=DTYPES[task.dtype].itemsize)
    run = {**common, **_columns(task, OP, {}), "status": "ok"}
    rows = [
        *_work_rows(work),
        *_direction_rows(task, work, [one.analysis for one in members if one.analysis]),
    ]
    return _with_copies(run, rows)


def _with_copies(run: Row, rows: Iterable[Row]) -> Recorded:
    now = datetime.datetime.now(datetime.UTC)
    run = {"run_id": new_run_id(), "attempt": 1, "started_at": now, "ended_at": now, **run}
    copied = {**schema.copies(run), "cell_key": run["cell_key"]}
    whole = [
        {**copied, "stat": "value", "rank": -1, "predicted": False, "comparable": True, **row}
        for row in rows
    ]
    return Recorded(run, whole)


def _identity(finding: Finding) -> Row:
    task = finding.task
    if isinstance(task, Task):
        return _columns(task, f"{OP}_{finding.kernel}", finding.tile)
    facts = {"kernel": finding.kernel, "task": _own(task)}
    return {
        **_key(task.target, facts),
        "model": finding.kernel,
        "variant": "own",
        "dataset": None,
        "config_json": canonical_json({**facts, "tile": finding.tile}),
    }


def _columns(task: Task, model: str, tile: Mapping[str, int]) -> Row:
    facts = {"model": model, "shape": task.shape, "direction": task.direction, "dtype": task.dtype}
    shape = SHAPES[task.shape]
    return {
        **_key(task.target, facts),
        "model": model,
        "variant": f"{task.direction} {shape.extras}",
        "dataset": task.shape,
        "dtype": task.dtype,
        "batch_size": shape.batch,
        "config_json": canonical_json({**facts, "layer": _layer(shape), "tile": dict(tile)}),
    }


def _key(target: str, facts: Mapping[str, Any]) -> Row:
    """What a run is known by. The tile is no part: a new choice replaces the old one's rows."""
    key = content_key({"kind": "kernel", "how": "static", "target": target, **facts})
    return {
        "cell_key": key,
        "spec_key": key,
        "kind": "kernel",
        "suite": SUITE,
        "family": "kernel",
        "task": "kernel",
        "device_type": "static",
        "device_name": target,
        "attention": "triton",
    }


def _own(task: OwnTask) -> Row:
    fields = ("name", "signature", "constants", "options", "warps", "stages")
    return {name: getattr(task, name) for name in fields}


def _layer(shape: Shape) -> Row:
    return {
        "what": shape.what,
        "batch": shape.batch,
        "heads": shape.heads,
        "sequences": shape.sequences,
        "queries": shape.n_q,
        "keys": shape.n_k,
        "d": shape.d,
        "d_v": shape.d_v,
        "visible_keys": shape.pairs / shape.n_q,
    }


def _ending(finding: Finding) -> Row:
    if finding.analysis is not None:
        return {"status": "ok", "duration_s": finding.seconds}
    return {
        "status": "error",
        "error_type": "CompileFailed",
        "error_msg": finding.error,
        "duration_s": finding.seconds,
    }


def _figures(finding: Finding) -> Iterator[Row]:
    analysis, tile = finding.analysis, {"tile": finding.tile}
    if analysis is None:
        reason = finding.error.splitlines()[0] if finding.error else "it could not be compiled"
        for metric in ("registers", "predicted_time"):
            yield _row(metric, None, reason=reason, opts=tile)
        return
    yield from _code_rows(analysis, tile)
    for name, loop in _loops(analysis.report):
        yield from _loop_rows(name, loop, analysis)
    facts = analysis.facts
    yield _row("programs", facts.programs)
    if facts.whole is not None and analysis.report.loops:
        yield _row("passes", facts.whole, "interior")
        yield _row("passes", facts.masked, "boundary")
    if facts.work is not None:
        yield from _work_rows(facts.work)
    for prediction in analysis.predictions:
        yield from _prediction_rows(prediction)


def _code_rows(analysis: Analysis, tile: Mapping[str, Any]) -> Iterator[Row]:
    found, counts = analysis.report, analysis.report.whole.counts
    compiled, occupancy = found.compiled, found.occupancy
    target = TARGETS[analysis.target]
    yield _row("registers", compiled.registers, opts=tile)
    yield _row("stack", compiled.stack)
    if target.is_amd:
        yield _row("spilled_registers", compiled.spilled)
    yield _row("local_accesses", counts.local, "code")
    yield _row("shared_memory", compiled.shared)
    yield _row("shared_memory_free", target.shared_limit - compiled.shared)
    yield _row("resident_blocks", occupancy.blocks, opts={"limiter": occupancy.limiter})
    yield _row("occupancy", occupancy.warps / target.warps, opts={"limiter": occupancy.limiter})
    yield _row("instructions", counts.total, "code")
    for pipe, number in counts.pipes.items():
        yield _row("instructions", number, f"code/{pipe}")
    yield _row("matrix_instructions", sum(counts.matrix.values()), "code", opts=dict(counts.matrix))
    yield _row("exp_instructions", counts.exponentials, "code")
    yield _row("atomics", counts.atomics, "code")
    yield _row("bulk_copies", counts.bulk, "code")
    for stores in (False, True):
        moved, part = (counts.stores, "/stores") if stores else (counts.loads, "")
        yield _row(
            "wide_share",
            counts.wide_share(analysis.facts.widest, stores=stores),
            f"code{part}",
            reason=found.unread.get(f"wide_share{part}"),
            opts={
                "bytes": analysis.facts.widest,
                "accesses": _by_width(moved.tensors),
                "others": _by_width(moved.others),
                "unattributed": _by_width(moved.unattributed),
            },
        )


def _by_width(accesses: Iterable[Access]) -> dict[str, int]:
    return {str(one.width): one.count for one in accesses}


def _loops(found: Report) -> list[tuple[str, LoopCost]]:
    """The stretches that cost most: both main loops, or the whole code."""
    if not found.loops:
        return [("code", found.whole)]
    both = [("interior", found.interior)]
    return both if found.boundary is None else [*both, ("boundary", found.boundary)]


def _loop_rows(name: str, loop: LoopCost, analysis: Analysis) -> Iterator[Row]:
    unread, needed = analysis.report.unread, analysis.facts.exponentials
    yield _row("instructions_per_score", loop.instructions, name, reason=unread.get("instructions"))
    if loop.instructions is not None:
        for pipe, number in loop.pipes.items():
            share = loop.instructions * number / loop.counts.total
            yield _row("instructions_per_score", share, f"{name}/{pipe}")
    reason = unread.get("instructions")
    yield _row("exp_per_score", loop.exponentials, name, reason=reason, opts={"needed": needed})
    reason = unread.get("mma_ratio") or unread.get("loops") or unread.get("instructions")
    yield _row("repeated_work", loop.mma_ratio, name, reason=reason)
    if name != "code":
        yield _row("local_accesses", loop.counts.local, name)


def _work_rows(work: Work) -> Iterator[Row]:
    yield _row("flops", work.flops)
    yield _row("bytes_least", work.bytes)
    yield _row("exp_least", work.exponentials)


def _prediction_rows(one: Prediction) -> Iterator[Row]:
    device = one.device
    if one.cycles is not None:
        opts = {"resident": one.resident, "pipe": one.cycles.binding}
        cycles = one.cycles.of(one.resident)
        yield _row("cycles_per_pass", cycles, device, opts=opts, predicted=True)
        for pipe, number in one.cycles.pipes.items():
            yield _row("cycles_per_pass", number, f"{device}/{pipe}", predicted=True)
    if one.floor is not None:
        opts = {"ceiling": one.floor.binding, "device": devices()[device].name}
        yield _row("floor_time", one.floor.time, device, opts=opts, predicted=True)
        for ceiling, seconds in one.floor.seconds.items():
            yield _row("floor_time", seconds, f"{device}/{ceiling}", predicted=True)
    else:
        reason = one.reason or "the least work of this kernel is not known"
        yield _row("floor_time", None, device, reason=reason, predicted=True)
    if one.issue is not None:
        yield _row("floor_time", one.issue, f"{device}/issue", predicted=True)
    yield _row("predicted_time", one.seconds, device, reason=one.reason, predicted=True)
    if one.launched is not None:
        yield _row("waves", one.launched.waves, device, predicted=True)
        yield _row("tail", one.launched.tail, device, predicted=True)


def _direction_rows(task: Task, work: Work, analyses: Sequence[Analysis]) -> Iterator[Row]:
    for place, device in enumerate(devices_of(task.target)):
        least = floor(work, device, task.dtype)
        opts = {"ceiling": least.binding, "device": device.name}
        yield _row("floor_time", least.time, device.id, opts=opts, predicted=True)
        for ceiling, seconds in least.seconds.items():
            yield _row("floor_time", seconds, f"{device.id}/{ceiling}", predicted=True)
        parts = [one.predictions[place] for one in analyses]
        missing = next((part.reason for part in parts if part.seconds is None), None)
        total = None if missing else sum(part.seconds or 0.0 for part in parts)
        yield _row("predicted_time", total, device.id, reason=missing, predicted=True)


def _row(
    metric: str,
    value: float | None,
    phase: str = "total",
    *,
    reason: str | None = None,
    opts: Mapping[str, Any] | None = None,
    predicted: bool = False,
) -> Row:
    row: Row = {"metric": metric, "value": value, "phase": phase}
    if value is None:
        row["reason"] = reason or "the code does not say"
    if opts:
        row["metric_opts"] = dict(opts)
    if predicted:
        row["predicted"] = True
    return row
