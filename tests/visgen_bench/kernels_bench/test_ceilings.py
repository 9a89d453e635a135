"""Which ceilings hold for which device, by the name that its driver reports."""

import pytest

from visgen_bench.kernels_bench.ceilings import ceilings, match_device
from visgen_kernels.roofline import Work

WORK = Work(flops=989.4e9, bytes=3.35e12, exponentials=0.0)


@pytest.mark.parametrize(
    ("reported", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("NVIDIA B200", "b200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA GB200", None),  # another product than a B200, with other clocks
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_devices_are_known_by_whole_words_of_their_names(reported: str, device: str | None) -> None:
    found = match_device(reported)
    assert (None if found is None else found.id) == device


def test_a_second_of_bytes_is_bound_by_bytes() -> None:
    found = ceilings(WORK, "cuda", "NVIDIA H100 80GB HBM3", "bf16")
    assert found.floor is not None
    assert found.floor.binding == "bytes"
    assert found.floor.time == pytest.approx(1.0)
    assert found.floor.seconds["mma"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("kind", "reported", "dtype", "reason"),
    [
        ("cpu", "AMD EPYC", "fp32", "CPUs"),
        ("cuda", "NVIDIA H100 PCIe", "bf16", 'listed for "NVIDIA H100 PCIe"'),
        ("cuda", "NVIDIA H200", "int4", "no int4 rate"),
    ],
)
def test_unknown_ceilings_come_with_a_reason(
    kind: str, reported: str, dtype: str, reason: str
) -> None:
    found = ceilings(WORK, kind, reported, dtype)
    assert found.floor is None
    assert reason in (found.reason or "")
