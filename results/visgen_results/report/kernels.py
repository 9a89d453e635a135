"""The page of static kernel reports: a roofline a device, and a table of every kernel a target.

Built from rows alone (kind kernel, device_type static), without the kernels' package: peaks of a
device follow from work and floor times, `bytes_least / floor_time` is its bandwidth.
"""

import contextlib
import datetime
import json
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from visgen_results.display import figures as significant
from visgen_results.display import plain
from visgen_results.reading import Results, failure_reason, read_results
from visgen_results.report.figures import plotly_script
from visgen_results.report.rooflines import Roofline, roofline

Row = dict[str, Any]
DIRECTION = "attention"  # the model of a row that stands for a whole direction of a layer
# What a kernel must keep to, and how a breach is named; the rules of the project's kernels.
MISSING = "\N{EN DASH}"
LEAST_WIDE, MOST_EXP, MOST_WORK = 0.9, 1.1, 1.01
MOST_EXP_MASKED = 1.3  # pieces of tiles have fewer scores for the same factors of rows
PIPES = {
    "mma": "matrix", "mufu": "exp and the like", "fma": "float32", "alu": "integer and compare",
    "lds": "shared memory", "ldg": "global memory", "shfl": "shuffle", "tmem": "tensor memory",
    "local": "spills", "uniform": "uniform", "control": "control", "other": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A device as far as rows tell: rates per second."""

    id: str
    name: str
    bandwidth: float | None
    matrix: float | None
    exponentials: float | None


@dataclass
class Entry:
    """One kernel on one target: its figures by (metric, phase), and what came with them."""

    run: Row
    values: dict[tuple[str, str], float | None] = field(default_factory=dict)
    options: dict[tuple[str, str], Row] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        return self.run["dataset"] or ""

    @property
    def what(self) -> str:
        config = json.loads(self.run["config_json"] or "{}")
        return config.get("layer", {}).get("what", "")

    @property
    def kernel(self) -> str:
        return self.run["model"].removeprefix(f"{DIRECTION}_")

    @property
    def direction(self) -> str:
        return (self.run["variant"] or "").partition(" ")[0]

    @property
    def extras(self) -> str:
        return (self.run["variant"] or "").partition(" ")[2]

    @property
    def tile(self) -> str:
        tile = dict(self.options.get(("registers", "total"), {}).get("tile", {}))
        piece, block_n = tile.pop("masked_n", None), tile.get("block_n")
        if "blocks" in tile:
            text = f"{tile.pop('blocks')} of {tile.pop('block')}"
        else:
            text = "x".join(str(tile.pop(n)) for n in list(tile) if n.startswith("block"))
        text += f"/{piece}" if piece not in (None, block_n) else ""
        names = {"warps": "w", "stages": "s", "matrix_instr_nonkdim": "n"}
        short = [f"{sign}{tile.pop(name)}" for name, sign in names.items() if name in tile]
        return " ".join([text, *short, *(f"{name} {v}" for name, v in tile.items())]).strip()

    def get(self, metric: str, phase: str = "total") -> float | None:
        return self.values.get((metric, phase))

    def option(self, metric: str, phase: str, name: str) -> Any:
        return self.options.get((metric, phase), {}).get(name)

    @property
    def loop(self) -> str:
        """The phase that says what a score costs: the main loop, or without one the whole code."""
        return "interior" if ("exp_per_score", "interior") in self.values else "code"

    @property
    def pipes(self) -> list[tuple[str, float]]:
        """Instructions for each score by pipe."""
        phases = ((pipe, f"{self.loop}/{pipe}") for pipe in PIPES)
        found = ((pipe, self.get("instructions_per_score", phase)) for pipe, phase in phases)
        return [(pipe, value) for pipe, value in found if value]

    @property
    def matrix(self) -> str:
        """Matrix instructions by their stem: `8 HGMMA`."""
        counts: dict[str, int] = defaultdict(int)
        for name, number in self.options.get(("matrix_instructions", "code"), {}).items():
            stem = "_".join(name.split("_")[:2]) if name.startswith("v_") else name.split(".")[0]
            counts[stem] += number
        return ", ".join(f"{number} {stem}" for stem, number in counts.items())

    @property
    def faults(self) -> list[str]:
        """Which of the rules this kernel breaks."""
        found = []
        stack, registers = self.get("stack") or 0, self.get("spilled_registers") or 0
        if stack or registers or self.get("local_accesses", "code"):
            found.append("spills")
        if (self.get("shared_memory_free") or 0) < 0 or self.get("resident_blocks") == 0:
            found.append("does not fit")
        for phase, most in ((self.loop, MOST_EXP), ("boundary", MOST_EXP_MASKED)):
            if (self.get("repeated_work", phase) or 0) > MOST_WORK:
                found.append("repeats matrix work")
            needed = self.option("exp_per_score", phase, "needed") or 1.0
            if self.matrix and (self.get("exp_per_score", phase) or 0) > most * needed:
                found.append("repeats exponentials")
        wide = self.get("wide_share", "code")
        if wide is not None and wide < LEAST_WIDE:
            found.append("narrow loads")
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Section:
    """One target: its devices, their rooflines, its kernels."""

    target: str
    devices: list[Device]
    rooflines: list[Roofline]
    entries: list[Entry]

    @property
    def faulty(self) -> int:
        return sum(bool(entry.faults) for entry in self.entries)


def kernels_report(root: Path | str, out: Path | str) -> Path:
    """Write the page of a folder's static kernel rows to `out` and return its path.

    One file, no request. Raises `ValueError` if the folder holds no such rows, `OSError` if `out`
    cannot be written (the old file, if any, is left as it was).
    """
    results = read_results(root)
    page = render(results)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return path


def render(results: Results) -> str:
    """The page as text. Raises `ValueError` if there are no static kernel rows."""
    entries = _entries(results)
    failed = [run for run in results.failed if _is_static(run)]
    if not entries and not failed:
        raise ValueError(f"{results.root} holds no static reports of kernels")
    kernels = [entry for entry in entries if entry.run["model"] != DIRECTION]
    sections = _sections(kernels)
    drawn = any(section.rooflines for section in sections)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visgen_results.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "fig": _figure, "micro": _micro, "percent": _percent}
    return environment.get_template("kernels.html.j2").render(
        style=Markup(_asset("style.css") + _asset("kernels.css")),
        scripts=Markup(_asset("sort.js") + _asset("kernels.js")),
        plotly=Markup(plotly_script()) if drawn else "",
        sections=sections,
        layers=_layers([entry for entry in entries if entry.run["model"] == DIRECTION]),
        failed=[(run, failure_reason(run)) for run in failed],
        pipes=PIPES,
        choices=_choices(kernels),
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        versions=_versions(results),
        fragment=lambda figure: Markup(figure.fragment),
    )


def _asset(name: str) -> str:
    return resources.files("visgen_results.report").joinpath("templates", name).read_text("utf-8")


def _is_static(row: Row) -> bool:
    return row["kind"] == "kernel" and row["device_type"] == "static"


def _entries(results: Results) -> list[Entry]:
    found = {run["run_id"]: Entry(run) for run in results.runs if _is_static(run)}
    for row in results.numbers:
        entry = found.get(row["run_id"])
        if entry is None:
            continue
        key = (row["metric"], row["phase"])
        entry.values[key] = row["value"]
        if row["metric_opts"]:
            entry.options[key] = json.loads(row["metric_opts"])
        if row["reason"]:
            entry.reasons[key] = row["reason"]
    return list(found.values())


def _sections(entries: Sequence[Entry]) -> list[Section]:
    by_target: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_target[entry.run["device_name"]].append(entry)
    sections = []
    for target, own in by_target.items():
        devices = _devices(own)
        plots = (roofline(device, own, f"{target}-{device.id}") for device in devices)
        sections.append(Section(target, devices, [p for p in plots if p is not None], own))
    return sections


def _devices(entries: Iterable[Entry]) -> list[Device]:
    """Devices that rows name, with the rates that their floors were made from."""
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    names: dict[str, str] = {}
    amounts = {"bytes": "bytes_least", "mma": "flops", "exp": "exp_least"}
    for entry in entries:
        for (metric, phase), seconds in entry.values.items():
            if metric != "floor_time":
                continue
            device, _, ceiling = phase.partition("/")
            names.setdefault(device, entry.option(metric, device, "device") or device)
            amount = entry.get(amounts.get(ceiling, ""))
            if amount and seconds:
                rates[device].setdefault(ceiling, amount / seconds)
    return [
        Device(id, name, *(rates[id].get(ceiling) for ceiling in ("bytes", "mma", "exp")))
        for id, name in names.items()
    ]


def _layers(entries: Sequence[Entry]) -> dict[str, Any]:
    """Whole directions of layers: floor and model on every device, one row each."""
    devices: dict[str, str] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        key = (entry.layer, entry.direction)
        row = rows.setdefault(key, {"entry": entry, "cells": {}})
        for metric, phase in entry.values:
            if metric == "predicted_time":
                devices.setdefault(phase, entry.option("floor_time", phase, "device") or phase)
                row["cells"][phase] = (
                    entry.get("floor_time", phase),
                    entry.option("floor_time", phase, "ceiling"),
                    entry.get("predicted_time", phase),
                )
    return {"devices": devices, "rows": list(rows.values())}


def _choices(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """What the filters offer."""
    return {
        "target": list(dict.fromkeys(entry.run["device_name"] for entry in entries)),
        "layer": list(dict.fromkeys(entry.layer for entry in entries if entry.layer)),
        "direction": list(dict.fromkeys(entry.direction for entry in entries)),
        "kernel": list(dict.fromkeys(entry.kernel for entry in entries)),
    }


def _versions(results: Results) -> list[str]:
    machines = {row["triton"] for row in results.machines if row["triton"]}
    commits = {
        f"{run['git_commit'][:12]}{' with changes' if run['git_dirty'] else ''}"
        for run in results.runs
        if _is_static(run) and run["git_commit"]
    }
    return [*(f"Triton {version}" for version in sorted(machines)), *sorted(commits)]


def _figure(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else significant(value, digits)


def _micro(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{seconds * 1e6:,.1f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"
