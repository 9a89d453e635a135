"""Every way in which a worker can end is a row, and none of them hurts the harness."""

import json
import os
import signal
from pathlib import Path

import pytest

from visgen_bench.executors.local import SPIN_COUNT, LocalExecutor, worker_environment
from visgen_results.rows import to_rows
from visgen_results.store import Store


def rows(out: Path, table: str = "runs") -> list[dict]:
    return sorted(to_rows(Store(out).read(table)), key=lambda row: row["run_id"])


def numbers(out: Path, metric: str) -> list[float | None]:
    return [row["value"] for row in rows(out, "metrics") if row["metric"] == metric]


def _state(pid: int) -> str:
    """R running, S sleeping, T stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _pending(pid: int) -> int:
    """Signals that a process has not taken yet, as the kernel's bit mask."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("ShdPnd:"):
            return int(line.split()[1], 16)
    return 0


@pytest.mark.parametrize(
    ("fault", "status", "code", "number", "says"),
    [
        ("kill", "crash", None, signal.SIGKILL, "signal 9"),
        ("abort", "crash", None, signal.SIGABRT, "signal 6"),
        ("exit", "crash", 7, None, "exit code 7"),
        ("raise", "error", 1, None, "the sun was in my eyes"),
        ("memory", "oom", 1, None, "not a byte left"),
        ("torch-memory", "oom", 1, None, "can't allocate memory"),
    ],
)
def test_a_worker_that_dies_becomes_a_row_that_says_how(
    bench, fault: str, status: str, code: int | None, number: int | None, says: str
) -> None:
    summary = bench.run(bench.faulty_cell(fault))
    (run,) = rows(bench.out)
    assert (run["status"], run["exit_code"], run["signal"]) == (status, code, number)
    assert says in run["error_msg"]
    assert summary.exit_code == 1
    # null, with the reason, and never 0
    (metric,) = [r for r in rows(bench.out, "metrics") if r["metric"] == "copy_share"]
    assert metric["value"] is None
    assert metric["reason"].startswith(status)
    assert Store(bench.out).validate() == []


def test_a_cell_that_takes_too_long_is_ended_and_called_timeout(bench) -> None:
    os.mkfifo(bench.pipe)
    bench.run(bench.faulty_cell("block", timeout_s=0.8))
    (run,) = rows(bench.out)
    assert run["status"] == "timeout"
    assert "0.8 s" in run["error_msg"]
    assert run["duration_s"] < 5


def test_the_first_interrupt_cancels_the_cell_writes_its_row_and_leaves_the_rest(bench) -> None:
    thread = bench.when_blocked(lambda _: os.kill(os.getpid(), signal.SIGINT))
    summary = bench.run(bench.faulty_cell("block", seed=[0, 1]))
    thread.join()
    assert summary.exit_code == 130
    assert [run["status"] for run in rows(bench.out)] == ["cancelled"]
    bench.pipe.unlink()
    assert bench.run(bench.faulty_cell("block", seed=[0, 1])).exit_code == 0
    assert [run["status"] for run in rows(bench.out)] == ["cancelled", "ok", "ok"]


def test_sigterm_to_the_harness_ends_with_143(bench) -> None:
    thread = bench.when_blocked(lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert bench.run(bench.faulty_cell("block")).exit_code == 143
    thread.join()


def test_a_second_interrupt_kills_a_worker_that_does_not_listen(bench) -> None:
    def twice(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)  # a stopped process cannot act on SIGTERM
        while _state(pid) != "T":  # a SIGTERM that comes before it has stopped would be taken first
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)
        while not _pending(pid) & (1 << (signal.SIGTERM - 1)):
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    thread = bench.when_blocked(twice)
    summary = bench.run(bench.faulty_cell("block"))
    thread.join()
    (run,) = rows(bench.out)
    assert (run["status"], run["signal"], summary.exit_code) == ("cancelled", signal.SIGKILL, 130)


