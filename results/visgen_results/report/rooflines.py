"""One roofline: what a model predicts for kernels, under the limits of a device."""

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import plotly.io

from visgen_results.display import figures, plain
from visgen_results.report.figures import COLOURS

if TYPE_CHECKING:
    from visgen_results.report.kernels import Device, Entry

HEIGHT = 460


@dataclass(frozen=True)
class Roofline:
    """A figure as a fragment of HTML."""

    title: str
    fragment: str
    caption: str


def roofline(device: "Device", entries: "Sequence[Entry]", name: str) -> Roofline | None:
    """The device's plot; None if no kernel has matrix work, a floor and a predicted time there."""
    points = [point for entry in entries if (point := _point(device, entry)) is not None]
    if not points or not device.bandwidth or not device.matrix:
        return None
    figure = go.Figure()
    left, right = _range([point.intensity for point in points])
    ridge = device.matrix / device.bandwidth
    for x, y, label in _roof(left, right, ridge, device):
        figure.add_trace(
            go.Scatter(
                x=x, y=y, mode="lines", name=label, line={"color": "#8a8f94", "width": 1.6},
                hoverinfo="skip", showlegend=False,
            )
        )  # fmt: skip
    grouped: dict[str, list[_Point]] = defaultdict(list)
    for point in points:
        grouped[point.kernel].append(point)
    for index, (kernel, members) in enumerate(grouped.items()):
        _add(figure, kernel, members, COLOURS[index % len(COLOURS)])
    _layout(figure, left, right, points, device)
    caption = (
        f"{device.name}: memory {figures(device.bandwidth / 1e12, 3)} TB/s, matrix units "
        f"{figures(device.matrix / 1e12, 4)} TFLOP/s, ridge at {figures(ridge, 3)} FLOP/byte. "
        "A dot is what the model predicts for a kernel, the tick above it that kernel's own floor "
        "(exponentials included): a tick below the roof is bound by exponentials. Nothing was run."
    )
    options = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    fragment = plotly.io.to_html(
        figure, include_plotlyjs=False, full_html=False, div_id=name, config=options
    )
    return Roofline(device.name, fragment, caption)


@dataclass(frozen=True)
class _Point:
    kernel: str
    layer: str
    text: str
    intensity: float
    predicted: float  # FLOP/s
    floor: float  # FLOP/s


def _point(device: "Device", entry: "Entry") -> _Point | None:
    flops, moved = entry.get("flops"), entry.get("bytes_least")
    floor, seconds = (entry.get(m, device.id) for m in ("floor_time", "predicted_time"))
    if not flops or not moved or not floor or not seconds:
        return None
    binding = entry.option("floor_time", device.id, "ceiling")
    tile = entry.tile
    text = (
        f"<b>{_text(entry.layer)} {_text(entry.kernel)}</b><br>{_text(entry.what)}"
        f"<br>{_text(entry.extras)}, {_text(tile)}"
        f"<br>model {seconds * 1e6:,.1f} µs = {flops / seconds / 1e12:,.1f} TFLOP/s"
        f"<br>floor {floor * 1e6:,.1f} µs ({_text(binding)}), model is {seconds / floor:.1f} x"
    )
    return _Point(entry.kernel, entry.layer, text, flops / moved, flops / seconds, flops / floor)


def _text(words: object) -> str:
    return html.escape(plain(words))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis of intensities, as exponents of 10."""
    return math.log10(min(values)) - 0.25, math.log10(max(values)) + 0.25


def _roof(
    left: float, right: float, ridge: float, device: "Device"
) -> list[tuple[list[float], list[float], str]]:
    low, high = 10**left, 10**right
    bandwidth, matrix = device.bandwidth or 0.0, device.matrix or 0.0
    slope_end = min(max(ridge, low), high)
    lines = [([low, slope_end], [low * bandwidth, slope_end * bandwidth], "memory")]
    if ridge < high:
        lines.append(([slope_end, high], [matrix, matrix], "matrix units"))
    return lines


def _add(figure: go.Figure, kernel: str, points: Sequence[_Point], colour: str) -> None:
    """Dots of one kernel, with a line up to each one's floor."""
    x: list[float | None] = []
    y: list[float | None] = []
    for point in points:
        x += [point.intensity, point.intensity, None]
        y += [point.predicted, point.floor, None]
    figure.add_trace(
        go.Scatter(
            x=x, y=y, mode="lines", line={"color": colour, "width": 1}, opacity=0.45,
            hoverinfo="skip", showlegend=False, legendgroup=kernel,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[point.intensity for point in points],
            y=[point.floor for point in points],
            mode="markers", marker={"symbol": "line-ew", "size": 9, "line": {"color": colour,
            "width": 1.6}}, hoverinfo="skip", showlegend=False, legendgroup=kernel,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[point.intensity for point in points],
            y=[point.predicted for point in points],
            mode="markers+text",
            text=[_text(point.layer) for point in points],
            textposition="bottom center",
            textfont={"size": 9},
            marker={"size": 8, "color": colour},
            name=_text(kernel),
            legendgroup=kernel,
            customdata=[point.text for point in points],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    )


def _layout(
    figure: go.Figure, left: float, right: float, points: Sequence[_Point], device: "Device"
) -> None:
    low = math.log10(min(point.predicted for point in points)) - 0.35
    top = math.log10(device.matrix or 1.0) + 0.2
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 64, "r": 16, "t": 12, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.18},
        hoverlabel={"align": "left"},
    )
    line = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "type": "log"}
    figure.update_xaxes(
        **line, range=[left, right], title_text="matrix FLOPs per byte", **_ticks(left, right)
    )
    figure.update_yaxes(
        **line, range=[low, top], title_text="FLOP/s, predicted", **_ticks(low, top, prefix=True)
    )


_PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M"}


def _ticks(left: float, right: float, *, prefix: bool = False) -> dict[str, Any]:
    """Powers of ten, and 2 and 5 times them where the range is short."""
    steps = (1, 2, 5) if right - left < 2.2 else (1, 3) if right - left < 4 else (1,)
    powers = range(math.floor(left), math.ceil(right) + 1)
    found = [step * 10.0**power for power in powers for step in steps]
    shown = [tick for tick in found if left <= math.log10(tick) <= right]
    return {"tickvals": list(shown), "ticktext": [_tick(tick, prefix) for tick in shown]}


def _tick(value: float, prefix: bool) -> str:
    if not prefix:
        return figures(value)
    power = max((p for p in _PREFIXES if value >= 10**p), default=6)
    return f"{figures(value / 10**power)} {_PREFIXES[power]}"
