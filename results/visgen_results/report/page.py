"""From a result folder to one HTML file: collects what the template shows, and renders it."""

import contextlib
import datetime
import os
import secrets
import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from visgen_results import wording
from visgen_results.display import figures as significant
from visgen_results.display import plain, rank
from visgen_results.kernel_tables import kernel_tables
from visgen_results.leaderboard import Board, Gate, Leaderboard, leaderboard
from visgen_results.pivot import Column, Pivot, pivots
from visgen_results.reading import Results, read_results
from visgen_results.report.figures import (
    Figure,
    frame_curves,
    frame_series,
    plotly_script,
    quality_speed,
    training_curves,
)
from visgen_results.report.films import Budget, Films, films
from visgen_results.report.pictures import Picture, grids

DEFAULT_TITLE = "visgen results"
HEADLINE_STATS = ("value", "p50", "p90", "p95", "p99", "p99.9")


@dataclass(frozen=True)
class Section:
    """One data set: its tables, gates, faults, scatter, curves over time, pictures and films."""

    dataset: str
    tables: list[Pivot]
    gates: list[Gate]
    faults: list[tuple[str, list[str]]]
    figure: Figure | None
    pictures: list[Picture]
    films: list[Films]
    over_time: list[Figure]


@dataclass(frozen=True)
class Parts:
    """Parameters and their bytes by network: one row per model."""

    names: list[str]
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


def report(root: Path | str, out: Path | str, *, title: str = DEFAULT_TITLE) -> Path:
    """Write the report of a result folder to `out` and return its path.

    One file, no request: style, scripts and pictures are inside. Everything that comes from the
    results is escaped. Raises `ValueError` if the folder holds no runs, `OSError` if `out` cannot
    be written (the old file, if any, is left as it was).
    """
    results = read_results(root)
    if results.empty:
        raise ValueError(f"{results.root} holds no runs, so there is nothing to report")
    page = render(results, title)
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


def render(results: Results, title: str) -> str:
    """The page as text."""
    board = leaderboard(results)
    tables = pivots(board.boards)
    curves, curves_left_out = training_curves(results)
    budget = Budget()
    sections = _sections(results, board, tables, budget)
    figures = [s.figure for s in sections if s.figure is not None] + curves
    figures += [figure for section in sections for figure in section.over_time]
    speed = [table for table in tables if table.kind == "performance"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visgen_results.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "rank": rank}
    return environment.get_template("report.html.j2").render(
        title=plain(title),
        style=Markup(_asset("style.css")),  # our own file
        sort_script=Markup(_asset("sort.js")),  # our own file
        plotly=Markup(plotly_script()) if figures else "",  # the library's source
        header=_header(results, board),
        sections=sections,
        speed=speed,
        headline_stats=HEADLINE_STATS,
        speed_settings=list(dict.fromkeys(wording.setting(table) for table in speed)),
        parts=_parts(board),
        kernels=kernel_tables(results),
        curves=curves,
        curves_left_out=curves_left_out,
        film_note=budget.said,
        failures=wording.collapsed(board.failures),
        missing=wording.collapsed(board.missing),
        problems=[str(problem) for problem in results.problems],
        wording=wording,
        cell_unit=_unit,
        fragment=_fragment,
        warnings=_warnings(sections),
    )


def _asset(name: str) -> str:
    return resources.files("visgen_results.report").joinpath("templates", name).read_text("utf-8")


def _fragment(figure: Figure) -> Markup:
    """Plotly's own output, in which it has escaped `<` and `>`."""
    return Markup(figure.fragment)


def _unit(column: Column) -> str:
    return f" [{column.scale.unit}]" if column.scale.unit else ""


def _warnings(sections: list[Section]) -> list[str]:
    return list(dict.fromkeys(w for s in sections for table in s.tables for w in table.warnings))


def _header(results: Results, board: Leaderboard) -> dict[str, Any]:
    runs = [*results.runs, *results.failed]
    suites = sorted({run["suite"] for run in runs if run["suite"]})
    commits = sorted(
        f"{run['git_commit'][:12]}{' with changes' if run['git_dirty'] else ''}"
        for run in runs
        if run["git_commit"]
    )
    ended = [run["ended_at"] for run in runs if run["ended_at"]]
    root = results.root
    commands = [
        # a run puts its results into a folder named after the suite
        f"visgen-bench run {shlex.quote(suite)} --out "
        f"{shlex.quote(str(root.parent if root.name == suite else root))}"
        for suite in suites
    ]
    return {
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "ran": f"{min(ended):%Y-%m-%d %H:%M} to {max(ended):%Y-%m-%d %H:%M} UTC" if ended else "",
        "machines": wording.machine_lines(board),
        "versions": sorted({run["visgen_version"] for run in runs if run["visgen_version"]}),
        "commits": list(dict.fromkeys(commits)),
        "commands": commands,
        "one_row": f"visgen-bench rerun RUN_ID --folder {shlex.quote(str(root))}",
        "ok": sum(run["variant"] != "gate" for run in results.runs),
        "failed": len(results.failed),
    }


def _sections(
    results: Results, board: Leaderboard, tables: list[Pivot], budget: Budget
) -> list[Section]:
    by_dataset: dict[str, list[Pivot]] = defaultdict(list)
    for table in tables:
        if table.kind == "quality":
            by_dataset[table.facts["dataset"] or ""].append(table)
    for gate in board.gates:
        by_dataset[gate.dataset] += []
    speeds = [
        b for b in board.boards
        if b.metric.name == "throughput" and b.group["phase"] in ("sample", "total", None)
    ]  # fmt: skip
    over_frames = frame_series(results)
    sections = []
    for number, (dataset, own) in enumerate(sorted(by_dataset.items())):
        first = own[0].columns[0].board if own else None
        figure = None if first is None else _scatter(first, speeds, results, f"s{number}")
        names = _labels(own)
        sections.append(
            Section(
                dataset=dataset or "no data set",
                tables=own,
                gates=[gate for gate in board.gates if gate.dataset == dataset],
                faults=wording.faults([f for f in board.faults if f.dataset == dataset]),
                figure=figure,
                pictures=grids(results, dataset, names),
                films=films(results, dataset, board.clips, budget),
                over_time=frame_curves(own, over_frames, f"s{number}"),
            )
        )
    return sections


def _scatter(quality: Board, speeds: list[Board], results: Results, name: str) -> Figure | None:
    """Quality against the speed under the same condition."""
    asked = quality.group["condition"]
    own = [board for board in speeds if board.group["condition"] == asked]
    return quality_speed(quality, own, results, name)


def _labels(tables: list[Pivot]) -> dict[str, str]:
    return {
        run_id: row.label
        for table in tables
        for row in table.rows
        for cell in row.cells
        if cell is not None
        for run_id in cell.run_ids
    }


def _parts(board: Leaderboard) -> Parts | None:
    """The `params` boards, one column per network; None if nobody counted."""
    counted: dict[str, dict[str, str]] = defaultdict(dict)
    names: dict[str, None] = {}
    for own in (b for b in board.boards if b.metric.name == "params"):
        part = _part(own)
        names[part] = None
        for row in own.rows:
            counted[str(row.identity["model"])][part] = significant(row.value)
    if not counted:
        return None
    rows = [(model, [parts.get(n, "-") for n in names]) for model, parts in sorted(counted.items())]
    return Parts(list(names), rows)


def _part(board: Board) -> str:
    return plain(board.group["phase"] or "total")
