"""Plotly figures of the report: quality against speed, quality over time, training curves.

Text that comes from results is escaped, because plotly reads a subset of HTML in labels. Colours
of axes and text come from the page's style, so that one figure serves light and dark.
"""

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from visgen_results import wording
from visgen_results.display import figures, plain
from visgen_results.leaderboard import VIDEO_ORDER, Board, BoardRow
from visgen_results.metrics import describe
from visgen_results.naming import is_clips, label
from visgen_results.pivot import Pivot, PivotRow
from visgen_results.reading import Results
from visgen_results.store import Store

COLOURS = ("#3b7dd8", "#d9622b", "#2f9e77", "#a05bc2", "#c2902e", "#cc4b6c", "#4aa3b5", "#7f8c8d")
MOST_POINTS = 1500
MOST_CURVES = 12
_UNITS = {"prior/loss": "nat/code"}
FRAMES_PHASE = "frames"  # of a measurement a frame


@dataclass(frozen=True)
class Figure:
    """A figure as a fragment of HTML, with the caption that belongs under it."""

    title: str
    fragment: str
    caption: str


def plotly_script() -> str:
    """The library's source, to be put into the page once."""
    return get_plotlyjs()


def _text(words: object) -> str:
    return html.escape(plain(words))


def _fragment(figure: go.Figure, name: str, *, height: int) -> str:
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 16, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.25},
        hoverlabel={"align": "left"},
    )
    line = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    figure.update_xaxes(**line)
    figure.update_yaxes(**line)
    options = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    return plotly.io.to_html(
        figure, include_plotlyjs=False, full_html=False, div_id=name, config=options
    )


def quality_speed(
    quality: Board, speeds: list[Board], results: Results, name: str
) -> Figure | None:
    """One point per model that has a quality number and a sampling throughput; None without any.

    Of the throughput boards (one comparable group each) the one that holds most of the models is
    drawn, the larger batch where two hold as many.
    """
    hashes = {run["run_id"]: run["weights_sha256"] for run in results.runs}
    drawn = [row for row in quality.rows if row.role == "ranked" and math.isfinite(row.value)]
    found: list[tuple[Board, list[tuple[BoardRow, BoardRow]]]] = []
    for board in speeds:
        pairs = [(row, _speed_of(row, board, hashes)) for row in drawn]
        found.append((board, [(row, fast) for row, fast in pairs if fast is not None]))
    if not any(pairs for _, pairs in found):
        return None
    board, pairs = max(found, key=lambda f: (len(f[1]), f[0].group["batch_size"] or 0))
    figure = go.Figure()
    left, right = _log_range([fast.value for _, fast in pairs])
    for index, (row, fast) in enumerate(pairs):
        side = "right" if math.log10(fast.value) < (left + right) / 2 else "left"
        figure.add_trace(_point(row, fast, COLOURS[index % len(COLOURS)], side))
    group = board.group
    ticks = _log_ticks(left, right)
    figure.update_xaxes(
        type="log",
        range=[left, right],
        tickvals=ticks,
        ticktext=[figures(tick) for tick in ticks],
        title_text=_text(f"throughput, {group['unit']}, batch {group['batch_size']}"),
    )
    direction = f", {wording.direction(quality)}"
    figure.update_yaxes(title_text=_text(f"{quality.metric.label}{direction}"))
    figure.update_layout(showlegend=False)
    caption = (
        f"Throughput of the sample phase on {group['device_name'] or group['device_type']}, "
        f"{group['dtype']}, batch {group['batch_size']}; bars are 95 % intervals where there are "
        "any. A point joins a quality number with the speed of the same preset; where both rows "
        "record the weights' hash, the hashes are equal."
    )
    title = f"{quality.metric.label} against speed"
    return Figure(title, _fragment(figure, name, height=380), plain(caption))


