"""Floors against the table of 30 reference layers, and devices by the names drivers give."""

import math

import pytest

from visgen_kernels.roofline import (
    Device,
    Work,
    attention_work,
    devices,
    devices_of,
    find_device,
    floor,
)
from visgen_kernels.shapes import SHAPES

# id, sequences x heads, queries, keys, mean visible keys, d, d_v;
# GFLOP, MB, FLOP/byte; microseconds and ceiling on A100, H100, H200, MI300X; backward on H100.
# C2's backward is not 2.5 forwards, as the rule of thumb has it (34.6): its d and d_v differ.
TABLE = """
G1  256    64    64    64   256 256  1.07   33.6 32   16.5B 10.0B 7.0B 6.3B  20.1B
G2  256    256   256   256  64  64   4.29   33.8 127  16.6B 10.1B 7.0B 6.4B  20.2B
G3b 64     1024  1024  1024 256 256  68.7   134  511  220.3M 69.5M 69.5M 52.6M 173.6M
G3  256    1024  1024  1024 16  16   17.2   34.6 496  110.2E 69.5E 69.5E 26.3E 69.5E
G4  1024   256   256   256  64  64   17.2   135  127  66.3B 40.4B 28.2B 25.5B 80.8B
G5  4096   256   256   256  16  16   17.2   138  124  110.2E 69.5E 69.5E 26.3E 82.6B
G6  16384  256   256   256  4   4    17.2   151  114  440.7E 277.8E 277.8E 105.1E 277.8E
G7  64     65536 64    64   4   4    4.29   84   51   110.2E 69.5E 69.5E 26.3E 69.5E
D1  65536  16    16    16   24  24   1.61   206  8    100.8B 61.3B 42.8B 38.8B 122.7B
D2  64     4096  4096  4096 48  48   206    102  2027 660.8M 277.8E 277.8E 157.7M 520.9M
D3  64     1024  1024  1024 96  96   25.8   50.6 509  82.6M 26.0M 26.0M 19.7M 65.1M
D4  128    256   256   256  72  72   2.42   19   127  9.3B 5.7B 4.0B 3.6B 11.3B
V1  384    65    65    65   64  64   0.415  12.9 32   6.3B 3.8B 2.7B 2.4B 7.7B
V2  384    257   257   257  64  64   6.49   50.9 128  25.0B 15.2B 10.6B 9.6B 30.4B
I1  32     3072  3072  363  128 128  18.3   101  181  58.6M 30.2B 21.1B 19.1B 60.3B
I2  64     3072  3072  576.5 64  64   29     101  286  93.0M 30.3B 29.3M 22.2M 73.3M
T1  192    17    17    17   64  64   0.0142 1.68 8    0.8B 0.5B 0.4B 0.3B 1.0B
T2  192    251   251   20   64  64   0.247  24.9 10   12.2B 7.4B 5.2B 4.7B 14.8B
W1  96     3137  3137  3137 64  64   242    155  1556 775.1M 244.4M 244.4M 185.0M 611.1M
W2  1536   197   197   197  64  64   15.3   156  98   76.6B 46.6B 32.5B 29.5B 93.2B
W3  18816  16    16    16   64  64   1.23   155  8    76.2B 46.4B 32.4B 29.3B 92.7B
W4  9408   16    16    16   64  64   0.617  77.7 8    38.1B 23.2B 16.2B 14.7B 46.4B
P1  32     4096  4096  2048.5 144 144  155    152  1021 495.7M 156.3M 156.3M 118.3M 390.8M
P2  16     8192  8192  4096.5 144 144  309    152  2041 991.3M 312.6M 312.6M 236.6M 781.5M
P3  32     4096  4096  205.5 144 144  15.5   152  102  74.3B 45.2B 31.6B 28.6B 90.5B
P4  2048   32    32    32   120 120  1.01   63.2 16   31.0B 18.9B 13.2B 11.9B 37.7B
P5  16384  4     4     4    120 120  0.126  63.2 2    31.0B 18.9B 13.2B 11.9B 37.7B
C2  32     4096  256   256  144 60   13.7   57.3 239  43.9M 17.1B 13.8M 10.8B 37.4M
C1  256    50    196   196  64  64   0.642  16.2 40   7.9B 4.8B 3.4B 3.1B 9.7B
X1  32     1     4096  4096 144 144  0.0755 75.5 1    37.0B 22.5B 15.7B 14.2B -
"""
ROWS = [line.split() for line in TABLE.split("\n") if line]
DEVICES = ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "mi300x")
LETTERS = {"B": "bytes", "M": "mma", "E": "exp"}


def shown_as(text: str, value: float) -> bool:
    """Is a value what the text shows, to the text's own last digit?"""
    digits = len(text.partition(".")[2])
    return math.isclose(float(text), value, rel_tol=0.0, abs_tol=0.5001 * 10.0**-digits)


