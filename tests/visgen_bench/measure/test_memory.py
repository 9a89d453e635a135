import functools
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from visgen_bench.measure.memory import (
    MemoryPeaks,
    PeakMeter,
    host_memory,
    measure_peaks,
    part_sizes,
    release_freed_memory,
    reset_host_peak,
)

MIB = 2**20


def in_own_process(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test in a fresh interpreter.

    In a process that has run many tests the kernel takes idle pages away and brings them back, and
    those that come back during a pass count as its growth. torch is imported by the tests that
    need it, so that the others start at once.
    """

    @functools.wraps(test)
    def run() -> None:
        code = (
            "import importlib.util as u; "
            f"s = u.spec_from_file_location('alone', {__file__!r}); "
            f"m = u.module_from_spec(s); s.loader.exec_module(m); m.{test.__name__}.__wrapped__()"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    return run


def fill(mib: int) -> bytearray:
    return bytearray(b"\x01") * (mib * MIB)


def grown(peaks: MemoryPeaks) -> int:
    return peaks.host - peaks.host_before


@in_own_process
def test_an_allocation_of_known_size_appears_in_the_peak():
    peaks = measure_peaks(lambda: len(fill(80)), "cpu")
    assert peaks.host_method == "VmHWM"
    assert grown(peaks) == pytest.approx(80 * MIB, rel=0.05)


@in_own_process
def test_the_peak_of_an_earlier_pass_does_not_leak_into_the_next():
    large = measure_peaks(lambda: len(fill(80)), "cpu")
    small = measure_peaks(lambda: len(fill(10)), "cpu")
    assert grown(large) > 75 * MIB
    assert grown(small) < 30 * MIB


@in_own_process
def test_each_part_of_a_pass_has_its_own_peak_and_the_total_is_the_largest():
    with PeakMeter("cpu") as meter:
        for _ in range(2):
            len(fill(80))
            meter.mark("fwd")
            len(fill(20))
            meter.mark("bwd")
    peaks = meter.peaks()
    assert grown(peaks["fwd"]) == pytest.approx(80 * MIB, rel=0.1)
    assert grown(peaks["bwd"]) == pytest.approx(20 * MIB, abs=6 * MIB)
    assert peaks["total"].host == peaks["fwd"].host


def test_the_sampling_fallback_sees_an_allocation_that_is_held():
    with PeakMeter("cpu", sample=True) as meter:
        held = fill(60)
        time.sleep(0.05)
        del held
    peaks = meter.peaks()["total"]
    assert peaks.host_method == "sampled every 10 ms"
    assert grown(peaks) == pytest.approx(60 * MIB, rel=0.1)


def test_reset_brings_the_mark_back_to_what_is_resident():
    held = fill(60)
    del held
    release_freed_memory("cpu")
    assert reset_host_peak()
    assert host_memory("VmHWM") - host_memory("VmRSS") < 8 * MIB


@in_own_process
def test_a_tensors_bytes_appear_and_device_peaks_are_none_on_a_cpu():
    import torch

    peaks = measure_peaks(lambda: torch.ones(64 * MIB // 4), "cpu")
    assert grown(peaks) == pytest.approx(64 * MIB, rel=0.1)
    assert peaks.allocated is None
    assert peaks.reserved is None


def test_a_childs_mark_is_its_own_and_not_its_parents():
    held = fill(150)
    code = (
        "import resource; t = open('/proc/self/status').read(); "
        "print(int(t.split('VmHWM:')[1].split()[0]), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert len(held) == 150 * MIB
    mark_kib = int(done.stdout.split()[0])
    assert mark_kib < 60 * 1024


def test_sizes_of_parts_count_shared_tensors_once():
    from torch import nn

    first = nn.Linear(3, 5)
    second = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    tied = nn.Sequential(nn.Linear(4, 4, bias=False))
    tied.append(tied[0])
    sizes = part_sizes({"first": first, "second": second.bfloat16(), "tied": tied})
    assert (sizes["first"].params, sizes["first"].param_bytes, sizes["first"].buffer_bytes) == (
        20,
        80,
        0,
    )
    # 16 weights and 8 of the norm in bf16; running mean and variance in bf16, an int64 counter.
    assert (sizes["second"].params, sizes["second"].param_bytes) == (24, 48)
    assert sizes["second"].buffer_bytes == 2 * 4 * 2 + 8
    assert sizes["tied"].params == 16


def test_an_unknown_field_names_the_file():
    with pytest.raises(OSError, match="VmNothing"):
        host_memory("VmNothing")


@pytest.mark.gpu
def test_the_device_peak_of_a_known_tensor():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    peaks = measure_peaks(lambda: torch.ones(64 * MIB // 4, device="cuda"), "cuda")
    assert peaks.allocated == pytest.approx(64 * MIB, rel=0.01)
    assert peaks.reserved is not None
    assert peaks.reserved >= 64 * MIB
