"""A against B: two result folders, or two selections of rows, metric by metric.

Rows are paired by what was measured, in every comparable group that both sides hold (a folder may
have scores of 500 and of 1,000 samples). Where they hold none in common, the newest of each are
flagged with every fact that differs and get no verdict. What the selections themselves set apart
(the axis of the comparison) is no such fact.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visgen_results.leaderboard import (
    PERFORMANCE_GROUP,
    QUALITY_GROUP,
    counts,
    fact,
    is_shared,
)
from visgen_results.metrics import METRICS as TABLE
from visgen_results.metrics import MetricInfo, describe
from visgen_results.naming import IDENTITY, label
from visgen_results.reading import Results, Row, read_results
from visgen_results.rows import nearest
from visgen_results.schema import METRICS
from visgen_results.statistics import (
    SMALLEST_BLOCKS,
    Entry,
    Interval,
    difference_interval,
    difference_p,
    different,
    holm,
)
from visgen_results.store import Store

_WHAT = ("kind", "metric", "stat", "phase", "dataset", "batch_size", "timing_method", "n_devices")
KEY = (*_WHAT, *IDENTITY)
ALPHA = 0.05
# Facts that follow from others of the group where any of those differs, and name nothing readable.
_DERIVED = ("metric_opts", "ref_stats_sha256", "extractor_sha256")
_SELECTION = re.compile(r"(?P<root>.*?):(?P<where>[a-z_0-9]+=.*)")


@dataclass(frozen=True)
class Selection:
    """Rows of one result folder whose columns have the given values (as text)."""

    root: Path
    where: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Selection":
        """`DIR`, or `DIR:column=value,column=value`. Raises `ValueError` for an unknown column."""
        match = _SELECTION.fullmatch(text)
        if match is None:
            return cls(Path(text))
        where = {}
        for pair in match["where"].split(","):
            name, sign, value = pair.partition("=")
            if not sign or name not in METRICS.names:
                near = nearest(name, METRICS.names, 0.6)
                alike = f"nearest: {near!r}" if near else f"there are {', '.join(METRICS.names)}"
                raise ValueError(f"{text!r}: metrics has no column {name!r}; {alike}")
            where[name] = value
        return cls(Path(match["root"]), where)

    def rows(self, results: Results) -> list[Row]:
        return [
            row
            for row in results.numbers
            if counts(row)
            and row["value"] is not None
            and all(str(row[name]) == value for name, value in self.where.items())
        ]


@dataclass(frozen=True)
class Pair:
    """One metric on both sides: means over seeds, B / A, B - A, and what may be concluded.

    `differs` names the facts of the comparable group that are not equal; a pair with any of them
    has verdict `not comparable`. `interval` is of the ratio or of the difference, as `of` says.
    """

    metric: MetricInfo
    label: str
    facts: dict[str, Any]
    a: float
    b: float
    ratio: float | None
    difference: float
    interval: Interval | None
    of: str
    p: float | None
    verdict: str
    reason: str
    differs: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Comparison:
    """All pairs, and the rows that only one side has."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """One JSON document with a list under `rows`."""
        from visgen_results.differences import to_dict

        return to_dict(self)

    def to_markdown(self) -> str:
        from visgen_results.differences import to_markdown

        return to_markdown(self)

    def to_text(self, width: int = 100) -> str:
        """Plain text for a terminal; no line is longer than `width` (at least 90)."""
        from visgen_results.differences import to_text

        return to_text(self, width)


def compare(
    a: Selection | Path | str,
    b: Selection | Path | str,
    *,
    min_effect: float = 0.02,
    seed: int = 0,
) -> Comparison:
    """Compare B with A. Raises `ValueError` if a side has no rows."""
    first, second = _selection(a), _selection(b)
    sides = []
    for name, side in (("A", first), ("B", second)):
        results = read_results(side.root)
        rows = side.rows(results)
        if not rows:
            wanted = ", ".join(f"{k}={v}" for k, v in side.where.items()) or "any number"
            raise ValueError(f"{name}: {side.root} has no row with {wanted}")
        sides.append(_Side(results.root, rows))
    axis = {*first.where, *second.where}
    ours, theirs = (side.groups(axis) for side in sides)
    pairs: list[Pair] = []
    only: tuple[list[str], list[str]] = ([], [])
    for key in {**ours, **theirs}:
        left, right = ours.get(key, []), theirs.get(key, [])
        varying = _varying([*left, *right], axis)
        matched = _matched(left, right, axis)
        for a_rows, b_rows in matched:
            pair = _pair(a_rows, b_rows, sides, axis, min_effect, seed)
            which = _which(a_rows[0], varying) if len(matched) > 1 else ""
            pairs.append(replace(pair, label=pair.label + which))
        for names, groups, place in ((only[0], left, 0), (only[1], right, 1)):
            paired = [id(both[place]) for both in matched]
            alone = [rows[0] for rows in groups if id(rows) not in paired]
            names += [_name(row) + _which(row, varying) for row in alone]
    pairs.sort(key=_pair_order)
    return Comparison(tuple(_after_holm(pairs)), tuple(only[0]), tuple(only[1]))


def _matched(
    left: Sequence[list[Row]], right: Sequence[list[Row]], axis: set[str]
) -> list[tuple[list[Row], list[Row]]]:
    """The groups that both sides hold; the newest of each side where there is none."""
    theirs = {tuple(_facts(rows[0], axis).items()): rows for rows in right}
    mine = [(rows, tuple(_facts(rows[0], axis).items())) for rows in left]
    common = [(rows, theirs[facts]) for rows, facts in mine if facts in theirs]
    return common or [(left[0], right[0])] if left and right else []


def _varying(groups: Sequence[list[Row]], axis: set[str]) -> list[str]:
    """The facts that set groups of one key apart, as a reader would name them."""
    every = [_facts(rows[0], axis) for rows in groups]
    return _telling([name for name in every[0] if len({facts[name] for facts in every}) > 1])


def _telling(names: Sequence[str]) -> list[str]:
    """Without hashes and options that only follow from another of the names."""
    return [name for name in names if name not in _DERIVED] or list(names)


def _which(row: Row, varying: Sequence[str]) -> str:
    parts = [f"{name} {row[name]}" for name in varying]
    return f" ({', '.join(parts)})" if parts else ""


def _pair_order(pair: Pair) -> tuple[Any, ...]:
    facts, names = pair.facts, list(TABLE)
    place = names.index(pair.metric.name) if pair.metric.name in TABLE else len(names)
    kind = 0 if facts["kind"] == "quality" else 1
    where = (str(facts["dataset"]), str(facts["phase"]), facts["batch_size"] or 0)
    return (kind, *where, place, pair.metric.name, facts["stat"], pair.label)


def _selection(given: Selection | Path | str) -> Selection:
    if isinstance(given, Selection):
        return given
    return Selection(given) if isinstance(given, Path) else Selection.parse(given)


class _Side:
    """Rows of one side, and its raw series, read when first asked for."""

    def __init__(self, root: Path, rows: Sequence[Row]) -> None:
        self.root, self.rows = root, rows
        self._series: dict[tuple[str, str, str], dict[int, list[float]]] | None = None

    def groups(self, axis: set[str]) -> dict[tuple[Any, ...], list[list[Row]]]:
        """Rows by pairing key and comparable group, the group that was measured last first.

        A folder's content is no part of its key where the side has one folder of that name: two
        sides compare what lies under one name.
        """
        names = [name for name in KEY if name not in axis]
        contents: dict[str | None, set[str | None]] = defaultdict(set)
        for row in self.rows:
            contents[row["model"]].add(row["variant"])
        found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = {}
        for row in sorted(self.rows, key=lambda r: r["run_id"], reverse=True):
            alone = row["kind"] == "quality" and len(contents[row["model"]]) == 1
            shown = row | {"variant": None} if alone else row
            key = tuple(shown[name] for name in names)
            group = tuple(_facts(row, axis).values())
            found.setdefault(key, {}).setdefault(group, []).append(row)
        return {key: list(groups.values()) for key, groups in found.items()}

    def blocks(self, row: Row) -> list[list[float]]:
        """Raw values of a row's series by block, in block order; empty if there are none."""
        if self._series is None:
            self._series = _read_series(self.root)
        key = (row["run_id"], row["metric"], row["phase"] or "total")
        found = self._series.get(key, {})
        return [found[block] for block in sorted(found)]