def work_of(row: list[str], direction: str) -> Work:
    heads, n_q, n_k, d, d_v = (int(row[i]) for i in (1, 2, 3, 5, 6))
    mean = float(row[4])
    return attention_work(heads, n_q, n_k, d, d_v, n_q * mean, direction=direction)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_floors_are_those_of_the_reference_table(row: list[str]) -> None:
    forward = work_of(row, "forward")
    assert shown_as(row[7], forward.flops / 1e9)
    assert shown_as(row[8], forward.bytes / 1e6)
    assert shown_as(row[9], forward.intensity)
    for text, name in zip(row[10:14], DEVICES, strict=True):
        found = floor(forward, devices()[name])
        assert shown_as(text[:-1], found.time * 1e6), (name, found)
        assert found.binding == LETTERS[text[-1]], (name, found)
    if row[14] != "-":
        found = floor(work_of(row, "backward"), devices()["h100-sxm"])
        assert shown_as(row[14][:-1], found.time * 1e6)
        assert found.binding == LETTERS[row[14][-1]]


# Mean visible keys where the table counts what is not there: every 2-D block as if it were inside
# the map (576.5), listed blocks on the diagonal as if they were not causal (205.5).
EDGES = {"I2": 64.5 + 8 * 128 / 3 * 3 / 4 + 128 * 5 / 6, "P3": (694 * 32 + 128 * 33 / 2) / 128}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_shapes_are_the_layers_of_the_table(row: list[str]) -> None:
    shape = SHAPES[row[0]]
    sizes = (shape.score_matrices, shape.n_q, shape.n_k, shape.d, shape.d_v)
    assert sizes == tuple(int(row[i]) for i in (1, 2, 3, 5, 6))
    mean = EDGES.get(shape.id, float(row[4]))
    assert shape.pairs / shape.n_q == pytest.approx(mean, rel=1e-9 if mean % 1 else 0.02)


@pytest.mark.parametrize(
    ("name", "exp", "ridge"),
    [
        ("a100-sxm-80gb", 2.44e12, 153),
        ("h100-sxm", 3.86e12, 295),
        ("h200-sxm", 3.86e12, 206),
        ("mi300x", 10.2e12, 247),
        ("b200", 4.4e12, 281),
    ],
)
def test_derived_rates_are_those_of_the_table(name: str, exp: float, ridge: float) -> None:
    device = devices()[name]
    assert device.per_second("exp") == pytest.approx(exp, rel=0.006)
    assert device.ridge == pytest.approx(ridge, rel=0.004)


def test_matrix_rates_per_cycle_are_what_the_hardware_is_built_for() -> None:
    assert devices()["a100-sxm-80gb"].mma_per_cycle("bf16") == pytest.approx(2048, rel=0.01)
    assert devices()["h100-sxm"].mma_per_cycle("bf16") == pytest.approx(4096, rel=0.01)
    assert devices()["mi300x"].mma_per_cycle("bf16") == pytest.approx(2048, rel=0.01)


def test_eight_instructions_a_score_take_as_long_as_its_exponential() -> None:
    for name in ("a100-sxm-80gb", "h100-sxm", "b200"):
        found = floor(Work(exponentials=1e9, instructions=8e9), devices()[name])
        assert found.seconds["issue"] == pytest.approx(found.seconds["exp"])


def test_codebook_floor() -> None:
    vectors, codes, d = 32_768, 2_048, 256
    work = Work(flops=2.0 * vectors * codes * d, bytes=2.0 * (vectors + codes) * d)
    assert work.flops / 1e9 == pytest.approx(34.4, abs=0.05)
    times = [floor(work, devices()[name]).time * 1e6 for name in DEVICES]
    assert times == pytest.approx([110, 34.7, 34.7, 26.3], rel=0.003)
    assert floor(work, devices()["h100-sxm"], "tf32").time == pytest.approx(2 * times[1] * 1e-6)


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("NVIDIA B200", "b200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("h100-sxm", "h100-sxm"),
    ],
)
def test_a_device_is_found_by_the_name_its_driver_reports(driver: str, expected: str) -> None:
    assert find_device(driver).id == expected


def test_a_card_that_is_not_listed_is_not_taken_for_another() -> None:
    for name in ("NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090", "NVIDIA GB200"):
        with pytest.raises(ValueError, match=r"unknown device .* nearest: "):
            find_device(name)


def test_every_target_has_a_device_and_every_device_says_where_it_is_from() -> None:
    assert {d.target for d in devices().values()} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert [d.id for d in devices_of("sm_90")] == ["h100-sxm", "h200-sxm"]
    for device in devices().values():
        assert device.source
        assert all(known(device, name) for name in device.unverified)


def known(device: Device, name: str) -> bool:
    """Is the dotted name a field that the device has?"""
    whole, dot, part = name.partition(".")
    return part in getattr(device, whole) if dot else hasattr(device, whole)


def test_what_cannot_be_answered_is_an_error() -> None:
    with pytest.raises(ValueError, match="no matrix rate of A100"):
        floor(Work(), devices()["a100-sxm-80gb"], "fp8")
    with pytest.raises(ValueError, match="direction"):
        attention_work(1, 1, 1, 1, 1, 1, direction="sideways")