def test_a_crash_is_tried_once_more_and_an_error_is_not(bench) -> None:
    bench.run(bench.faulty_cell("kill"), retries=1)
    bench.run(bench.faulty_cell("raise"), retries=1)
    assert [(r["status"], r["attempt"]) for r in rows(bench.out)] == [
        ("crash", 1),
        ("crash", 2),
        ("error", 1),
    ]


def test_a_killed_cell_goes_on_where_it_was_and_gives_the_same_number(bench) -> None:
    text = bench.faulty_cell("block", samples=40)
    thread = bench.when_blocked(lambda pid: os.kill(pid, signal.SIGKILL))
    bench.run(text)
    thread.join()
    bench.pipe.unlink()
    saved = list(bench.out.glob("state/*/samples-40-*/*/evaluation.npz"))
    assert saved, "the first chunk was saved before the kill"
    before = saved[0].stat().st_mtime_ns
    bench.run(text)
    assert [run["status"] for run in rows(bench.out)] == ["crash", "ok"]
    assert not list(bench.out.glob("state/*/*")), "nothing is left to resume"
    bench.run(bench.faulty_cell("none", samples=40))
    resumed, straight = [v for v in numbers(bench.out, "copy_share") if v is not None]
    assert resumed == straight
    assert before > 0


def test_a_forked_worker_starts_from_a_server_with_one_thread(bench) -> None:
    bench.run(bench.faulty_cell("none"))
    assert bench.executor.server_threads == 1
    (start,) = [r for r in rows(bench.out, "metrics") if r["metric"] == "process_start"]
    assert 0 < start["value"] < 10
    assert '"fork"' in start["metric_opts"]


@pytest.mark.slow
def test_a_fresh_interpreter_gives_the_same_number(bench) -> None:
    bench.run(bench.faulty_cell("none"))
    bench.run(bench.faulty_cell("none"), fresh=True, rerun="all")
    starts = [r for r in rows(bench.out, "metrics") if r["metric"] == "process_start"]
    assert '"fresh"' in starts[1]["metric_opts"]
    first, second = numbers(bench.out, "copy_share")
    assert first == second


def test_a_worker_dies_with_its_server(bench) -> None:
    gone: list[int] = []

    def kill_server(pid: int) -> None:
        server = bench.executor._server
        gone.append(pid)
        server.kill()

    with LocalExecutor() as own:
        bench.executor = own
        thread = bench.when_blocked(kill_server)
        with pytest.raises(RuntimeError, match="the fork server ended"):
            bench.run(bench.faulty_cell("block"))
        thread.join()
    # The kernel kills the orphan; wait until it is gone without polling a clock.
    handle = os.pidfd_open(gone[0]) if Path(f"/proc/{gone[0]}").exists() else None
    if handle is not None:
        import select

        assert select.select([handle], [], [], 10)[0]
        os.close(handle)


def test_spinning_is_bounded_unless_its_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert worker_environment()["GOMP_SPINCOUNT"] == SPIN_COUNT
    # libgomp reads it when it is loaded, which is in the server.
    with LocalExecutor() as executor:
        executor.warm_up(preload=False)
        assert executor._server is not None
        environ = Path(f"/proc/{executor._server.pid}/environ").read_bytes().split(b"\0")
        assert f"GOMP_SPINCOUNT={SPIN_COUNT}".encode() in environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in worker_environment()


def test_the_spin_count_is_written_beside_a_time(bench) -> None:
    text = (
        '[[cell]]\nkind = "performance"\nmodel = "dcgan-digits8-tiny"\nmin_iters = 2\n'
        "min_duration_s = 0.0\nwarmup_min_s = 0.0\nwarmup_max_s = 0.1\n"
    )
    assert bench.run(text).exit_code == 0
    rows = to_rows(Store(bench.out).read("metrics"))
    (row,) = [r for r in rows if (r["metric"], r["stat"]) == ("latency", "p50")]
    assert json.loads(row["metric_opts"])["switches"]["GOMP_SPINCOUNT"] == SPIN_COUNT
