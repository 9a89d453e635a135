"""Gates: conditions that a suite's results must meet, judged from rows in the store.

A gate of the digits protocol says that a model draws digits and does not copy them. Every
threshold stands in the suite's `[[gate]]` table; values are means over the seeds, and the spread
is written beside the verdict. One condition alone proves nothing: pixel noise finds all classes,
and real images of one class are classified with confidence.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from visgen_bench.cell import canonical_json, content_key
from visgen_results import schema
from visgen_results.leaderboard import QUALITY_GROUP, fact
from visgen_results.naming import IDENTITY
from visgen_results.rows import to_rows
from visgen_results.store import Store, new_run_id

Row = dict[str, Any]


class Gate(BaseModel):
    """What must hold for `model` with `weights` on `data`; None leaves a condition out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    model: str
    data: str
    weights: str = "zoo"
    condition: str | None = None  # under which the model's samples were drawn
    split: str | None = None  # that they are compared with; None: whichever there is
    baseline: str = "pca20-gaussian"
    floor: str = "real-images"
    distance: str = "fd_lite0"
    most_of_baseline: float | None = Field(default=0.6, gt=0)  # distance / the baseline's
    most_of_floor: float | None = Field(default=3.0, gt=0)  # distance / the floor's
    above_baseline: tuple[str, ...] = ("precision", "recall")
    least_classes: float | None = Field(default=10.0, gt=0)
    least_confident: float | None = Field(default=0.6, gt=0, le=1)
    most_copies: float | None = Field(default=0.05, ge=0, le=1)
    at_least: dict[str, float] = Field(default_factory=dict)  # metric -> limit
    at_most: dict[str, float] = Field(default_factory=dict)

    @property
    def limits(self) -> tuple[tuple[str, str, float], ...]:
        """(metric, relation, limit) of the conditions that compare with a number alone."""
        every = (
            ("digit_classes", ">=", self.least_classes),
            ("digit_confident", ">=", self.least_confident),
            ("copy_share", "<=", self.most_copies),
        )
        found = [(name, sign, limit) for name, sign, limit in every if limit is not None]
        found += [(name, ">=", limit) for name, limit in self.at_least.items()]
        found += [(name, "<=", limit) for name, limit in self.at_most.items()]
        return tuple(found)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the model needs to be judged."""
        ratios = (self.most_of_baseline, self.most_of_floor)
        distance = (self.distance,) if any(limit is not None for limit in ratios) else ()
        return (*distance, *self.above_baseline, *(metric for metric, _, _ in self.limits))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison: `value` must be at most, or at least, or above `bound`."""

    name: str
    value: float
    relation: str
    bound: float
    spread: tuple[float, float]

    @property
    def holds(self) -> bool:
        """False for NaN, whatever the relation."""
        if self.relation == "<=":
            return self.value <= self.bound
        return self.value >= self.bound if self.relation == ">=" else self.value > self.bound

    def __str__(self) -> str:
        low, high = self.spread
        sign = "" if self.holds else "NOT "
        value = f"{self.name} {self.value:.4g} [{low:.4g}..{high:.4g}]"
        return f"{value} {sign}{self.relation} {self.bound:.4g}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judged gate. `passed` None: it could not be judged, and `reason` says why."""

    gate: Gate
    passed: bool | None
    conditions: tuple[Condition, ...] = ()
    reason: str = ""
    run_ids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line for people."""
        return self.reason or "; ".join(str(condition) for condition in self.conditions)


class Unjudged(Exception):
    """A number that a gate needs is not there."""


def judge(store: Store, gates: Sequence[Gate]) -> list[Verdict]:
    """Judge gates from the newest ok runs of the store that no `--limit` cut; writes nothing."""
    runs = {run["run_id"] for run in to_rows(store.latest()) if not _limited(run)}
    rows = [row for row in to_rows(store.read("metrics")) if row["run_id"] in runs]
    return [_judge(gate, sorted(rows, key=lambda row: row["run_id"])) for gate in gates]


def _limited(run: Row) -> bool:
    return json.loads(run["config_json"] or "{}").get("limit") is not None


def _judge(gate: Gate, rows: Sequence[Row]) -> Verdict:
    own = [row for row in rows if row["dataset"] == gate.data and row["kind"] == "quality"]
    numbers = _Numbers(gate, own)
    try:
        conditions = numbers.conditions()
    except Unjudged as reason:
        return Verdict(gate=gate, passed=None, reason=str(reason), run_ids=numbers.run_ids)
    return Verdict(
        gate=gate,
        passed=all(condition.holds for condition in conditions),
        conditions=tuple(conditions),
        run_ids=numbers.run_ids,
    )


class _Numbers:
    """Values of a gate's three parties, by metric, and the runs they came from.

    The newest number of the model decides which of its numbers are meant, and what the others'
    must have in common with them. `rows` come oldest first.
    """

    def __init__(self, gate: Gate, rows: Sequence[Row]) -> None:
        self.gate = gate
        self._rows = rows
        self._runs: dict[str, None] = {}
        self._scored: dict[str, Any] = {}  # what all metrics have in common
        self._groups: dict[str, dict[str, Any]] = {}  # and what all numbers of one metric have

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Runs looked at, the model's own first."""
        return tuple(self._runs)

    def conditions(self) -> list[Condition]:
        gate = self.gate
        found = [
            self._ratio(gate.baseline, gate.most_of_baseline),
            self._ratio(gate.floor, gate.most_of_floor),
        ]
        for metric in gate.above_baseline:
            values, bound = self._values(gate.model, metric), self._values(gate.baseline, metric)
            found.append(_condition(metric, values, ">", _mean(bound)))
        for metric, relation, limit in gate.limits:
            found.append(_condition(metric, self._values(gate.model, metric), relation, limit))
        return [one for one in found if one is not None]

    def _ratio(self, other: str, limit: float | None) -> Condition | None:
        if limit is None:
            return None
        distance = self._values(self.gate.model, self.gate.distance)
        base = _mean(self._values(other, self.gate.distance))
        ratios = [value / base for value in distance]
        return _condition(f"{self.gate.distance} / {other}'s", ratios, "<=", limit)

    def _values(self, model: str, metric: str) -> list[float]:
        """One value a seed, the newest, all of one comparable group."""
        rows = [row for row in self._rows if row["model"] == model and row["metric"] == metric]
        if model == self.gate.model:
            rows = [row for row in rows if _same_weights(self.gate.weights, row["weights"])]
            if not model.startswith("folder:"):  # whose variant is its content
                rows = [row for row in rows if row["variant"] == self.gate.condition]
        if self.gate.split is not None:
            rows = [row for row in rows if row["split"] == self.gate.split]
        if not rows:
            raise Unjudged(
                f"no {metric} of {model} on {self.gate.data} is in the results (numbers of "
                "--limit do not count)"
            )
        valued = [row for row in rows if row["value"] is not None and not self._differs(row)]
        if valued and metric not in self._groups:
            self._groups[metric] = {name: fact(valued[-1], name) for name in QUALITY_GROUP}
            self._scored = self._scored or {name: valued[-1][name] for name in ("split", "n")}
        alike = [row for row in rows if row["value"] is None or not self._differs(row)]
        if not alike:
            raise Unjudged(
                f"{model}'s {metric} differs from the others in {self._differs(rows[-1])}; "
                "such numbers are not compared"
            )
        newest = {r["seed"] or 0: r for r in alike if _identity(r) == _identity(alike[-1])}
        for row in newest.values():
            if row["value"] is None:
                raise Unjudged(f"{model} has no {metric}: {row['reason']}")
            self._runs.setdefault(row["run_id"])
        return [newest[seed]["value"] for seed in sorted(newest)]

    def _differs(self, row: Row) -> str:
        """In what a number is not comparable with those seen so far; empty if it is."""
        wanted = self._groups.get(row["metric"], self._scored)
        return ", ".join(
            f"{name} ({fact(row, name)}, not {value})"
            for name, value in wanted.items()
            if fact(row, name) != value
        )


