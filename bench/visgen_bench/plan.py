"""The plan: which cells will run, in which order, what they may cost, and what is done already.

    suite -> resolved cells -> plan -> run

Planning reads the result folder and writes nothing.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from visgen_bench import estimates
from visgen_bench.cell import QualityCell
from visgen_bench.checks import check_data
from visgen_bench.estimates import UNKNOWN, Estimate
from visgen_bench.gates import Gate
from visgen_bench.presets import PresetError, Presets, load_presets
from visgen_bench.provenance import code_hash
from visgen_bench.resolution import Resolved, Resolver
from visgen_bench.suite import Suite, SuiteError
from visgen_results.rows import to_rows
from visgen_results.store import Store

Action = Literal["run", "done", "skip", "left"]
Rerun = Literal["failed", "stale", "all"]
RERUN: tuple[str, ...] = ("failed", "stale", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a suite is planned and run. `out` is the result folder itself."""

    out: Path
    include: tuple[Path, ...] = ()
    data_root: Path | None = None
    offline: bool = False
    rerun: Rerun | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    limit: int | None = None
    max_cells: int | None = None
    devices: tuple[int, ...] | None = None  # accelerators that may be used
    timeout_s: float | None = None
    retries: int = 1  # of a crash or a time-out; never of an error or a lack of memory
    fail_fast: bool = False
    fresh: bool = False
    in_process: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell, what will be done with it, and why.

    `left`: it ran out of memory before, and is tried again only if that is asked for.
    """

    resolved: Resolved
    action: Action
    reason: str = ""
    stale: str | None = None
    code_hash: str = ""
    attempts: int = 0  # rows of this cell that the store has
    estimate: Estimate = UNKNOWN

    @property
    def name(self) -> str:
        return self.resolved.name

    @property
    def cell_key(self) -> str:
        return self.resolved.cell_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Cells in the order in which they run: whoever takes weights comes after who makes them."""

    suite: Suite
    options: Options
    presets: Presets
    cells: tuple[PlannedCell, ...]

    def count(self, action: Action) -> int:
        """How many cells have this action."""
        return sum(cell.action == action for cell in self.cells)

    @property
    def stale(self) -> tuple[PlannedCell, ...]:
        """Done cells whose code or weights have changed since."""
        return tuple(cell for cell in self.cells if cell.stale and cell.action == "done")

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user should know of the data, once each: files that cannot be used."""
        return tuple(dict.fromkeys(note for cell in self.cells for note in cell.resolved.notes))


def plan(suite: Suite, options: Options, *, estimate: bool = False) -> Plan:
    """Resolve a suite and decide what is to be done; writes no result.

    Data sets that are not here are downloaded, unless `options.offline` (as for a dry run).

    Args:
        suite: Of `suite.load` or `suite.from_entries`.
        options: Result folder, filters, what to run again.
        estimate: Also estimate time, memory and disk of the cells that will run.

    Raises:
        SuiteError: for a name that does not exist, or if not one cell has its data.
        PresetError: for an included file that cannot be used.
    """
    presets = load_presets(options.include)
    store = Store(options.out)
    history = History([] if not options.out.is_dir() else to_rows(store.read("runs")))
    resolver = Resolver(
        presets,
        data_root=options.data_root,
        offline=options.offline,
        limit=options.limit,
        trained={k: run["spec_key"] for k, run in history.ok.items() if run["kind"] == "train"},
    )
    _check_gates(suite, presets)
    cells = resolver.resolve(suite.cells)
    suite = dataclasses.replace(suite, gates=_resolved_gates(suite, resolver))
    cells = _limited(cells, options)
    _refuse_without_data(cells)
    planned = [_decide(one, history, options) for one in ordered(_distinct(cells))]
    if options.max_cells is not None:
        planned = _first(planned, options.max_cells)
    if estimate:
        planned = [_estimated(one, presets, store, history) for one in planned]
    return Plan(suite=suite, options=options, presets=presets, cells=tuple(planned))


def _check_gates(suite: Suite, presets: Presets) -> None:
    """Raise `SuiteError` for a gate with a model or data set that does not exist."""
    for gate in suite.gates:
        where = _gate_place(suite, gate)
        folder = gate.model.startswith("folder:")
        try:
            for model in (gate.baseline, gate.floor, *(() if folder else (gate.model,))):
                presets.find(model)
        except PresetError as error:
            raise SuiteError(f"{where}: {error}") from error
        check_data(gate.data, where)


def _resolved_gates(suite: Suite, resolver: Resolver) -> tuple[Gate, ...]:
    """The gates with their weights as rows name them."""
    return tuple(
        gate.model_copy(
            update={"weights": resolver.gate_weights(gate.weights, _gate_place(suite, gate))}
        )
        for gate in suite.gates
    )


def _gate_place(suite: Suite, gate: Gate) -> str:
    return f"suite {suite.name}, gate {gate.name}"


def decided_again(plan: Plan, history: "History") -> Plan:
    """The same cells, decided by what the store knows now."""
    cells = tuple(_decide(cell.resolved, history, plan.options) for cell in plan.cells)
    return dataclasses.replace(plan, cells=cells)


class History:
    """What the store knows of each cell: its newest row, its newest ok row, its attempts."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self.newest: dict[str, Mapping[str, Any]] = {}
        self.ok: dict[str, Mapping[str, Any]] = {}
        self.attempts: dict[str, int] = {}
        for run in sorted(runs, key=lambda r: r["run_id"]):
            key = run["cell_key"]
            self.newest[key] = run
            self.attempts[key] = self.attempts.get(key, 0) + 1
            if run["status"] == "ok":
                self.ok[key] = run

    def weights_of(self, train_key: str) -> str | None:
        """sha256 of the weights that a train cell's newest ok row made."""
        return self.ok.get(train_key, {}).get("weights_sha256")


