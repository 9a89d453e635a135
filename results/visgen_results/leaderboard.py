"""Leaderboards: numbers in comparable groups, ranked by intervals, with what is missing named.

A board is one metric in one comparable group; rows of different protocols, sample counts, machines,
data, tasks or conditions never meet in it. Reference rows and untrained twins are shown and not
ranked; a reference that nothing is asked of stands in the boards of every condition.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visgen_results.clips import Clips, shown_clips
from visgen_results.metrics import (
    FAULTS,
    GATE_PREFIX,
    METRICS,
    NOT_QUALITY,
    MetricInfo,
    describe,
)
from visgen_results.naming import (
    IDENTITY,
    ROLES,
    VIDEO_TASK,
    condition,
    distinguishing,
    label,
    role,
)
from visgen_results.reading import Results, Row, failure_reason, read_results
from visgen_results.statistics import Entry, Interval, mean_interval, rank_intervals

QUALITY_GROUP = (
    "dataset", "split", "resolution", "metric", "stat", "metric_version", "metric_opts", "n",
    "n_ref", "protocol", "extractor", "extractor_sha256", "ref_stats_sha256", "comparable",
    "predicted", "unit", "machine_id",
)  # fmt: skip
PERFORMANCE_GROUP = (
    "dataset", "resolution", "metric", "stat", "phase", "metric_version", "batch_size", "unit",
    "machine_id", "device_name", "device_type", "n_devices", "threads", "dtype", "timing_method",
    "l2", "torch", "driver", "predicted",
)  # fmt: skip
STAT_ORDER = (
    "value", "p50", "p90", "p95", "p99", "p99.9", "mean", "std", "iqr", "min", "max",
)  # fmt: skip
PHASES = ("sample", "d_step", "g_step")
# Of clips: what people look for first, then whether the model did as told, then the rest.
VIDEO_ORDER = (
    "fvd", "fvd_videogpt", "fvd_styleganv", "fvd_cdfvd", "fvd_lite0_frames", "fid_frames",
    "fd_lite0_frames", "r_fvd", "r_fvd_lite0_frames", "fvd_star", "fvd_star_lite0_frames",
    "isc_video", "class_obeyed", "caption_obeyed", "action_accuracy", "psnr", "ssim",
    "diversity", "flicker", "psnr_reconstruction", "ssim_reconstruction",
    "class_obeyed_reconstruction", "caption_obeyed_reconstruction",
    "action_accuracy_reconstruction", "variance_left", "code_usage", "code_entropy",
    "nats_per_code", "code_share",
)  # fmt: skip
PROXY_WARNING = "Not FID. Proxy extractor; compare only inside this table."
VIDEO_PROXY_WARNING = "Not FVD, nor FID of frames. Proxy extractor; compare only inside this table."
PROXY_WARNINGS = (PROXY_WARNING, VIDEO_PROXY_WARNING)
INSIDE_WARNING = "Compare only inside this table (its rows say comparable=false)."
_PUBLISHED_EXTRACTORS = ("inception", "i3d")
_FEATURE_METRICS = ("precision", "recall", "density", "coverage")
_REAL = ("real-images", "real-videos")


@dataclass(frozen=True)
class BoardRow:
    """One model's number: its mean over seeds, each value, and its interval or why it has none.

    `role` is `ranked`, `reference` (no model, or a model that was only fitted) or `untrained`;
    `rank` is the (best, worst) place it may hold, None if it is not ranked. `shared`: others used
    the device while it was measured.
    """

    label: str
    identity: dict[str, str | None]
    role: str
    value: float
    values: dict[int, float]
    sd: float | None
    n: int | None
    interval: Interval | None
    no_interval: str
    rank: tuple[int, int] | None
    run_ids: tuple[str, ...]
    shared: bool = False


@dataclass(frozen=True)
class Board:
    """One metric in one comparable group; `group` says what all its rows have in common."""

    kind: str
    metric: MetricInfo
    group: dict[str, Any]
    rows: tuple[BoardRow, ...]

    @property
    def proxy(self) -> bool:
        """True where the number comes from a stand-in for the published feature network."""
        extractor = str(self.group.get("extractor") or "")
        stand_in = bool(extractor) and not extractor.startswith(_PUBLISHED_EXTRACTORS)
        return self.metric.proxy or (self.metric.name in _FEATURE_METRICS and stand_in)

    @property
    def clips(self) -> bool:
        """True where the numbers are about clips, not pictures."""
        resolution = str(self.group.get("resolution") or "")
        named = self.metric.name in VIDEO_ORDER
        return named or self.group.get("task") == VIDEO_TASK or resolution.count("x") == 3

    @property
    def floor(self) -> BoardRow | None:
        """What real samples score as if they were generated; None where nobody asked."""
        real = (row for row in self.rows if row.role == "reference" and _is_real(row))
        return next(real, None)

    @property
    def warning(self) -> str:
        """What must stand beside the board; empty if nothing."""
        if self.proxy:
            return VIDEO_PROXY_WARNING if self.clips else PROXY_WARNING
        return INSIDE_WARNING if self.group.get("comparable") is False else ""


def _is_real(row: BoardRow) -> bool:
    """A generator of real samples, or one half of a folder scored against the other."""
    half = str(row.identity["variant"] or "").endswith("-half-a")
    return row.identity["model"] in _REAL or half


@dataclass(frozen=True)
class Missing:
    """A number, or a whole cell, that is not there; never shown as 0."""

    kind: str
    label: str
    dataset: str
    what: str
    status: str
    reason: str
    phase: str = ""


@dataclass(frozen=True)
class Gate:
    """A condition that the run had to meet; `passed` None means it could not be judged."""

    name: str
    label: str
    dataset: str
    passed: bool | None
    text: str


@dataclass(frozen=True)
class Fault:
    """Something wrong with what a cell was given or made, though it has its numbers."""

    kind: str
    label: str
    dataset: str
    metric: str
    value: float
    text: str


@dataclass(frozen=True)
class Leaderboard:
    """Everything a reader needs to judge a result folder."""

    boards: tuple[Board, ...]
    gates: tuple[Gate, ...]
    failures: tuple[Missing, ...]
    missing: tuple[Missing, ...]
    machines: tuple[Row, ...]
    faults: tuple[Fault, ...] = ()
    clips: tuple[Clips, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON document; `rows` has one entry per model and board (NaN becomes null)."""
        from visgen_results.tables import to_dict

        return to_dict(self)

    def to_markdown(self) -> str:
        from visgen_results.tables import to_markdown

        return to_markdown(self)

    def to_text(self, width: int = 100) -> str:
        """Plain text for a terminal; no line is longer than `width` (at least 72)."""
        from visgen_results.tables import to_text

        return to_text(self, width)