def _read_series(root: Path) -> dict[tuple[str, str, str], dict[int, list[float]]]:
    content = Store(root).read("measurements", lambda problem: None)
    names = ("run_id", "metric", "phase", "rank", "block", "value")
    columns = (content.column(name).to_pylist() for name in names)
    series: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(dict)
    for run_id, metric, phase, rank, block, value in zip(*columns, strict=True):
        if value is not None and (rank is None or rank < 0):
            key = (run_id, metric, phase or "total")
            series[key].setdefault(block or 0, []).append(value)
    return series


def _facts(row: Row, axis: set[str]) -> dict[str, Any]:
    names = QUALITY_GROUP if row["kind"] == "quality" else PERFORMANCE_GROUP
    return {name: fact(row, name) for name in names if name not in axis}


def _name(row: Row) -> str:
    phase = "" if row["phase"] in (None, "total") else f" {row['phase']}"
    stat = "" if row["stat"] == "value" else f" {row['stat']}"
    return f"{describe(row['metric']).label}{stat}{phase}, {label(row)}"


def _pair(
    a: Sequence[Row],
    b: Sequence[Row],
    sides: Sequence[_Side],
    axis: set[str],
    min_effect: float,
    seed: int,
) -> Pair:
    left, right = _entry(a), _entry(b)
    ours, theirs = _facts(a[0], axis), _facts(b[0], axis)
    differs = {n: (ours[n], theirs[n]) for n in ours if ours[n] != theirs.get(n)}
    ratio = right.value / left.value if left.value else None
    pair = Pair(
        metric=describe(a[0]["metric"]),
        label=label(a[0]) if label(a[0]) == label(b[0]) else f"{label(a[0])} | {label(b[0])}",
        facts={name: a[0][name] for name in (*_WHAT, "n")},
        a=left.value,
        b=right.value,
        ratio=ratio,
        difference=right.value - left.value,
        interval=None,
        of="",
        p=None,
        verdict="undecided",
        reason="",
        differs=differs,
    )
    if differs:
        told = _telling(list(differs))
        what = ", ".join(f"{n}: {differs[n][0]} against {differs[n][1]}" for n in told)
        return replace(pair, verdict="not comparable", reason=f"different {what}")
    first, second = sides[0].blocks(a[0]), sides[1].blocks(b[0])
    if len(first) == len(second) >= SMALLEST_BLOCKS:
        pair = _by_blocks(pair, first, second, min_effect, seed)
    else:
        pair = _by_entries(pair, left, right, min_effect)
    beside = [name for name, rows in (("A", a), ("B", b)) if is_shared(rows)]
    doubt = f"{' and '.join(beside)} shared the device with others" if beside else ""
    return replace(pair, reason="; ".join(filter(None, (pair.reason, doubt))))


