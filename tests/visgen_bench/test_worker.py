"""From journal to rows: what a dead worker, a dead parent or a full disk leaves behind."""

import datetime
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from visgen_bench import journal as journals
from visgen_bench.context import Context, Records
from visgen_bench.executors import Outcome
from visgen_bench.journal import Job, Journal
from visgen_bench.recording import commit, recover
from visgen_bench.running import OutputError, only_writer, prepare_output
from visgen_results.rows import to_rows
from visgen_results.store import Store, new_run_id

EXITED = Outcome(ended="exit", exit_code=0, signal=None)


def job(root: Path) -> Job:
    run_id = new_run_id()
    now = datetime.datetime.now(datetime.UTC).isoformat()
    run = {"run_id": run_id, "cell_key": "c" * 32, "kind": "quality", "model": "m"}
    return Job(
        run_id=run_id,
        spec_key="s" * 32,
        cell_key="c" * 32,
        name="quality/m",
        cell="{}",
        root=str(root),
        run={**run, "started_at": now},
        log="logs/x.log",
        options={"metrics": ["fid", "kid"]},
    )


def rows(out: Path, table: str = "runs") -> list[dict]:
    return sorted(to_rows(Store(out).read(table)), key=lambda row: row["run_id"])


def test_a_record_is_one_line_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.write({"a": 1})
        journal.write({"b": float("nan")})
    with path.open("ab") as file:
        file.write(b'{"c": ')
    first, second = journals.read(path)
    assert first == {"a": 1}
    assert second["b"] != second["b"]
    with Journal(path) as journal:  # a retry after a full disk goes on behind the torn line
        journal.write({"d": 1})
    assert len(journals.read(path)) >= 2