def _speed_of(row: BoardRow, board: Board, hashes: dict[str, str | None]) -> BoardRow | None:
    """Speed of the same model and weights, with the same attention if there is a choice."""
    own = {hashes.get(run_id) for run_id in row.run_ids} - {None}
    matching = []
    for fast in board.rows:
        theirs = {hashes.get(run_id) for run_id in fast.run_ids} - {None}
        same_weights = not own or not theirs or bool(own & theirs)
        if fast.value > 0 and fast.identity["model"] == row.identity["model"] and same_weights:
            matching.append(fast)
    same = [f for f in matching if f.identity["attention"] == row.identity["attention"]]
    return next(iter(same or matching), None)


def _log_range(values: list[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis, as exponents of 10, with room for labels."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.15, (high - low) * 0.12)
    return low - room, high + room


def _log_ticks(left: float, right: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside the range; powers alone where it is wide."""
    steps = (1, 2, 5) if right - left < 4 else (1,)
    powers = range(math.floor(left), math.ceil(right) + 1)
    found = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in found if left <= math.log10(tick) <= right]


def _point(row: BoardRow, fast: BoardRow, colour: str, side: str) -> go.Scatter:
    return go.Scatter(
        x=[fast.value],
        y=[row.value],
        mode="markers+text",
        text=[_text(plain(row.label, 40))],
        textposition=f"top {side}",
        cliponaxis=False,
        marker={"size": 11, "color": colour},
        error_x=_bars(fast, colour),
        error_y=_bars(row, colour),
        hovertemplate="%{text}<br>%{x:.4g} per second<br>%{y:.4g}<extra></extra>",
    )


def _bars(row: BoardRow, colour: str) -> dict[str, Any]:
    if row.interval is None:
        return {"visible": False}
    up, down = row.interval.high - row.value, row.value - row.interval.low
    if not (math.isfinite(up) and math.isfinite(down)):
        return {"visible": False}
    return {
        "type": "data", "array": [max(up, 0)], "arrayminus": [max(down, 0)], "color": colour,
        "thickness": 1.2, "width": 4,
    }  # fmt: skip


def training_curves(results: Results) -> tuple[list[Figure], str]:
    """One figure per logged name, one line per train run; and what was left out, if anything."""
    runs = {run["run_id"]: run for run in results.runs if run["kind"] == "train"}
    lines = series_of(results, set(runs))
    names = sorted(lines)
    drawn = []
    for number, name in enumerate(names[:MOST_CURVES]):
        figure = go.Figure()
        for index, (run_id, points) in enumerate(sorted(lines[name].items())):
            points.sort()
            stride = -(-len(points) // MOST_POINTS)
            steps, values = zip(*points[::stride], strict=True)
            run = runs[run_id]
            seed = "" if run["seed"] is None else f", seed {run['seed']}"
            figure.add_trace(
                go.Scatter(
                    x=steps, y=values, mode="lines", name=_text(f"{label(run)}{seed}"),
                    line={"color": COLOURS[index % len(COLOURS)], "width": 1.5},
                )
            )  # fmt: skip
        figure.update_xaxes(title_text="step")
        figure.update_yaxes(title_text=_text(_with_unit(name)))
        figure.update_layout(showlegend=True)
        drawn.append(Figure(plain(name), _fragment(figure, f"curve{number}", height=300), ""))
    left = (
        f"{len(names) - MOST_CURVES} further series are not drawn." if names[MOST_CURVES:] else ""
    )
    return drawn, left


def _with_unit(name: str) -> str:
    """A series with its unit, if it has one."""
    entry = describe(name)
    unit = _UNITS.get(name, entry.unit)
    return f"{entry.label} [{unit}]" if unit not in ("", "1") else entry.label


def series_of(
    results: Results, run_ids: set[str], phase: str | None = None
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Series of these runs, name -> run -> (step, value).

    Of one phase if it is named; else the name says it: `prior/loss`.
    """
    lines: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    if not run_ids:
        return lines
    content = Store(results.root).read("measurements", lambda problem: None)
    names = ("run_id", "metric", "phase", "iter", "value")
    columns = (content.column(c).to_pylist() for c in names)
    for run_id, metric, its_phase, step, value in zip(*columns, strict=True):
        wanted = run_id in run_ids and phase in (None, its_phase)
        if wanted and step is not None and value is not None:
            whole = phase is not None or its_phase in (None, "total")
            name = metric if whole else f"{its_phase}/{metric}"
            lines[name][run_id].append((step, value))
    return lines


def frame_series(results: Results) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Per-frame numbers of the quality cells of clips: metric -> run -> (frame, value)."""
    clips = {r["run_id"] for r in results.runs if r["kind"] == "quality" and is_clips(r)}
    return series_of(results, clips, FRAMES_PHASE)


def frame_curves(
    tables: Sequence[Pivot], series: dict[str, dict[str, list[tuple[int, float]]]], name: str
) -> list[Figure]:
    """How numbers go on over the frames: a figure a metric, a line a row.

    Tables of one split, size and count that differ in their condition share a figure, in which a
    line says what was asked for.
    """
    groups: dict[tuple[Any, ...], list[Pivot]] = defaultdict(list)
    for table in tables:
        facts = {**table.facts, "condition": None}
        groups[tuple(facts.values())].append(table)
    drawn: list[Figure] = []
    for members in groups.values():
        for metric in sorted(series, key=_place):
            lines = _frame_lines(members, series[metric])
            if lines:
                fragment = _frame_figure(metric, lines, f"{name}f{len(drawn)}")
                title = f"{describe(metric).label} over time"
                drawn.append(Figure(plain(title), fragment, _frame_caption(members)))
    return drawn


def _frame_lines(
    tables: Sequence[Pivot], runs: dict[str, list[tuple[int, float]]]
) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for table in tables:
        asked = table.facts["condition"]
        for row in table.rows:
            points = _mean_curve(row, runs)
            named = row.role == "reference" or not asked or asked in row.label.split()
            if points:
                lines[row.label if named else f"{row.label} ({asked})"] = points
    return lines


def _frame_figure(metric: str, lines: dict[str, list[tuple[int, float]]], name: str) -> str:
    figure = go.Figure()
    for index, (row, points) in enumerate(lines.items()):
        figure.add_trace(_line(row, points, index))
    directions = {True: ", higher is better", False: ", lower is better", None: ""}
    better = directions[describe(metric).higher_is_better]
    figure.update_xaxes(title_text="frame of the clip (0 is the first)", rangemode="tozero")
    figure.update_yaxes(title_text=_text(f"{_with_unit(metric)}{better}"))
    figure.update_layout(showlegend=True)
    return _fragment(figure, name, height=320)


def _frame_caption(tables: Sequence[Pivot]) -> str:
    facts = tables[0].facts
    where = [facts["dataset"], f"{facts['split']} split" if facts["split"] else None]
    where += [facts["resolution"], None if facts["n"] is None else f"n = {facts['n']:,} clips"]
    several = len({table.facts["condition"] for table in tables}) > 1
    note = " Lines under different conditions are not to be ranked." if several else ""
    return plain(
        f"{', '.join(part for part in where if part)}: the mean over the clips at each frame, of "
        f"several seeds their mean. Frames that a model was given have no value.{note}"
    )


def _place(metric: str) -> tuple[int, str]:
    known = metric in VIDEO_ORDER
    return (VIDEO_ORDER.index(metric) if known else len(VIDEO_ORDER), metric)


def _mean_curve(row: PivotRow, runs: dict[str, list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over a row's seeds at each frame that all of them have."""
    curves = [dict(runs[run_id]) for run_id in row.run_ids if runs.get(run_id)]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return [(i, sum(curve[i] for curve in curves) / len(curves)) for i in sorted(shared)]


def _line(name: str, points: list[tuple[int, float]], index: int) -> go.Scatter:
    frames, values = zip(*points, strict=True)
    dashes = ("solid", "dash", "dot", "dashdot")
    dash = dashes[index // len(COLOURS) % len(dashes)]
    return go.Scatter(
        x=frames, y=values, mode="lines+markers", name=_text(name), marker={"size": 5},
        line={"color": COLOURS[index % len(COLOURS)], "width": 1.5, "dash": dash},
    )  # fmt: skip