def _identity(row: Row) -> list[Any]:
    return [row[name] for name in IDENTITY]


def _same_weights(asked: str, found: str | None) -> bool:
    """A folder's rows have no weights; `zoo` is whichever of the zoo the planner chose."""
    return found in (None, asked) or (asked == "zoo" and found.startswith("zoo:"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _condition(name: str, values: Sequence[float], relation: str, bound: float) -> Condition:
    return Condition(
        name=name,
        value=_mean(values),
        relation=relation,
        bound=bound,
        spread=(min(values), max(values)),
    )


def record(store: Store, verdicts: Sequence[Verdict]) -> None:
    """Write `gate_<name>` = 1 or 0 as a run of its own; nothing if the newest verdict is the same.

    A gate is a cell like any other: its newest run counts.
    """
    runs = {run["run_id"]: run for run in to_rows(store.read("runs"))}
    newest = {row["cell_key"]: row["metric_opts"] for row in to_rows(store.read("metrics"))}
    for verdict in verdicts:
        options = _options(verdict)
        key = content_key({"gate": verdict.gate.name, "model": verdict.gate.model})
        if not verdict.run_ids or newest.get(key) == options:
            continue
        judged = runs[verdict.run_ids[0]]
        now = datetime.datetime.now(datetime.UTC)
        run = {
            **{name: judged[name] for name in judged if name not in _OWN},
            **{"run_id": new_run_id(), "cell_key": key, "spec_key": key, "attempt": 1},
            **{"started_at": now, "ended_at": now, "duration_s": 0.0, "variant": "gate"},
            "config_json": verdict.gate.model_dump_json(),
        }
        row = {
            **schema.copies(run),
            "cell_key": key,
            "metric": f"gate_{verdict.gate.name}",
            "value": None if verdict.passed is None else float(verdict.passed),
            **{"stat": "value", "phase": "total", "rank": -1},
            "metric_opts": options,
            "reason": verdict.reason or None,
        }
        for table, content in (("metrics", row), ("runs", run)):
            store.append(table, [content], kind=run["kind"], run_id=run["run_id"])


# Columns that say how the judged run went, not what it was.
_OWN = ("exit_code", "signal", "log_path", "artifacts_path", "weights_sha256")


def _options(verdict: Verdict) -> str:
    """The verdict's text, every condition's numbers, and the runs it rests on, as JSON."""
    options: dict[str, Any] = {"reason": verdict.text, "runs": list(verdict.run_ids)}
    for condition in verdict.conditions:
        options[condition.name] = [condition.value, condition.relation, condition.bound]
    return canonical_json(options)