def leaderboard(results: Results | Path | str) -> Leaderboard:
    """Group, aggregate and rank the numbers of a result folder."""
    if not isinstance(results, Results):
        results = read_results(results)
    usable = [row for row in results.numbers if row["value"] is not None and counts(row)]
    boards = [*_boards("quality", usable), *_boards("performance", usable)]
    return Leaderboard(
        tuple(sorted(boards, key=_board_order)),
        gates(results),
        tuple(_failure(run) for run in results.failed),
        tuple(_absent(row) for row in results.numbers if row["value"] is None and counts(row)),
        tuple(results.machines),
        tuple(_fault(row) for row in results.numbers if row["metric"] in FAULTS),
        shown_clips(results),
    )


def gates(results: Results) -> tuple[Gate, ...]:
    """The gates among the numbers: metrics named `gate_*`, 1 = passed, text in `metric_opts`."""
    found = []
    for row in results.numbers:
        if row["metric"].startswith(GATE_PREFIX):
            value = row["value"]
            passed = None if value is None or math.isnan(value) else value == 1.0
            name = row["metric"].removeprefix(GATE_PREFIX)
            found.append(Gate(name, label(row), row["dataset"] or "", passed, _gate_text(row)))
    return tuple(sorted(found, key=lambda g: (g.dataset, g.label, g.name)))


