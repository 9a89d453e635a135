import os
import time
from types import SimpleNamespace

import pytest

from visgen_bench.measure.energy import (
    SMALLEST_CALLS,
    is_exclusive,
    measure_energy,
    open_nvml,
    unavailable,
)


class Driver:
    """Stands in for the GPU driver: 50 W idle or busy, counted in millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, watts: float = 50.0, bits: int = 0, frozen: bool = False) -> None:
        self.watts = watts
        self.bits = bits
        self.frozen = frozen
        self.pids = [os.getpid()]

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return int(self.watts * 1e3)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: object) -> int:
        return self.bits

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        return 7 if self.frozen else int(time.perf_counter() * self.watts * 1e3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]


def measured(driver: Driver):
    return measure_energy(lambda: None, lambda: None, driver, "card", idle_s=0.05, window_s=0.3)


def test_energy_is_power_times_time():
    energy = measured(Driver(watts=50.0))
    assert energy.seconds is not None
    assert energy.joules == pytest.approx(50.0 * energy.seconds, rel=0.02)
    assert energy.power_mean_w == pytest.approx(50.0, rel=0.02)
    assert energy.power_idle_w == pytest.approx(50.0)
    assert energy.calls >= SMALLEST_CALLS
    assert (energy.exclusive, energy.throttled, energy.reason) == (True, False, None)


def test_a_counter_that_does_not_move_gives_no_energy_and_not_zero():
    energy = measured(Driver(frozen=True))
    assert energy.joules is None
    assert energy.power_mean_w is None
    assert energy.reason == "the energy counter did not move during the window"


@pytest.mark.parametrize(
    ("bits", "throttled"), [(0x1, False), (0x2, False), (0x4, True), (0x40, True), (0x100, False)]
)
def test_only_bits_that_slow_the_clock_count_as_throttled(bits: int, throttled: bool):
    assert measured(Driver(bits=bits)).throttled is throttled


def test_another_process_on_the_card_is_not_exclusive():
    driver = Driver()
    driver.pids.append(1)
    assert is_exclusive(driver, "card") is False


def test_without_a_driver_there_is_a_reason_and_no_estimate():
    nvml, reason = open_nvml()
    if nvml is not None:
        pytest.skip("this machine has NVML")
    assert reason
    energy = unavailable(reason)
    assert energy.joules is None
    assert energy.reason == reason
