import os
import subprocess
import sys
import time

from visgen_bench.measure.contention import Contention


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_our_own_work_is_not_somebody_elses():
    with Contention() as idle:
        time.sleep(0.5)
    with Contention() as busy:
        spin(0.5)
    assert idle.share is not None
    assert busy.share is not None
    # Others may be at work on this machine; what we do ourselves must not show beyond them.
    assert busy.share <= idle.share + 0.35


def test_a_neighbour_that_spins_on_our_core_is_noticed():
    before = os.sched_getaffinity(0)
    core = min(before)
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", code])
    try:
        os.sched_setaffinity(0, {core})
        time.sleep(0.2)
        with Contention() as contention:
            spin(1.0)
    finally:
        os.sched_setaffinity(0, before)
        neighbour.kill()
        neighbour.wait()
    assert contention.share is not None
    assert contention.share > 0.2
    assert contention.exclusive is False


def test_a_block_shorter_than_the_kernels_ticks_says_nothing():
    with Contention() as contention:
        pass
    assert contention.share is None
    assert contention.exclusive is None
