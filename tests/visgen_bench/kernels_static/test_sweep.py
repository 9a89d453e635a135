"""Several processes: a compiler that dies takes its own task with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from visgen_bench.kernels_static.request import OwnTask
from visgen_bench.kernels_static.sweep import sweep

FILE = Path(__file__).parents[2] / "visgen_kernels" / "static" / "user_kernels.py"


def task(name: str, **fields: object) -> OwnTask:
    return OwnTask(f"{FILE}:{name}", "sm_90", **fields)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_the_others_go_on() -> None:
    said: list[str] = []
    fine = task("launch_of_add")
    done = sweep([fine, task("dies"), fine], jobs=1, say=said.append)
    assert [one.analysis is not None for one in done.findings] == [True, False, True]
    assert "died" in done.findings[1].error
    assert done.left == []
    assert said[-1].startswith("[3/3]")


@pytest.mark.slow
def test_a_fault_of_whoever_takes_the_findings_is_not_taken_for_a_lack_of_time() -> None:
    def full(_: object) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        sweep([task("launch_of_add")] * 3, jobs=1, keep=full)


def test_what_is_not_begun_in_time_is_named() -> None:
    tasks = [task("launch_of_add"), task("launch_of_add")]
    done = sweep(tasks, jobs=0, seconds=0)
    assert done.findings == []
    assert done.left == tasks


def test_an_own_kernel_has_a_time_only_if_bytes_and_grid_are_known() -> None:
    described = {"signature": "*fp32:16,*fp32:16,*fp32:16,i32:16", "constants": ("BLOCK=1024",)}
    known = {"programs": 4096, "moved": 3 * 4.0 * 4096 * 1024}
    done = sweep([task("add", **described), task("add", **described, **known)], jobs=0)
    unknown, whole = (one.analysis for one in done.findings)
    assert unknown is not None
    assert whole is not None
    assert unknown.predictions[0].seconds is None
    assert "was not given" in unknown.predictions[0].reason
    assert whole.predictions[0].seconds == pytest.approx(3 * 4.0 * 4096 * 1024 / (0.9 * 3.35e12))


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom visgen_bench.kernels_static.request import OwnTask\n"
        "from visgen_bench.kernels_static.sweep import sweep\n"
        "if __name__ == '__main__':\n"
        "    tasks = [OwnTask(sys.argv[1], 'sm_90')] * 9\n"
        "    sweep(tasks, jobs=1, say=lambda line: print(line, flush=True))\n"
    )
    script = tmp_path / "swept.py"
    script.write_text(code)
    command = [sys.executable, str(script), f"{FILE}:sleeps"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("[1/9]")  # a worker is there, and at work
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(child.is_running() and child.status() != "zombie" for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
