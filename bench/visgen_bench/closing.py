"""After a run: gates judged and recorded, leaderboard made, report written."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visgen_bench.gates import Verdict, judge, record
from visgen_bench.running import Summary
from visgen_results.leaderboard import Leaderboard, leaderboard
from visgen_results.reading import Results, read_results
from visgen_results.store import Store

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What is shown after a run. `report` is None if there is no row to show, or a fault.

    `faults` are the results that could not be written, and why.
    """

    board: Leaderboard
    verdicts: tuple[Verdict, ...]
    report: Path | None
    faults: tuple[str, ...] = ()


def close(summary: Summary, *, only_plan: bool = False) -> Closed:
    """Judge, record, rank and report the result folder of a run.

    Args:
        summary: Of the run.
        only_plan: Show only the cells of this plan, not all that the folder holds.
    """
    root = summary.plan.options.out
    store = Store(root)
    verdicts: list[Verdict] = []
    faults: list[str] = []
    if summary.full is None and summary.plan.suite.gates:
        verdicts = judge(store, summary.plan.suite.gates)
        with _noted(faults, f"the gates' rows to {root}"):
            record(store, verdicts)
    if not any((root / table).is_dir() for table in ("runs", "metrics")):
        return Closed(
            board=leaderboard(Results(root, [], [], [], [])),
            verdicts=tuple(verdicts),
            report=None,
            faults=tuple(faults),
        )
    results = read_results(root)
    path = None
    if summary.full is None and not results.empty:
        from visgen_results.report import report

        with _noted(faults, f"the report to {root / REPORT}"):
            path = report(root, root / REPORT, title=f"visgen: {summary.plan.suite.name}")
    if only_plan:
        results = _of_plan(results, summary)
    return Closed(
        board=leaderboard(results), verdicts=tuple(verdicts), report=path, faults=tuple(faults)
    )


@contextlib.contextmanager
def _noted(faults: list[str], what: str) -> Iterator[None]:
    """Go on without what the disk does not take; the numbers are still to be shown."""
    try:
        yield
    except OSError as error:
        faults.append(f"cannot write {what}: {error.strerror}")


def _of_plan(results: Results, summary: Summary) -> Results:
    keys = {cell.cell_key for cell in summary.plan.cells}
    return dataclasses.replace(
        results,
        runs=[run for run in results.runs if run["cell_key"] in keys],
        numbers=[row for row in results.numbers if row["cell_key"] in keys],
        failed=[run for run in results.failed if run["cell_key"] in keys],
    )
