"""Boards side by side: one row per model, one column per metric, for readers' first look.

Boards stand in one pivot only if they share data, machine and counts; each column keeps its own
group, so that what its numbers have in common can be printed beneath.
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visgen_results.clips import clip_count
from visgen_results.display import Scale, scale
from visgen_results.leaderboard import INSIDE_WARNING, PROXY_WARNINGS, Board, BoardRow
from visgen_results.naming import ROLES, distinguishing, label_of

QUALITY_SECTION = (
    "dataset", "split", "resolution", "task", "condition", "machine_id", "n", "n_ref",
)  # fmt: skip
PERFORMANCE_SECTION = (
    "dataset", "resolution", "task", "condition", "phase", "batch_size", "machine_id",
    "device_name", "device_type", "n_devices", "threads", "dtype", "torch", "driver",
)  # fmt: skip
_HEADLINES = ("throughput", "latency")


@dataclass(frozen=True)
class Column:
    """One board as a column: its heading and the unit it is shown in."""

    board: Board
    heading: str
    scale: Scale


@dataclass(frozen=True)
class PivotRow:
    """One model's numbers, in the order of the columns; None where it has none."""

    label: str
    role: str
    cells: tuple[BoardRow | None, ...]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs behind the row, each once."""
        return tuple(dict.fromkeys(i for cell in self.cells if cell for i in cell.run_ids))


@dataclass(frozen=True)
class Pivot:
    """A table over several metrics; `facts` hold for every number in it."""

    kind: str
    facts: dict[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[PivotRow, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each warning once; that of a proxy says what the other one says, and more."""
        found = dict.fromkeys(c.board.warning for c in self.columns if c.board.warning)
        if found.keys() & set(PROXY_WARNINGS):
            found.pop(INSIDE_WARNING, None)
        return tuple(found)

    def only(self, stats: Container[str]) -> "Pivot":
        """The same rows with the columns of some statistics."""
        kept = [i for i, c in enumerate(self.columns) if c.board.group["stat"] in stats]
        rows = [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in self.rows]
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=tuple(rows))


def pivots(boards: Sequence[Board]) -> list[Pivot]:
    """Quality tables first, then speed; parameters and the like stay in their boards."""
    sections: dict[tuple[Any, ...], list[Board]] = defaultdict(list)
    for board in boards:
        names = QUALITY_SECTION if board.kind == "quality" else PERFORMANCE_SECTION
        group = board.group
        if board.kind == "quality":
            # Metrics without a reference stand beside those with one, and metrics over all frames
            # of the clips beside those over the clips.
            names = tuple(name for name in names if name != "n_ref")
            group = group | {"n": clip_count(group)}
        facts = tuple((name, group.get(name)) for name in names)
        sections[(board.kind, facts)].append(board)
    found = []
    for (kind, facts), members in sections.items():
        if kind == "performance" and not any(b.metric.name in _HEADLINES for b in members):
            continue
        found.append(_pivot(kind, dict(facts), members, boards))
    return found


def _pivot(
    kind: str, facts: dict[str, Any], boards: Sequence[Board], beside: Sequence[Board]
) -> Pivot:
    columns = tuple(_column(board, boards) for board in boards)
    by_identity: dict[tuple[str | None, ...], list[BoardRow | None]] = {}
    for place, board in enumerate(boards):
        for row in board.rows:
            cells = by_identity.setdefault(tuple(row.identity.values()), [None] * len(boards))
            cells[place] = row
    rows = []
    samples = [next(cell for cell in cells if cell is not None) for cells in by_identity.values()]
    everywhere = [row.identity for board in beside if board.kind == kind for row in board.rows]
    varying = distinguishing([sample.identity for sample in samples], everywhere)
    for sample, cells in zip(samples, by_identity.values(), strict=True):
        rows.append(PivotRow(label_of(sample, varying), sample.role, tuple(cells)))
    rows.sort(key=lambda row: _order(row, boards))
    return Pivot(kind, facts, columns, tuple(rows))


def _column(board: Board, beside: Sequence[Board]) -> Column:
    heading = board.metric.label if board.kind == "quality" else _speed_heading(board)
    if board.group["stat"] != "value" and board.kind == "quality":
        heading += f" {board.group['stat']}"
    twins = [
        other for other in beside
        if (other.metric, other.group["stat"]) == (board.metric, board.group["stat"])
    ]  # fmt: skip
    for name in ("protocol", "n_ref", "timing_method", "metric_version", "split"):
        values = {str(twin.group.get(name)) for twin in twins}
        if len(values) > 1:
            heading += f" {board.group.get(name)}"
            break
    else:
        if len(twins) > 1:
            heading += f" ({twins.index(board) + 1})"
    if board.proxy:
        heading += "*"
    shown = scale([row.value for row in board.rows], board.group["unit"] or board.metric.unit)
    return Column(board, heading, shown)


def _speed_heading(board: Board) -> str:
    stat = board.group["stat"]
    return board.metric.label if stat == "value" else f"{board.metric.label} {stat}"


def _order(row: PivotRow, boards: Sequence[Board]) -> tuple[Any, ...]:
    """By role, then as the first board that has the row orders it."""
    for place, (cell, board) in enumerate(zip(row.cells, boards, strict=True)):
        if cell is not None:
            return (ROLES.index(row.role), place, board.rows.index(cell), row.label)
    return (ROLES.index(row.role), len(boards), 0, row.label)
