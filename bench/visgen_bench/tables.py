"""Plans and summaries as text and as JSON; what is printed is decided here, printing is not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visgen_bench.estimates import Estimate
from visgen_bench.gates import Verdict
from visgen_bench.plan import Plan, PlannedCell
from visgen_bench.running import Summary

SLOWEST = 10


def plan_lines(plan: Plan) -> list[str]:
    """What would be done, cell by cell, and what it may take."""
    lines = []
    for cell in plan.cells:
        lines.append(f"{cell.action:4}  {cell.name}")
        if cell.action == "run":
            lines.append(f"      {estimate_text(cell.estimate)}")
        if cell.reason and cell.action != "done":
            lines.append(f"      {cell.reason}")
        if cell.stale and cell.action == "done":
            lines.append(f"      stale: {cell.stale}; --rerun stale runs it again")
    lines += ["", total_line(plan)]
    return lines


def total_line(plan: Plan) -> str:
    """One line: how many cells run and how many do not, and the time of those that run."""
    known = [c.estimate.seconds for c in plan.cells if c.action == "run" and c.estimate.seconds]
    unknown = plan.count("run") - len(known)
    text = f"{plan.count('run')} to run, {plan.count('done')} done, {plan.count('skip')} skipped"
    if plan.count("left"):
        text += f", {plan.count('left')} left that ran out of memory"
    if plan.stale:
        text += f", {len(plan.stale)} of the done ones stale"
    if known:
        text += f"; about {duration(sum(known))}"
        text += f" and {unknown} of unknown time" if unknown else ""
    return text


def estimate_text(estimate: Estimate) -> str:
    """Time, memory and disk with their basis; never a number without one."""
    parts = []
    if estimate.seconds is not None:
        parts.append(duration(estimate.seconds))
    if estimate.memory is not None:
        parts.append(f"{estimate.memory / 2**20:.0f} MiB of memory")
    if estimate.disk:
        parts.append(f"{estimate.disk / 2**20:.1f} MiB on disk")
    return f"{', '.join(parts) or 'time and memory unknown'} ({estimate.basis})"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would say."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one document with a list under `rows`."""
    return {
        "suite": plan.suite.name,
        "out": str(plan.options.out),
        "rows": [_planned_json(cell) for cell in plan.cells],
    }


def _planned_json(cell: PlannedCell) -> dict[str, Any]:
    estimate = cell.estimate
    return {
        "name": cell.name,
        "kind": cell.resolved.cell.kind,
        "cell_key": cell.cell_key,
        "spec_key": cell.resolved.spec_key,
        "action": cell.action,
        "reason": cell.reason,
        "stale": cell.stale,
        "estimate_s": estimate.seconds,
        "estimate_memory": estimate.memory,
        "estimate_disk": estimate.disk,
        "estimate_basis": estimate.basis,
        "cell": json.loads(cell.resolved.cell.model_dump_json()),
    }


def summary_lines(summary: Summary) -> list[str]:
    """For stderr after a run: what was skipped, what failed, and the slowest parts."""
    lines = []
    skipped: dict[str, list[str]] = {}
    for one in summary.having("skipped"):
        skipped.setdefault(one.recorded.reason if one.recorded else "", []).append(one.planned.name)
    for reason, names in skipped.items():
        rest = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
        lines.append(f"skipped: {names[0]}{rest}: {reason}")
    for one in summary.failed:
        reason = one.recorded.reason if one.recorded else one.planned.reason
        log = one.recorded.run.get("log_path") if one.recorded else None
        where = f" (log: {summary.plan.options.out / log})" if log else ""
        lines.append(f"{one.status}: {one.planned.name}: {reason}{where}")
    for cell in summary.plan.stale:
        lines.append(f"stale: {cell.name}: {cell.stale}; --rerun stale runs it again")
    return lines + slowest_lines(summary)


def slowest_lines(summary: Summary) -> list[str]:
    """The parts that took longest, so that whoever waits knows for what."""
    timed = [
        (one.recorded.run["duration_s"] or 0.0, one.planned.name)
        for one in summary.finished
        if one.recorded is not None and one.status != "skipped"
    ]
    if len(timed) < 2:
        return []
    timed.sort(reverse=True)
    return ["slowest parts:", *(f"  {s:7.1f} s  {name}" for s, name in timed[:SLOWEST])]


def summary_json(
    summary: Summary, board: dict[str, Any], verdicts: Sequence[Verdict], report: Path | None
) -> dict[str, Any]:
    """The run as one document: leaderboard rows under `rows`, every cell under `cells`."""
    return {
        **board,
        "suite": summary.plan.suite.name,
        "out": str(summary.plan.options.out),
        "report": str(report) if report else None,
        "verdicts": [{"gate": v.gate.name, "passed": v.passed, "text": v.text} for v in verdicts],
        "cells": [
            {
                "name": one.planned.name,
                "cell_key": one.planned.cell_key,
                "status": one.status,
                "run_id": one.recorded.run["run_id"] if one.recorded else None,
                "seconds": one.recorded.run["duration_s"] if one.recorded else None,
                "reason": one.recorded.reason if one.recorded else one.planned.reason,
            }
            for one in summary.finished
        ],
    }
