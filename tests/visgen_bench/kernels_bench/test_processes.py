"""Measuring processes: what is left of one that fails, or takes too long."""

from pathlib import Path

from visgen_bench.kernels_bench.processes import run_child


def test_a_process_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended = run_child("bench", "no request", log=log, timeout_s=120, threads=1)
    assert ended.status == "crash"
    assert "exit code 1" in (ended.reason or "")
    assert "JSONDecodeError" in (ended.reason or "")
    assert "Traceback" in log.read_text()
    assert not ended.records


def test_a_process_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    ended = run_child("bench", "{}", log=tmp_path / "log", timeout_s=0.05, threads=1)
    assert (ended.status, ended.reason) == ("timeout", "did not end within 0.05 s")
