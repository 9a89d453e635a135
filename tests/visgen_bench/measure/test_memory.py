import subprocess
import sys

import pytest
import torch
from torch import nn

from visgen_bench.measure.memory import (
    HostPeak,
    host_memory,
    measure_peaks,
    part_sizes,
    release_freed_memory,
    reset_host_peak,
)

MIB = 2**20


def fill(mib: int) -> bytearray:
    return bytearray(b"\x01") * (mib * MIB)


def test_an_allocation_of_known_size_appears_in_the_peak():
    with HostPeak() as host:
        held = fill(200)
        del held
    assert host.method == "VmHWM"
    assert host.peak - host.before == pytest.approx(200 * MIB, rel=0.05)


def test_the_peak_of_an_earlier_pass_does_not_leak_into_the_next():
    with HostPeak() as large:
        held = fill(200)
        del held
    release_freed_memory("cpu")
    with HostPeak() as small:
        held = fill(20)
        del held
    assert large.peak - large.before > 190 * MIB
    assert small.peak - small.before < 60 * MIB


def test_the_sampling_fallback_sees_an_allocation_that_is_held():
    import time

    with HostPeak(sample=True) as host:
        held = fill(100)
        time.sleep(0.05)
        del held
    assert host.method == "sampled every 10 ms"
    assert host.peak - host.before == pytest.approx(100 * MIB, rel=0.1)


def test_reset_brings_the_mark_back_to_what_is_resident():
    held = fill(150)
    del held
    release_freed_memory("cpu")
    assert reset_host_peak()
    assert host_memory("VmHWM") - host_memory("VmRSS") < 8 * MIB


def test_a_tensors_bytes_appear_and_device_peaks_are_none_on_a_cpu():
    peaks = measure_peaks(lambda: torch.ones(64 * MIB // 4), "cpu")
    assert peaks.host - peaks.host_before == pytest.approx(64 * MIB, rel=0.1)
    assert peaks.allocated is None
    assert peaks.reserved is None


def test_a_childs_mark_is_its_own_and_not_its_parents():
    held = fill(300)
    code = (
        "import resource; t = open('/proc/self/status').read(); "
        "print(int(t.split('VmHWM:')[1].split()[0]), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert len(held) == 300 * MIB
    mark_kib = int(done.stdout.split()[0])
    assert mark_kib < 100 * 1024


def test_sizes_of_parts_count_shared_tensors_once():
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
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    peaks = measure_peaks(lambda: torch.ones(64 * MIB // 4, device="cuda"), "cuda")
    assert peaks.allocated == pytest.approx(64 * MIB, rel=0.01)
    assert peaks.reserved is not None
    assert peaks.reserved >= 64 * MIB
