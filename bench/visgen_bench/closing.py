"""After a run: gates judged and recorded, leaderboard made, report written."""

import dataclasses
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
    """What is shown after a run. `report` is None if the folder has no row to show."""

    board: Leaderboard
    verdicts: tuple[Verdict, ...]
    report: Path | None


def close(summary: Summary, *, only_plan: bool = False) -> Closed:
    """Judge, record, rank and report the result folder of a run.

    Args:
        summary: Of the run.
        only_plan: Show only the cells of this plan, not all that the folder holds.
    """
    root = summary.plan.options.out
    store = Store(root)
    verdicts: list[Verdict] = []
    if summary.full is None and summary.plan.suite.gates:
        verdicts = judge(store, summary.plan.suite.gates)
        record(store, verdicts)
    if not any((root / table).is_dir() for table in ("runs", "metrics")):
        return Closed(
            board=leaderboard(Results(root, [], [], [], [])), verdicts=tuple(verdicts), report=None
        )
    results = read_results(root)
    path = None
    if summary.full is None and not results.empty:
        from visgen_results.report import report

        path = report(root, root / REPORT, title=f"visgen: {summary.plan.suite.name}")
    if only_plan:
        results = _of_plan(results, summary)
    return Closed(board=leaderboard(results), verdicts=tuple(verdicts), report=path)


def _of_plan(results: Results, summary: Summary) -> Results:
    keys = {cell.cell_key for cell in summary.plan.cells}
    return dataclasses.replace(
        results,
        runs=[run for run in results.runs if run["cell_key"] in keys],
        numbers=[row for row in results.numbers if row["cell_key"] in keys],
        failed=[run for run in results.failed if run["cell_key"] in keys],
    )