def _gate_text(row: Row) -> str:
    options = _options(row)
    if isinstance(options.get("reason"), str):
        return options["reason"]
    pairs = ", ".join(f"{key} = {value}" for key, value in options.items())
    return pairs or row["reason"] or row["metric_opts"] or ""


def counts(row: Row) -> bool:
    """Not gates, numbers of one rank, or times of a quality cell's process."""
    if row["metric"].startswith(GATE_PREFIX) or (row["rank"] is not None and row["rank"] >= 0):
        return False
    return row["kind"] != "quality" or row["metric"] not in NOT_QUALITY


def _failure(run: Row) -> Missing:
    return Missing(
        run["kind"], label(run, _axes(run)), run["dataset"] or "", "cell", run["status"],
        failure_reason(run),
    )  # fmt: skip


def _fault(row: Row) -> Fault:
    entry, value = describe(row["metric"]), row["value"]
    text = row["reason"] or f"{entry.label}: {value:g}"
    name = label(row, _axes(row))
    return Fault(row["kind"], name, row["dataset"] or "", row["metric"], value, text)


def _absent(row: Row) -> Missing:
    entry = describe(row["metric"])
    stat = "" if row["stat"] == "value" else f" {row['stat']}"
    phase = "" if row["phase"] in (None, "total") else row["phase"]
    return Missing(
        row["kind"], label(row, _axes(row)), row["dataset"] or "",
        f"{entry.label}{stat}", "null", row["reason"] or "no reason was recorded", phase,
    )  # fmt: skip


def _axes(row: Row) -> tuple[str, ...]:
    return ("attention", "compile_mode", "variant") if row["kind"] == "performance" else ()


def _boards(kind: str, rows: Sequence[Row]) -> list[Board]:
    names = QUALITY_GROUP if kind == "quality" else PERFORMANCE_GROUP
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    own = [row for row in rows if row["kind"] == kind]
    for row in own:
        groups[tuple(fact(row, name) for name in names)].append(row)
    boards = []
    for key, members in groups.items():
        group = dict(zip(names, key, strict=True))
        for task, asked, share in _shares(members):
            own_group = group | {"task": task, "condition": asked}
            boards.append(_board(kind, own_group, share, own))
    return boards


def fact(row: Row, name: str) -> Any:
    """A grouping column; what `metric_opts` says about the interval defines no group."""
    if name != "metric_opts" or not row[name] or '"interval"' not in row[name]:
        return row[name]
    options = _options(row)
    options.pop("interval", None)
    return json.dumps(options, sort_keys=True, separators=(",", ":"))


def _options(row: Row) -> dict[str, Any]:
    try:
        options = json.loads(row["metric_opts"] or "{}")
    except json.JSONDecodeError:
        return {}
    return options if isinstance(options, dict) else {}


def _shares(rows: Sequence[Row]) -> list[tuple[str | None, str | None, list[Row]]]:
    """(task, condition, rows): one share each.

    Reference rows stand in the share of every task; those under a condition in its share alone.
    """
    shares: dict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    references: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        if role(row) == "reference":
            references[condition(row)].append(row)
        else:
            shares[(row["task"], condition(row))].append(row)
    alone = [asked for asked in references if asked not in {known for _, known in shares}]
    for asked in alone:
        if asked is not None or not shares:
            shares[("reference", asked)] = []
    found = []
    for (task, asked), own in shares.items():
        free = references[None]
        given = references[asked] if asked is not None else []
        found.append((task, asked, [*own, *given, *free]))
    return found


