"""The issue model against the worked example of one tile, and how grids fill a device."""

import pytest

from visgen_kernels.roofline import devices
from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.counts import Moved
from visgen_kernels.static.cycles import Cycles, cycles, grid_cycles, launched
from visgen_kernels.static.report import Counts
from visgen_kernels.static.targets import TARGETS

H100, MI300X = devices()["h100-sxm"], devices()["mi300x"]


def counts(pipes: dict[str, int], flops: float | None, shared: int = 0) -> Counts:
    total, exponentials, none = sum(pipes.values()), pipes.get("mufu", 0), Moved(())
    return Counts(total, pipes, {}, flops, exponentials, none, none, 0, 0, shared, 0)


def test_a_tile_of_128_x_128_at_64_channels_by_hand() -> None:
    # H100: 4.19 MFLOP at 4096 a cycle and 16,384 exponentials at 16 a cycle are 1024 cycles each;
    # six float32 operations a score are 768.
    scores, warps = 128 * 128, 8
    per_warp = scores // (warps * 32)
    found = cycles(
        counts({"mufu": per_warp, "fma": 6 * per_warp}, 2 * 2 * scores * 64 / warps),
        Compiled(TARGETS["sm_90"], warps, "", 128, 0, 0),
        H100,
    )
    assert found.pipes["mma"] == pytest.approx(1024, rel=0.002)
    assert found.pipes["exp"] == 1024
    assert found.pipes["vector"] == 768
    assert found.pipes["issue"] == 7 * scores / 128
    # One block alone waits for itself; others hide what is not the largest pipe.
    assert found.of(1) == pytest.approx(1024 + 1024 + 768, rel=0.002)
    assert found.of(2) == pytest.approx(1024 + (1024 + 768) / 2, rel=0.002)
    assert found.of(1000) == pytest.approx(1024, rel=0.01)


def test_shared_memory_is_read_beside_the_products() -> None:
    assert Cycles({"issue": 90.0, "mma": 100.0, "shared": 80.0, "exp": 50.0}).alone == 150
    assert Cycles({"issue": 900.0, "mma": 1.0}).of(1) == 900


def test_matrix_work_that_the_code_does_not_tell_is_what_the_tile_needs() -> None:
    compiled = Compiled(TARGETS["sm_100"], 4, "", 128, 0, 0)
    device = devices()["b200"]
    found = cycles(counts({"mma": 8}, None), compiled, device, flops=8.2e6)
    assert found.pipes["mma"] == pytest.approx(8.2e6 / device.mma_per_cycle("bf16"))


def test_amd_issues_scalar_and_memory_instructions_beside_vector_ones() -> None:
    compiled = Compiled(TARGETS["gfx942"], 4, "", 128, 0, 0)
    pipes = {"alu": 10, "mufu": 2, "uniform": 50, "lds": 5}
    found = cycles(counts(pipes, 0.0, 80), compiled, MI300X)
    # 256 lanes: a compute unit takes 64 a cycle, 16 where they are transcendental.
    assert found.pipes["issue"] == 12 * 256 / 64
    assert found.pipes["vector"] == 10 * 256 / 64
    assert found.pipes["exp"] == 2 * 256 / 16
    assert found.pipes["shared"] == 80 * 256 / 128


def test_waves_and_tail_by_hand() -> None:
    found = launched(400, 2, H100)  # 264 places a wave
    assert found.waves == pytest.approx(400 / 264)
    assert found.tail == pytest.approx(1 - 400 / 528)
    assert launched(264, 2, H100).tail == 0
    with pytest.raises(ValueError, match="not even one block"):
        launched(1, 0, H100)


def test_a_tail_runs_with_fewer_resident_blocks() -> None:
    stretch = Cycles({"mma": 100.0, "exp": 60.0})
    # Two resident blocks: 130 cycles a pass of each; one: 160.
    assert grid_cycles(264, 2, H100, [(stretch, 3)]) == 2 * 3 * 130
    assert grid_cycles(264 + 132, 2, H100, [(stretch, 3)]) == 2 * 3 * 130 + 3 * 160
    assert grid_cycles(1, 2, H100, [(stretch, 3), (stretch, 0.5)]) == 3.5 * 160
