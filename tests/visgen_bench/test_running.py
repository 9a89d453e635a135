"""What is run, what is left, and what an earlier run's remains change."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visgen_bench import journal as journals
from visgen_results.rows import to_rows
from visgen_results.store import Store

TRAIN = """
[[cell]]
kind = "train"
model = "dcgan-digits8-tiny"
data = "digits:8"
dtype = "fp16"
recipe = { objective = "nonsaturating", steps = 2, batch = 4 }
"""
TRAINED = """
[[cell]]
kind = "quality"
model = "dcgan-digits8-tiny"
data = "digits:8"
weights = "train:dcgan-digits8-tiny"
samples = 8
metrics = ["copy_share"]
"""


def statuses(out: Path) -> list[str]:
    return [run["status"] for run in to_rows(Store(out).read("runs"))]


@contextmanager
def full_disk() -> Iterator[None]:
    """A file of more than 8 kB fails as on a full disk: a Parquet file of rows, but no journal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_that_could_not_be_committed_is_let_go(bench) -> None:
    with full_disk():
        summary = bench.run(bench.faulty_cell("none"), in_process=True)
    assert (summary.exit_code, statuses(bench.out)) == (1, [])
    assert len(list(journals.abandoned(bench.out))) == 1


def test_a_finished_cell_that_is_recovered_does_not_run_again(bench) -> None:
    bench.run(bench.faulty_cell("none", seed=1), in_process=True)  # keeps its reference's files
    text = bench.faulty_cell("none")
    with full_disk():
        bench.run(text, in_process=True)
    assert [cell.action for cell in bench.plan(text).cells] == ["run"]
    summary = bench.run(text, in_process=True)
    assert [one.status for one in summary.recovered] == ["ok"]
    assert [one.status for one in summary.finished] == ["done"]
    assert statuses(bench.out) == ["ok", "ok"]
    assert Store(bench.out).validate() == []


def test_cells_of_a_train_cell_that_was_skipped_are_skipped_too(bench) -> None:
    summary = bench.run(TRAIN + TRAINED, in_process=True)
    assert [one.status for one in summary.finished] == ["skipped", "skipped"]
    assert summary.exit_code == 0
    recorded = summary.finished[1].recorded
    assert recorded is not None
    assert recorded.reason == "its train cell ended as skipped"