def _entry(rows: Sequence[Row]) -> Entry:
    values: dict[int, float] = {}
    for row in rows:  # newest first: of one seed the newest run counts
        values.setdefault(row["seed"] or 0, row["value"])
    stderr = rows[0]["stderr"] if len(values) == 1 else None
    low, high = rows[0]["ci_low"], rows[0]["ci_high"]
    if len(values) == 1 and stderr is None and low is not None and high is not None:
        stderr = (high - low) / (2 * 1.96)
    return Entry(float(np.mean(list(values.values()))), values, stderr)


def _by_blocks(
    pair: Pair, a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], effect: float, seed: int
) -> Pair:
    found = different(b, a, min_effect=effect, seed=seed)
    verdict = _winner(pair, found.ratio.value > 1) if found.different else "no difference shown"
    return replace(
        pair, interval=found.ratio, of="ratio", p=found.p, verdict=verdict, reason=found.reason
    )


def _by_entries(pair: Pair, a: Entry, b: Entry, min_effect: float) -> Pair:
    interval, p = difference_interval(b, a), difference_p(b, a)
    if interval is None or p is None or math.isnan(p):
        if math.isnan(a.value) or math.isnan(b.value):
            return replace(pair, reason="a side was computed as NaN")
        if a.value == b.value:
            return replace(pair, verdict="equal", reason="the same number on both sides")
        seeds = len(a.by_seed.keys() & b.by_seed.keys())
        return replace(pair, reason=f"no interval: common seeds {seeds} of 3 needed, no errors")
    pair = replace(pair, interval=interval, of="difference", p=p)
    if interval.low <= 0 <= interval.high:
        reason = "the interval of the difference contains 0"
        return replace(pair, verdict="no difference shown", reason=reason)
    if pair.facts["kind"] == "performance":
        if pair.ratio is not None and abs(pair.ratio - 1) <= min_effect:
            reason = f"the effect is within {min_effect:.0%}"
            return replace(pair, verdict="no difference shown", reason=reason)
        pair = replace(pair, reason="the runs were not interleaved: drift is not in the interval")
    return replace(pair, verdict=_winner(pair, interval.value > 0))


def _winner(pair: Pair, b_is_larger: bool) -> str:
    if pair.metric.higher_is_better is None:
        return "B larger" if b_is_larger else "A larger"
    return "B better" if b_is_larger == pair.metric.higher_is_better else "A better"


def _after_holm(pairs: Sequence[Pair]) -> list[Pair]:
    """Verdicts that survive Holm's correction over all pairs that were tested."""
    tested = [i for i, pair in enumerate(pairs) if pair.p is not None]
    adjusted = dict(zip(tested, holm([pairs[i].p or 0.0 for i in tested]), strict=True))
    kept = []
    for index, pair in enumerate(pairs):
        decided = pair.verdict.endswith(("better", "larger"))
        if decided and adjusted.get(index, 0.0) >= ALPHA:
            reason = f"p = {pair.p:.2g} does not survive Holm over {len(tested)} tests"
            pair = replace(pair, verdict="no difference shown", reason=reason)
        kept.append(pair)
    return kept