def _limited(cells: list[Resolved], options: Options) -> list[Resolved]:
    """Keep what `--only` and `--skip` leave, and the train cells that it needs."""
    kept = [one for one in cells if _wanted(one.name, options)]
    if not kept:
        names = ", ".join(one.name for one in cells[:3])
        raise SuiteError(f"--only/--skip leave no cell of {len(cells)}; names look like {names}")
    by_key = {one.cell_key: one for one in cells}
    names = {one.name for one in kept}
    for one in kept:
        while one.needs in by_key:
            one = by_key[one.needs]
            names.add(one.name)
    return [one for one in cells if one.name in names]


def _wanted(name: str, options: Options) -> bool:
    only = not options.only or any(fnmatch.fnmatchcase(name, glob) for glob in options.only)
    return only and not any(fnmatch.fnmatchcase(name, glob) for glob in options.skip)


def _refuse_without_data(cells: Sequence[Resolved]) -> None:
    """A suite of which nothing can run for want of data is a mistake, not a success."""
    if cells and all(one.missing_data for one in cells):
        raise SuiteError(f"{cells[0].where}: data: {cells[0].skip}")


def _distinct(cells: Sequence[Resolved]) -> list[Resolved]:
    return list({one.cell_key: one for one in reversed(cells)}.values())[::-1]


def ordered(cells: Sequence[Resolved]) -> list[Resolved]:
    """Written order, except that a train cell comes before the first cell that needs it."""
    by_key = {one.cell_key: one for one in cells}
    done: dict[str, Resolved] = {}
    for one in cells:
        chain = [one]
        while chain[-1].needs in by_key:
            chain.append(by_key[chain[-1].needs])
        for needed in reversed(chain):
            done.setdefault(needed.cell_key, needed)
    return list(done.values())


def _decide(one: Resolved, history: History, options: Options) -> PlannedCell:
    """Run it, skip it, or leave it as done."""
    code = code_hash(one.code_files)
    row = history.ok.get(one.cell_key)
    common = {
        "resolved": one,
        "code_hash": code,
        "attempts": history.attempts.get(one.cell_key, 0),
        "stale": None if row is None else _stale(one, row, code, history),
    }
    if one.skip:
        return PlannedCell(action="skip", reason=one.skip, **common)
    if row is None:
        return _not_ok_yet(history.newest.get(one.cell_key), options, common)
    if options.rerun == "all":
        return PlannedCell(action="run", reason="--rerun all", **common)
    if options.rerun == "stale" and common["stale"]:
        return PlannedCell(action="run", reason=f"stale: {common['stale']}", **common)
    return PlannedCell(action="done", reason=f"done in run {row['run_id']}", **common)


def _not_ok_yet(
    newest: Mapping[str, Any] | None, options: Options, common: dict[str, Any]
) -> PlannedCell:
    if newest is None:
        return PlannedCell(action="run", **common)
    if newest["status"] == "oom" and options.rerun not in ("failed", "all"):
        again = f"--rerun failed, or visgen-bench rerun {newest['run_id']}, tries it again"
        return PlannedCell(action="left", reason=f"ran out of memory; {again}", **common)
    return PlannedCell(action="run", reason=f"was {newest['status']}", **common)


def _stale(one: Resolved, row: Mapping[str, Any], code: str, history: History) -> str | None:
    """Why an ok row is no longer what this code and these weights would give."""
    if row.get("code_hash") not in (None, code):
        return "the code has changed since"
    if one.needs is not None and isinstance(one.cell, QualityCell):
        current = history.weights_of(one.needs)
        if current is not None and row.get("weights_sha256") not in (None, current):
            return "its weights were trained again since"
    return None


def _first(planned: Sequence[PlannedCell], count: int) -> list[PlannedCell]:
    """The first `count` cells that would run, with everything that does not run."""
    kept, left = [], count
    for one in planned:
        if one.action == "run":
            if left == 0:
                continue
            left -= 1
        kept.append(one)
    return kept


def _estimated(one: PlannedCell, presets: Presets, store: Store, history: History) -> PlannedCell:
    if one.action != "run":
        return one
    cell = one.resolved.cell
    config = presets.find(cell.model) if cell.model else None
    past = history.ok.get(one.cell_key)
    return dataclasses.replace(one, estimate=estimates.estimate(cell, config, past, store))