def _board(
    kind: str, group: dict[str, Any], rows: Sequence[Row], everywhere: Sequence[Row]
) -> Board:
    entry = describe(group["metric"])
    by_model: dict[tuple[Any, ...], dict[int, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda r: r["run_id"]):  # of one seed the newest run counts
        by_model[tuple(row[name] for name in IDENTITY)][row["seed"] or 0] = row
    varying = distinguishing(rows, everywhere)
    made = [_row(list(seeds.values()), varying) for seeds in by_model.values()]
    direction = rows[0]["higher_is_better"]
    if entry.name not in METRICS:  # of a plug-in that is not here: the rows know
        entry = replace(entry, higher_is_better=direction, unit=group["unit"] or "")
    ranked = [r for r in made if r.role == "ranked" and not math.isnan(r.value)]
    others = sorted(
        (r for r in made if r not in ranked), key=lambda r: (ROLES.index(r.role), r.label)
    )
    if direction is None:
        ranked.sort(key=lambda r: r.label)
        return Board(kind, entry, group, (*ranked, *others))
    ranked.sort(key=lambda r: -r.value if direction else r.value)
    places = rank_intervals([_entry(r, by_model) for r in ranked], higher_is_better=direction)
    placed = [_placed(r, place) for r, place in zip(ranked, places, strict=True)]
    return Board(kind, entry, group, (*placed, *others))


def _row(rows: Sequence[Row], varying: Sequence[str]) -> BoardRow:
    first = rows[0]
    values = {row["seed"] or 0: row["value"] for row in rows}
    numbers = list(values.values())
    interval, why = _interval(rows, numbers)
    return BoardRow(
        label=label(first, varying),
        identity={name: first[name] for name in IDENTITY},
        role=role(first),
        value=float(np.mean(numbers)),
        values=values,
        sd=float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        n=first["n"],
        interval=interval,
        no_interval=why,
        rank=None,
        run_ids=tuple(row["run_id"] for row in rows),
        shared=is_shared(rows),
    )


def is_shared(rows: Sequence[Row]) -> bool:
    """True if one of these was measured while others used the device; None is not known."""
    return any(row["exclusive"] is False for row in rows)


def _interval(rows: Sequence[Row], numbers: Sequence[float]) -> tuple[Interval | None, str]:
    """The 95 % interval over seeds, else the one a single run came with, else why there is none."""
    if any(math.isnan(value) for value in numbers):
        return None, "computed as NaN"
    over_seeds = mean_interval(numbers)
    if over_seeds is not None:
        return over_seeds, ""
    if len(rows) > 1:
        return None, f"{len(rows)} seeds; an interval over seeds needs 3"
    row = rows[0]
    if describe(row["metric"]).exact:
        return None, "counted, not estimated"
    if row["ci_low"] is not None and row["ci_high"] is not None:
        method = row["ci_method"] or "method not recorded"
        return Interval(numbers[0], row["ci_low"], row["ci_high"], method), ""
    why = _options(row).get("interval") or row["ci_method"]
    return None, str(why or "one seed, none given").removeprefix("none: ")


def _entry(row: BoardRow, by_model: dict[tuple[Any, ...], dict[int, Row]]) -> Entry:
    """For ranking; a single run's spread is its standard error, else its interval's half-width."""
    rows = by_model[tuple(row.identity.values())]
    stderr = None
    if len(rows) == 1:
        only = next(iter(rows.values()))
        stderr = only["stderr"]
        if stderr is None and row.interval is not None:
            stderr = (row.interval.high - row.interval.low) / (2 * 1.96)
    return Entry(row.value, row.values, stderr)


def _placed(row: BoardRow, place: tuple[int, int]) -> BoardRow:
    return BoardRow(**{**row.__dict__, "rank": place})


def _board_order(board: Board) -> tuple[Any, ...]:
    """Quality before speed; then data, phase and batch; then as the table of metrics has them."""
    names = list(dict.fromkeys((*VIDEO_ORDER, *METRICS)))
    metric, group = board.metric.name, board.group
    place = names.index(metric) if metric in names else len(names)
    stat = STAT_ORDER.index(group["stat"]) if group["stat"] in STAT_ORDER else len(STAT_ORDER)
    phase = str(group.get("phase") or "total")
    where = (str(group["dataset"]), PHASES.index(phase) if phase in PHASES else len(PHASES), phase)
    rest = tuple(str(value) for value in group.values())
    kind = 0 if board.kind == "quality" else 1
    return (kind, *where, group.get("batch_size") or 0, place, metric, stat, rest)