def test_a_journal_is_abandoned_when_its_parent_lets_go(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    assert list(journals.abandoned(tmp_path)) == []
    journal.close()
    assert [path.name for path in journals.abandoned(tmp_path)] == [journal.path.name]


def test_rows_of_a_journal_are_committed_once(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    journal.write({"event": "start", "process_start_s": 0.25})
    context = Context(root=tmp_path, spec_key="s", sink=journal)
    context.metric("fid", 3.5, n=10, metric_opts={"ddof": 1})
    context.metric("kid", None, reason="no weights")
    context.series("loss", [1.0, 0.5], phase="generator", iters=[10, 20], offsets=[0.1, 0.2])
    context.provenance(weights_sha256="w" * 64)
    journal.write({"event": "end", "status": "ok"})
    content = journal.path.read_bytes()
    journal.close()
    commit(Store(tmp_path), journal.path, EXITED)
    journal.path.write_bytes(content)  # as if the parent had died before it deleted the journal
    assert [one.status for one in recover(Store(tmp_path))] == ["ok"]
    (run,) = rows(tmp_path)
    assert (run["weights_sha256"], run["status"]) == ("w" * 64, "ok")
    assert {r["metric"]: r["value"] for r in rows(tmp_path, "metrics")} == {
        "process_start": 0.25, "fid": 3.5, "kid": None,
    }  # fmt: skip
    assert [(r["iter"], r["value"]) for r in rows(tmp_path, "measurements")] == [
        (10, 1.0),
        (20, 0.5),
    ]
    assert Store(tmp_path).validate() == []


def test_a_value_without_a_reason_is_refused(tmp_path: Path) -> None:
    context = Context(root=tmp_path, spec_key="s", sink=Records())
    with pytest.raises(ValueError, match="needs a reason"):
        context.metric("fid", None)


def test_what_a_dead_worker_measured_is_kept_and_the_rest_is_null(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    Context(root=tmp_path, spec_key="s", sink=journal).metric("fid", 3.5)
    journal.close()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").write_text("Segmentation fault, alas\n")
    died = Outcome(ended="exit", exit_code=None, signal=11)
    commit(Store(tmp_path), journal.path, died)
    (run,) = rows(tmp_path)
    assert (run["status"], run["signal"]) == ("crash", 11)
    assert "Segmentation fault, alas" in run["error_msg"]
    found = {r["metric"]: (r["value"], r["status"]) for r in rows(tmp_path, "metrics")}
    assert found == {"fid": (3.5, "crash"), "kid": (None, "crash")}


def test_the_kernels_memory_killer_is_not_a_crash(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    journal.close()
    killed = Outcome(ended="exit", exit_code=None, signal=9, out_of_memory=True)
    commit(Store(tmp_path), journal.path, killed)
    assert rows(tmp_path)[0]["status"] == "oom"


def test_a_rank_that_failed_says_why_for_all(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    journal.write({"event": "end", "status": "cancelled"})
    with Journal(journals.rank_path(journal.path, 1)) as other:
        other.write({"event": "end", "status": "error", "error_msg": "rank 1 ran out of luck"})
    journal.close()
    commit(Store(tmp_path), journal.path, Outcome(ended="exit", exit_code=1, signal=None))
    (run,) = rows(tmp_path)
    assert (run["status"], run["error_msg"]) == ("error", "rank 1 ran out of luck")
    assert list(journals.folder(tmp_path).iterdir()) == []


def test_a_journal_without_a_job_is_removed(tmp_path: Path) -> None:
    journals.folder(tmp_path).mkdir()
    (journals.folder(tmp_path) / "x.jsonl").write_bytes(b'{"jo')
    assert recover(Store(tmp_path)) == []
    assert list(journals.folder(tmp_path).iterdir()) == []


def test_only_one_process_writes_into_a_folder(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(OutputError, match="another visgen-bench"),
        only_writer(tmp_path),
    ):
        pass
    with only_writer(tmp_path):
        pass


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write everywhere; drop its privileges for the length of a test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_refused_before_anything_starts(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(OutputError, match=r"cannot be written there .*--out"):
        prepare_output(folder / "out")


def test_a_full_disk_ends_the_run_and_the_next_one_finishes_the_plan(bench) -> None:
    text = bench.faulty_cell("none", seed=[0, 1])
    bench.run(bench.faulty_cell("none", seed=[0]), in_process=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files of more than 8 kB fail as they do on a full disk; a Parquet file of rows is larger.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        summary = bench.run(text, in_process=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert summary.exit_code == 1
    assert summary.full
    assert any("cannot write results" in line for line in bench.said)
    visible = [p for p in bench.out.rglob("*.parquet") if not p.name.startswith(".")]
    assert visible
    assert Store(bench.out).validate() == []
    assert bench.run(text, in_process=True).exit_code == 0
    ok = [run["cell_key"] for run in rows(bench.out) if run["status"] == "ok"]
    assert len(ok) == len(set(ok)) == 2
    assert Store(bench.out).validate() == []


@pytest.mark.slow
def test_a_killed_harness_leaves_no_worker_and_the_next_run_finishes(bench) -> None:
    suite = bench.folder / "faults.toml"
    suite.write_text(bench.faulty_cell("block", samples=16))
    command = [sys.executable, "-m", "visgen_bench.cli", "run", str(suite)]
    command += ["--out", str(bench.folder), "--include", str(bench.faulty)]
    os.mkfifo(bench.pipe)
    harness = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    handle = os.open(bench.pipe, os.O_WRONLY)  # returns when the worker waits at the pipe
    (worker,) = [pid for pid in _children_of_children(harness.pid)]
    gone = os.pidfd_open(worker)
    harness.send_signal(signal.SIGKILL)
    harness.communicate()
    assert select.select([gone], [], [], 20)[0], "the worker outlived its harness"
    os.close(handle)
    bench.pipe.unlink()
    bench.out = bench.folder / "faults"
    summary = bench.run(bench.faulty_cell("block", samples=16))
    assert [one.status for one in summary.recovered] == ["crash"]
    assert [run["status"] for run in rows(bench.out)] == ["crash", "ok"]
    assert "the harness was killed" in rows(bench.out)[0]["error_msg"]


def _children_of_children(pid: int) -> list[int]:
    def children(of: int) -> list[int]:
        return [int(p) for p in Path(f"/proc/{of}/task/{of}/children").read_text().split()]

    return [grandchild for child in children(pid) for grandchild in children(child)]


def test_a_job_is_plain_json(tmp_path: Path) -> None:
    journal = journals.open_for(job(tmp_path))
    journal.close()
    first = json.loads(journal.path.read_text().splitlines()[0])
    assert Job(**first["job"]).name == "quality/m"
    assert journals.read_job(journal.path) == Job(**first["job"])
