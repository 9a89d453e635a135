import pytest

from visgen_bench.measure.peaks import Peak, peak_for, utilisation


@pytest.mark.parametrize(
    ("driver_name", "dtype", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H100 NVL", "bf16", 835),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("AMD Instinct MI300X", "bf16", 1300),
    ],
)
def test_a_drivers_device_name_finds_its_dense_peak_with_a_source(driver_name, dtype, tflops):
    peak = peak_for("cuda", driver_name, dtype)
    assert peak.flops == tflops * 1e12
    assert peak.source
    assert peak.reason is None


def test_fp32_work_that_may_use_tf32_is_held_against_tf32():
    assert peak_for("cuda", "NVIDIA A100-SXM4-80GB", "fp32").flops == 19.5e12
    assert peak_for("cuda", "NVIDIA A100-SXM4-80GB", "fp32", tf32=True).flops == 156e12
    assert peak_for("cuda", "NVIDIA A100-SXM4-80GB", "bf16", tf32=True).flops == 312e12


@pytest.mark.parametrize(
    ("device_type", "name", "dtype", "words"),
    [
        ("cpu", "AMD EPYC", "fp32", "CPUs"),
        ("cuda", "NVIDIA L400", "bf16", "NVIDIA L400"),
        ("cuda", "NVIDIA B200", "fp32", "no fp32 peak is listed for NVIDIA B200"),
    ],
)
def test_an_unknown_peak_is_none_with_a_reason_and_the_flag(device_type, name, dtype, words):
    peak = peak_for(device_type, name, dtype)
    assert peak.flops is None
    assert peak.reason is not None
    assert words in peak.reason
    assert "--set peak_tflops=N gives one" in peak.reason


def test_the_users_own_peak_wins_and_must_be_positive():
    assert peak_for("cpu", "AMD EPYC", "fp32", peak_tflops=0.1).flops == 1e11
    with pytest.raises(ValueError, match="peak_tflops=0"):
        peak_for("cpu", "AMD EPYC", "fp32", peak_tflops=0)


def test_utilisation_is_work_over_peak_and_none_without_either():
    peak = Peak(flops=1e12, source="here")
    assert utilisation(1e9, 500.0, 1, peak) == (0.5, None)
    assert utilisation(1e9, 500.0, 2, peak) == (0.25, None)
    assert utilisation(1e9, 500.0, 1, Peak(flops=None, reason="unknown")) == (None, "unknown")
    value, reason = utilisation(None, 500.0, 1, peak)
    assert value is None
    assert reason
