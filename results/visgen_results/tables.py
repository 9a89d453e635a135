"""A leaderboard as plain text, Markdown and one JSON document."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from visgen_results import wording
from visgen_results.clips import Clips
from visgen_results.display import escape_markdown, plain, rank
from visgen_results.leaderboard import PROXY_WARNINGS, Board, BoardRow, Leaderboard, Missing
from visgen_results.pivot import Column, Pivot, pivots

SMALLEST_WIDTH = 72
LABEL_WIDTH = 38
HEADING_WIDTH = 32
_REFERENCE = " (reference)"
CLIPS_HEADING = "Frames of clips"
# a terminal shows the headline numbers; Markdown, JSON and the report have all of them
_TERMINAL_SPEED = {
    ("throughput", "value"), ("latency", "p50"), ("latency", "p95"), ("mem_alloc_peak", "value"),
    ("mem_host_peak", "value"), ("flops", "value"), ("energy_j_per_sample", "value"),
}  # fmt: skip


def to_text(board: Leaderboard, width: int = 100) -> str:
    """Plain text of at most `width` columns (at least 72): tables, gates, and what is missing."""
    width = max(width, SMALLEST_WIDTH)
    lines: list[str] = []
    for _, tables in itertools.groupby(pivots(board.boards), key=_place):
        lines += _text_section(list(tables), width)
    if not board.boards:
        lines += ["No numbers to rank.", ""]
    if board.gates:
        lines += ["Gates", "-----"]
        for gate in board.gates:
            verdict = {True: "passed", False: "FAILED", None: "not judged"}[gate.passed]
            where = f" on {gate.dataset}" if gate.dataset else ""
            text = f"{verdict}: {gate.name}, {gate.label}{where}"
            lines += _wrap(f"{text} ({gate.text})" if gate.text else text, width)
        lines.append("")
    if board.faults:
        lines += ["Faults", "------"]
        for text, names in wording.faults(board.faults):
            lines += _wrap(f"{plain(text, 300)} [{_few(names)}]", width)
        lines.append("")
    for heading, entries in (("Failed and skipped", board.failures), ("No number", board.missing)):
        if entries:
            lines += [heading, "-" * len(heading), *_text_missing(entries, width), ""]
    if board.clips:
        lines += [CLIPS_HEADING, "-" * len(CLIPS_HEADING)]
        for clips in board.clips:
            text = f"{_data_of(clips)}: {clips.caption}: {clips.sheet} (real: {clips.real_sheet})"
            lines += _wrap(text, width)
        lines.append("")
    for line in wording.machine_lines(board):
        lines += _wrap(line, width)
    return "\n".join(lines).rstrip() + "\n"


def _data_of(clips: Clips) -> str:
    """Data and split of a quality cell."""
    return ", ".join(str(clips.run[n]) for n in ("dataset", "split") if clips.run[n])


def _place(pivot: Pivot) -> tuple[str, str]:
    """Speed tables of one device stand together; every quality table stands alone."""
    alone = wording.title(pivot) if pivot.kind == "quality" else ""
    return (alone, wording.setting(pivot))


def _wrap(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        plain(text), width, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False
    )


def _text_missing(entries: Sequence[Missing], width: int) -> list[str]:
    lines = []
    for what, status, reason, names in wording.collapsed(entries):
        head = status if what == "cell" else what
        lines += _wrap(f"{head}: {plain(reason, 300)} [{_few(names)}]", width)
    return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _text_section(tables: Sequence[Pivot], width: int) -> list[str]:
    """Tables of one setting, with what holds for all of them said once beneath."""
    lines = _wrap(wording.setting(tables[0]), width) if tables[0].kind == "performance" else []
    notes: dict[str, None] = {}
    for pivot in tables:
        chosen = [i for i, c in enumerate(pivot.columns) if pivot.kind == "quality" or _headline(c)]
        heading = wording.title(pivot)
        lines += [*_wrap(heading, width), "=" * min(width, len(heading))]
        if pivot.kind == "quality":
            lines += _wrap(wording.setting(pivot), width)
        names = _names(pivot, min(LABEL_WIDTH, width // 2 - 6))
        for number, block in enumerate(_blocks(pivot, chosen, width - len(names[0]))):
            lines += ["", *_text_block(pivot, block, names, with_rank=number == 0)]
        lines.append("")
        for warning in pivot.warnings:
            notes[f"* {warning}" if warning in PROXY_WARNINGS else warning] = None
        for index in chosen:
            notes[f"{pivot.columns[index].heading}: {wording.note(pivot.columns[index])}"] = None
        if any(row.role != "ranked" for row in pivot.rows):
            notes[wording.UNRANKED_NOTE] = None
        if wording.shared(pivot):
            notes[wording.SHARED_NOTE] = None
    notes[wording.RANK_NOTE] = None
    if tables[0].kind == "performance":
        notes[wording.SPEED_NOTE] = None
    for text in notes:
        lines += _wrap(text, width)
    return [*lines, ""]


def _headline(column: Column) -> bool:
    group = column.board.group
    return (column.board.metric.name, group["stat"]) in _TERMINAL_SPEED


def _cell(column: Column, row: BoardRow | None) -> str:
    if row is None:
        return "-"
    shown = column.scale.show(row.value) + wording.mark(row)
    if row.interval is not None:
        shown += f" {column.scale.show_interval(row.interval)}"
    return shown


def _heading(column: Column) -> str:
    unit = f" [{column.scale.unit}]" if column.scale.unit else ""
    return plain(f"{column.heading}{unit}", HEADING_WIDTH)


def _blocks(pivot: Pivot, chosen: Sequence[int], width: int) -> list[list[int]]:
    """Columns that fit beside each other."""
    blocks: list[list[int]] = [[]]
    used = start = 6  # the rank, and the gap after it
    for index in chosen:
        wide = 2 + _width(pivot, index)
        if blocks[-1] and used + wide > width:
            blocks.append([])
            used = start
        blocks[-1].append(index)
        used += wide
    return blocks


def _width(pivot: Pivot, index: int) -> int:
    column = pivot.columns[index]
    cells = [len(_cell(column, row.cells[index])) for row in pivot.rows]
    return max([len(_heading(column)), *cells])


def _names(pivot: Pivot, limit: int) -> list[str]:
    """Names of all rows, padded to one width; a long one still says that it is a reference."""
    names = []
    for row in pivot.rows:
        mark = _REFERENCE if row.role == "reference" else ""
        names.append(plain(row.label, limit - len(mark)) + mark)
    width = max(len(name) for name in names)
    return [name.ljust(width) for name in names]


def _text_block(
    pivot: Pivot, block: Sequence[int], names: Sequence[str], *, with_rank: bool
) -> list[str]:
    """Some columns of a table; the rank is that of its first column."""
    widths = [_width(pivot, index) for index in block]
    head = [_heading(pivot.columns[index]) for index in block]
    grid = [("rank" if with_rank else "", " " * len(names[0]), head)]
    for row, name in zip(pivot.rows, names, strict=True):
        cells = [_cell(pivot.columns[index], row.cells[index]) for index in block]
        first = row.cells[block[0]] if block else None
        place = rank(None if first is None else first.rank) if with_rank else ""
        grid.append((place, name, cells))
    lines = []
    for place, name, cells in grid:
        padded = "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{place:<4}  {name}{padded}".rstrip())
    return lines


def to_markdown(board: Leaderboard) -> str:
    """Tables of every board with all values, counts and intervals; foreign text is escaped."""
    lines = ["# Leaderboard", ""]
    for pivot in pivots(board.boards):
        lines += [
            f"## {escape_markdown(wording.title(pivot))}",
            "",
            escape_markdown(wording.setting(pivot)),
            "",
        ]
        lines += [f"> {escape_markdown(warning)}\n" for warning in pivot.warnings]
        lines += [f"> {wording.SHARED_NOTE}\n"] if wording.shared(pivot) else []
        for column in pivot.columns:
            lines += _markdown_board(column)
    if board.gates:
        lines += ["## Gates", "", "| gate | model | data | result | why |", "|---|---|---|---|---|"]
        for gate in board.gates:
            verdict = {True: "passed", False: "**failed**", None: "not judged"}[gate.passed]
            cells = (
                escape_markdown(gate.name),
                escape_markdown(gate.label),
                escape_markdown(gate.dataset),
                verdict,
                escape_markdown(gate.text),
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if board.faults:
        lines += ["## Faults", ""]
        for text, names in wording.faults(board.faults):
            lines.append(f"- {escape_markdown(plain(text, 300))} ({escape_markdown(_few(names))})")
        lines.append("")
    entries = [*board.failures, *board.missing]
    if entries:
        lines += ["## Failed, skipped, and not measured", "", "| what | status | reason | where |"]
        lines.append("|---|---|---|---|")
        for what, status, reason, names in wording.collapsed(entries):
            cells = (what, status, plain(reason, 300), ", ".join(names))
            lines.append("| " + " | ".join(escape_markdown(cell) for cell in cells) + " |")
        lines.append("")
    if board.clips:
        lines += [f"## {CLIPS_HEADING}", "", "Paths are relative to the result folder.", ""]
        lines += ["| data | clips | samples | real clips |", "|---|---|---|---|"]
        for clips in board.clips:
            cells = (_data_of(clips), clips.caption, clips.sheet, clips.real_sheet)
            lines.append("| " + " | ".join(escape_markdown(cell) for cell in cells) + " |")
        lines.append("")
    lines += [f"- {escape_markdown(line)}" for line in wording.machine_lines(board)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_board(column: Column) -> list[str]:
    unit = f", {column.scale.unit}" if column.scale.unit else ""
    lines = [
        f"### {escape_markdown(column.heading)}{escape_markdown(unit)}",
        "",
        escape_markdown(wording.note(column)),
        "",
    ]
    lines += ["| rank | model | value | 95 % interval | sd over seeds | values | n |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in column.board.rows:
        show = column.scale.show
        within = "none" if row.interval is None else column.scale.show_interval(row.interval)
        cells = (
            rank(row.rank) if row.role == "ranked" else row.role,
            escape_markdown(row.label),
            show(row.value) + wording.mark(row),
            within,
            "-" if row.sd is None else show(row.sd),
            ", ".join(show(value) for value in row.values.values()),
            "-" if row.n is None else str(row.n),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def to_dict(board: Leaderboard) -> dict[str, Any]:
    """One document for JSON; `rows` holds one entry per board and model, never NaN."""
    return {
        "rows": [_flat(b, row) for b in board.boards for row in b.rows],
        "gates": [dict(gate.__dict__) for gate in board.gates],
        "failures": [dict(entry.__dict__) for entry in board.failures],
        "missing": [dict(entry.__dict__) for entry in board.missing],
        "faults": [dict(entry.__dict__) for entry in board.faults],
        "clips": [clips.to_dict() for clips in board.clips],
        "machines": [
            {key: value.isoformat() if hasattr(value, "isoformat") else value
             for key, value in row.items()}
            for row in board.machines
        ],
    }  # fmt: skip


def _flat(board: Board, row: BoardRow) -> dict[str, Any]:
    low, high = (None, None) if row.rank is None else row.rank
    interval = row.interval
    return {
        "kind": board.kind,
        **{key: _finite(value) for key, value in board.group.items()},
        **row.identity,
        "label": row.label,
        "role": row.role,
        "value": _finite(row.value),
        "not_finite": None if math.isfinite(row.value) else str(row.value),
        "sd": None if row.sd is None else _finite(row.sd),
        "values": {str(seed): _finite(value) for seed, value in row.values.items()},
        "n": row.n,
        "shared": row.shared,
        "ci_low": None if interval is None else _finite(interval.low),
        "ci_high": None if interval is None else _finite(interval.high),
        "ci_method": None if interval is None else interval.method,
        "no_interval": row.no_interval or None,
        "rank_best": low,
        "rank_worst": high,
        "higher_is_better": board.metric.higher_is_better,
        "proxy": board.proxy,
        "warning": board.warning or None,
        "run_ids": list(row.run_ids),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
