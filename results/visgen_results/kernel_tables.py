"""Tables of timed kernels, and of what attention is worth to whole models.

Rows of `kernels bench` have kind `kernel` and ran on a device (static reports have device type
`static` and pages of their own); rows of `kernels share` carry `attention_share` and gains.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visgen_results.display import escape_markdown, figures, plain
from visgen_results.leaderboard import PHASES
from visgen_results.reading import Results, Row, failure_reason

# The first of these that was measured is shown: least of the host and of neighbours in it first.
METHODS = ("graph", "events", "cpu_time", "wall_sync")
_PAIRED = ("events", "cpu_time", "wall_sync")
_OURS = ("triton", "chunked")
_DIRECTIONS = ("forward", "backward", "double_backward")
_SHARES = ("attention_share", "gain_observed", "gain_predicted", "kernel_speedup")
NONE = "-"
TIME_NOTE = (
    "Time: median of all calls with its 95 % interval; graph and events with flushed caches, "
    "cpu_time and wall_sync warm. Nothing is dropped as an outlier."
)
OURS_NOTE = "Their time / ours: paired in rounds, with a 95 % interval; above 1 ours is faster."
ERROR_NOTE = (
    "Error: the largest over all results against float64, as a multiple of the definition's error "
    "in the same dtype."
)
GAIN_NOTE = (
    "Gain: step time with this implementation over ours. Predicted is Amdahl's law, 1 - f + f r, "
    "from attention's share f under ours and the kernel's speed-up r, both measured; it is a model."
)
SHARE_NOTE = (
    "Share of memory: bytes that attention's operators had allocated when the step's memory was "
    "highest, over all that was."
)


@dataclass(frozen=True)
class Table:
    """A table as text; `wide` columns are left out where lines are short."""

    title: str
    setting: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    wide: frozenset[str] = frozenset()


def kernel_tables(results: Results, *, only: Collection[str] | None = None) -> list[Table]:
    """Tables of a result folder, or of some runs of it; none if no kernel was timed there."""
    numbers = [row for row in results.numbers if only is None or row["run_id"] in only]
    failed = [run for run in results.failed if only is None or run["run_id"] in only]
    return [_filled(table) for table in (*_timed(numbers, failed), *_shares(numbers, failed))]


def _filled(table: Table) -> Table:
    """Without the columns in which nothing stands."""
    keep = [
        i for i in range(len(table.head)) if any(row[i] not in ("", NONE) for row in table.rows)
    ]
    rows = tuple(tuple(row[i] for i in keep) for row in table.rows)
    return replace(table, head=tuple(table.head[i] for i in keep), rows=rows)


def _timed(numbers: Sequence[Row], failed: Sequence[Row]) -> list[Table]:
    """One table for each direction, dtype and device."""
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in numbers:
        if _is_timed(row):
            groups[_setting(row)][row["run_id"]].append(row)
    lost: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for run in failed:
        if _is_timed(run):
            lost[_setting(run)].append(run)
    settings = sorted({*groups, *lost}, key=lambda one: (_DIRECTIONS.index(one[0]), str(one)))
    return [_timed_table(one, groups[one], lost[one]) for one in settings]


def _is_timed(row: Row) -> bool:
    ran = row["kind"] == "kernel" and row["device_type"] != "static" and row["attention"]
    return bool(ran) and _direction(row) in _DIRECTIONS


def _direction(row: Row) -> str:
    return (row["variant"] or "").partition(" ")[0]


def _setting(row: Row) -> tuple[Any, ...]:
    names = ("dtype", "device_type", "device_name", "threads", "machine_id")
    return (_direction(row), *(row[name] for name in names))


_TIMED_HEAD = (
    "shape", "batch", "backend", "time", "n", "timed by", "their time / ours", "error",
    "extra memory", "FLOP/s", "B/s", "of its ceiling", "same bits twice", "compile", "why not",
)  # fmt: skip
_WIDE = frozenset({"n", "timed by", "FLOP/s", "B/s", "same bits twice", "compile"})


def _timed_table(
    setting: tuple[Any, ...], runs: dict[str, list[Row]], lost: Sequence[Row]
) -> Table:
    direction, dtype, device_type, device, threads, _ = setting
    by_shape: dict[tuple[str, int], list[tuple[Row, list[Row]]]] = defaultdict(list)
    for rows in runs.values():
        by_shape[rows[0]["dataset"], rows[0]["batch_size"]].append((rows[0], rows))
    for run in lost:
        by_shape[run["dataset"], run["batch_size"]].append((run, []))
    lines = []
    for (shape, batch), members in by_shape.items():
        ours = next((rows for row, rows in members if row["attention"] in _OURS and rows), [])
        for row, rows in sorted(members, key=lambda one: one[0]["attention"] not in _OURS):
            why = _why_not(rows, row)
            own = _timed_line(row["attention"], rows, ours)
            lines.append((shape, str(batch), row["attention"], *own, why))
    where = "no GPU: these are the CPU's implementations" if device_type == "cpu" else ""
    parts = [device, f"{threads} threads" if device_type == "cpu" else None, where]
    return Table(
        title=f"Attention, {direction.replace('_', ' ')}, {dtype}",
        setting=", ".join(plain(part) for part in parts if part),
        head=_TIMED_HEAD,
        rows=tuple(lines),
        notes=(TIME_NOTE, OURS_NOTE, ERROR_NOTE),
        wide=_WIDE,
    )


def _timed_line(backend: str, rows: Sequence[Row], ours: Sequence[Row]) -> tuple[str, ...]:
    """Cells between the backend's name and the reason."""
    time = _first(rows, "latency", METHODS, stat="p50", l2=("cold", "warm"))
    seconds = NONE if time is None else _with_interval(time, _time)
    faster = [row for row in ours if row["metric"] == "speedup" and row["phase"] == backend]
    gain = _first(faster, "speedup", _PAIRED)
    ratios = [row["value"] for row in rows if row["metric"] == "error_ratio" and _has(row)]
    bits = _value(rows, "deterministic")
    share = _value(rows, "ceiling_share", phase="binding")
    return (
        seconds,
        NONE if time is None else str(time["n"]),
        NONE if time is None else f"{time['timing_method']}, {time['l2']}",
        NONE if gain is None else _with_interval(gain, lambda value: f"{figures(value, 3)}x"),
        figures(max(ratios), 3) if ratios else NONE,
        _shown(_value(rows, "mem_extra_peak"), _bytes),
        _shown(_value(rows, "flop_rate"), _rate),
        _shown(_value(rows, "byte_rate"), _rate),
        _shown(share, lambda value: f"{100 * value:.0f} % ({_binding(rows)})"),
        NONE if bits is None else ("yes" if bits == 1.0 else "no"),
        _shown(_value(rows, "compile_time"), _time),
    )


