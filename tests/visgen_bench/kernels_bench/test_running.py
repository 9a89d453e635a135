"""Records of measuring processes as rows, whatever became of the process; and the command."""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from visgen_bench import cli
from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.processes import Ended
from visgen_bench.kernels_bench.request import Group
from visgen_bench.kernels_bench.running import Written, commit_group, outcome
from visgen_bench.rerunning import find_row, suite_of_row
from visgen_results.reading import read_results
from visgen_results.report import report
from visgen_results.rows import to_rows
from visgen_results.store import Store
from visgen_results.upkeep import validate

GROUP = Group(
    shape="T1", direction="forward", backends=("chunked", "eager", "sdpa"), device="cpu",
    dtype="fp32", batch=1,
)  # fmt: skip
ROW = {
    "metric": "latency", "stat": "p50", "phase": "total", "rank": -1, "value": 0.5, "n": 9,
    "timing_method": "wall_sync", "l2": "warm",
}  # fmt: skip
RECORDS: list[dict[str, Any]] = [
    {"event": "device", "device_name": "a CPU"},
    {"backend": "chunked", "event": "begin"},
    {"backend": "chunked", "row": ROW},
    {
        "backend": "chunked",
        "series": {"metric": "latency_wall_sync_warm", "phase": "total", "rank": -1, "block": 2},
        "values": [0.5, 0.75],
    },
    {"backend": "chunked", "event": "end", "status": "ok", "reason": None},
    {"backend": "eager", "event": "begin"},
]


def commit(tmp_path: Path, ended: Ended) -> tuple[Store, Written]:
    store, written = Store(tmp_path), Written()
    started = datetime.datetime.now(datetime.UTC)
    commit_group(store, GROUP, ended, started, "logs/x.log", written)
    return store, written


def test_a_death_in_the_middle_keeps_what_was_measured(tmp_path: Path) -> None:
    dead = Ended(records=RECORDS, status="crash", reason="the measuring process ended by signal 9")
    store, written = commit(tmp_path, dead)
    runs = {row["attention"]: row for row in to_rows(store.read("runs"))}
    assert {name: run["status"] for name, run in runs.items()} == {
        "chunked": "ok", "eager": "crash", "sdpa": "crash",
    }  # fmt: skip
    assert "while eager was measured" in runs["sdpa"]["error_msg"]
    assert runs["chunked"]["device_name"] == "a CPU"
    assert {run["kind"] for run in runs.values()} == {"kernel"}
    assert {run["model"] for run in runs.values()} == {"attention"}
    assert {run["variant"] for run in runs.values()} == {"forward full"}
    raw = to_rows(store.read("measurements"))
    assert [(r["value"], r["iter"], r["block"]) for r in raw] == [(0.5, 0, 2), (0.75, 1, 2)]
    metrics = to_rows(store.read("metrics"))
    absent = [row for row in metrics if row["attention"] == "sdpa"]
    assert [(row["metric"], row["value"]) for row in absent] == [("latency", None)]
    assert absent[0]["reason"] == runs["sdpa"]["error_msg"]
    assert not validate(tmp_path)
    assert not written.failed  # a peer's death is no failure of ours


def test_a_failure_of_ours_counts(tmp_path: Path) -> None:
    ended = Ended(
        records=[{"backend": "chunked", "event": "end", "status": "error", "reason": "Bad: x"}],
        status=None,
        reason=None,
    )
    _, written = commit(tmp_path, ended)
    assert [run["attention"] for run in written.failed] == ["chunked"]


def test_a_backend_that_is_skipped_says_why(tmp_path: Path) -> None:
    record = {"backend": "sdpa", "event": "end", "status": "skipped", "reason": "cannot"}
    assert outcome([record], Ended(records=[record], status=None, reason=None)) == (
        "skipped", "cannot",
    )  # fmt: skip


def test_the_newest_run_of_a_cell_counts(tmp_path: Path) -> None:
    fine = Ended(records=RECORDS[:5], status=None, reason=None)
    commit(tmp_path, fine)
    commit(tmp_path, fine)
    assert len(to_rows(Store(tmp_path).read("runs"))) == 6
    counted = read_results(tmp_path)
    assert [run["attention"] for run in counted.runs] == ["chunked"]
    assert len(counted.failed) == 2


def test_a_kernel_is_measured_again_by_its_own_command(tmp_path: Path) -> None:
    _, written = commit(tmp_path, Ended(records=RECORDS, status=None, reason=None))
    row, _ = find_row(written.runs[0]["run_id"], [tmp_path])
    with pytest.raises(UsageError, match="kernels bench --shape T1 measures it again"):
        suite_of_row(row)
    with pytest.raises(UsageError, match="kernels static --shape T1 measures it again"):
        suite_of_row({**row, "device_type": "static"})


def test_the_report_shows_kernels_in_a_section_of_their_own(tmp_path: Path) -> None:
    commit(tmp_path / "rows", Ended(records=RECORDS, status="crash", reason="<b>gone</b>"))
    page = report(tmp_path / "rows", tmp_path / "report.html").read_text()
    assert '<section id="kernels">' in page
    assert "Attention, forward, fp32" in page
    assert "500 ms" in page
    assert "&lt;b&gt;gone&lt;/b&gt;" in page
    assert "<b>gone" not in page


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["visgen-bench", "kernels", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def test_the_command_measures_and_tells(invoke, tmp_path: Path) -> None:
    code, out, said = invoke(
        "bench", "--shape", "t1", "--direction", "forward", "--backend", "ours,eager,triton",
        "--batch", "1", "--threads", "1", "--seconds", "0.02", "--device", "cpu", "--json",
    )  # fmt: skip
    assert code == 0, said
    rows = json.loads(out)["rows"]
    assert {row["attention"] for row in rows} == {"chunked", "eager", "triton"}
    assert {row["device_type"] for row in rows} == {"cpu"}
    assert all(row["value"] is not None or row["reason"] for row in rows)
    assert "[1/1] T1 forward: triton: skipped" in said
    folder = tmp_path / "results/runs/kernels"
    assert not validate(folder)
    assert len(to_rows(Store(folder).read("machines"))) == 1


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("bench", "--shape", "D44"), 'unknown shape "D44"; nearest: "D4'),
        (("bench", "--backend", "egaer"), 'nearest: "eager"'),
        (("bench", "--device", "cuda:99"), "use --device cpu"),
        (("share", "--model", "transgan-cifar"), 'nearest: "transgan-cifar10"'),
        (("share", "--phase", "dstep"), 'nearest: "d_step"'),
        (("share", "--attention", "chunkd"), 'nearest: "chunked"'),
        (("share", "--dtype", "fp16"), "known: fp32, bf16"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    invoke, tmp_path: Path, arguments: tuple[str, ...], near: str
) -> None:
    code, out, said = invoke(*arguments)
    assert code == 2
    assert not out
    assert near in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_report_prints_kernels_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    commit(tmp_path, Ended(records=RECORDS, status="crash", reason="gone"))
    for options, line in (((), "Attention, forward, fp32"), (("--markdown",), "| 500 ms")):
        monkeypatch.setattr(sys, "argv", ["visgen-bench", "report", str(tmp_path), *options])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
        assert line in capsys.readouterr().out