def _why_not(rows: Sequence[Row], run: Row) -> str:
    """Why there is no time: the run's reason, or the median's if the run has other numbers."""
    if not rows:
        return plain(failure_reason(run), 160)
    medians = [row for row in rows if row["metric"] == "latency" and row["stat"] == "p50"]
    if any(_has(row) for row in medians):
        return ""
    order = {name: place for place, name in enumerate(reversed(METHODS))}
    ranked = sorted(medians, key=lambda row: order.get(row["timing_method"], len(order)))
    return plain(ranked[0]["reason"], 160) if ranked else ""


def _binding(rows: Sequence[Row]) -> str:
    """The ceiling whose share equals the binding one's, by name."""
    shares = {r["phase"]: r["value"] for r in rows if r["metric"] == "ceiling_share" and _has(r)}
    binding = shares.pop("binding", None)
    return next((name for name, value in shares.items() if value == binding), "")


def _shares(numbers: Sequence[Row], failed: Sequence[Row]) -> list[Table]:
    """One table of all models, by device and dtype."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in numbers:
        if row["kind"] == "performance":
            runs[row["run_id"]].append(row)
    told = {i: rows for i, rows in runs.items() if any(r["metric"] in _SHARES for r in rows)}
    keys = {_model(row) for rows in told.values() for row in rows}
    tables: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], Row, list[Row]]]] = defaultdict(list)
    for rows in told.values():
        first = rows[0]
        tables[_place(first)].append((_model(first), first, rows))
    for run in failed:
        key = (run["model"], _phase_of(run), run["batch_size"])
        if run["kind"] == "performance" and key in keys:
            tables[_place(run)].append((key, run, []))
    return [_share_table(place, lines) for place, lines in tables.items()]


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("device_type", "device_name", "dtype", "threads"))


def _model(row: Row) -> tuple[Any, ...]:
    return row["model"], row["phase"], row["batch_size"]


def _phase_of(run: Row) -> str | None:
    import json

    try:
        return json.loads(run["config_json"] or "{}").get("phase")
    except json.JSONDecodeError:
        return None


_SHARE_HEAD = (
    "model", "phase", "batch", "attention", "step", "n", "share of time", "share of memory",
    "peak memory", "kernel's speed-up", "gain predicted", "gain observed", "why not",
)  # fmt: skip


def _share_table(
    place: tuple[Any, ...], lines: Sequence[tuple[tuple[Any, ...], Row, list[Row]]]
) -> Table:
    device_type, device, dtype, threads = place
    rows = []
    ordered = sorted(lines, key=_share_order)
    for (model, phase, batch), first, own in ordered:
        time = _first(own, "latency", METHODS, stat="p50", l2=("cold", "warm"))
        share = _first(own, "attention_share", ("profiler", *METHODS), stat="p50")
        rows.append(
            (
                model,
                phase or NONE,
                str(batch),
                first["attention"],
                NONE if time is None else _with_interval(time, _time),
                NONE if time is None else str(time["n"]),
                NONE if share is None else _with_interval(share, _percent),
                _shown(_value(own, "attention_memory_share"), _percent),
                _shown(_value(own, "mem_alloc_peak"), _bytes),
                *(_gain(own, name) for name in ("kernel_speedup", "gain_predicted")),
                _gain(own, "gain_observed"),
                _why_not(own, first),
            )
        )
    threads_text = f", {threads} threads" if device_type == "cpu" else ""
    return Table(
        title="From kernel to model",
        setting=plain(f"{device}{threads_text}, {dtype}"),
        head=_SHARE_HEAD,
        rows=tuple(rows),
        notes=(TIME_NOTE, SHARE_NOTE, GAIN_NOTE),
        wide=frozenset({"n"}),
    )


def _share_order(line: tuple[tuple[Any, ...], Row, list[Row]]) -> tuple[Any, ...]:
    """Models by name, phases as they are taken, ours first, what failed last."""
    (model, phase, batch), first, own = line
    place = PHASES.index(phase) if phase in PHASES else len(PHASES)
    return (model, place, batch, first["attention"] not in _OURS, not own)


def _gain(rows: Sequence[Row], metric: str) -> str:
    found = next((row for row in rows if row["metric"] == metric and _has(row)), None)
    return NONE if found is None else _with_interval(found, lambda v: f"{figures(v, 3)}x")


def _has(row: Row) -> bool:
    return row["value"] is not None


def _value(rows: Sequence[Row], metric: str, *, phase: str | None = None) -> float | None:
    for row in rows:
        if row["metric"] == metric and _has(row) and phase in (None, row["phase"]):
            return row["value"]
    return None


def _first(
    rows: Sequence[Row],
    metric: str,
    methods: Sequence[str],
    *,
    stat: str = "value",
    l2: Sequence[str] = ("cold", "warm"),
) -> Row | None:
    """Of a metric the row by the most trusted method, cold before warm."""
    own = [row for row in rows if row["metric"] == metric and row["stat"] == stat and _has(row)]
    known = [row for row in own if row["timing_method"] in methods]
    order = {name: place for place, name in enumerate(methods)}
    return min(
        known,
        key=lambda row: (order[row["timing_method"]], row["l2"] != l2[0]),
        default=None,
    )


def _shown(value: float | None, show: Any) -> str:
    return NONE if value is None else show(value)


def _with_interval(row: Row, show: Any) -> str:
    text = show(row["value"])
    if row["ci_low"] is None or row["ci_high"] is None:
        return f"{text} (n {row['n']})"
    return f"{text} [{show(row['ci_low'])}, {show(row['ci_high'])}]"


def _time(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= factor:
            return f"{figures(seconds / factor, 3)} {unit}"
    return f"{figures(seconds / 1e-6, 3)} µs"


def _bytes(count: float) -> str:
    for factor, unit in ((2.0**30, "GiB"), (2.0**20, "MiB")):
        if count >= factor:
            return f"{figures(count / factor, 3)} {unit}"
    return f"{figures(count / 2**10, 3)} KiB"


def _rate(value: float) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{figures(value / factor, 3)} {letter}"
    return f"{figures(value / 1e6, 3)} M"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def to_text(tables: Sequence[Table]) -> str:
    """Plain text; wide columns are left out."""
    lines: list[str] = []
    for table in tables:
        keep = [i for i, name in enumerate(table.head) if name not in table.wide]
        grid = [[table.head[i] for i in keep], *([row[i] for i in keep] for row in table.rows)]
        widths = [max(len(row[column]) for row in grid) for column in range(len(keep))]
        lines += [table.title, "=" * len(table.title), *([table.setting] if table.setting else [])]
        lines.append("")
        for row in grid:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        lines += ["", *table.notes, ""]
    return "\n".join(lines) or "No kernel was timed.\n"


def to_markdown(tables: Sequence[Table]) -> str:
    """Every column; foreign text is escaped."""
    lines: list[str] = []
    for table in tables:
        lines += [f"## {escape_markdown(table.title)}", "", escape_markdown(table.setting), ""]
        lines += [f"| {' | '.join(table.head)} |", f"|{'---|' * len(table.head)}"]
        for row in table.rows:
            lines.append("| " + " | ".join(escape_markdown(cell) for cell in row) + " |")
        lines += ["", *(f"{note}\n" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n" if lines else ""
