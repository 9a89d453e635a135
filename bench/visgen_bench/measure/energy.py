"""Energy and clocks of one NVIDIA GPU, through NVML; on anything else a reason, never an estimate.

Energy is the difference of the driver's counter (millijoules since driver load) over a window of at
least 5 s and 100 calls: the counter moves only about every 10 ms. It belongs to the GPU, not to
this process, so `exclusive` says whether any other process computed on it. A side thread reads
power and throttle bits every 100 ms and is never started inside a timed pass.
CPU energy is not reported: RAPL is usually readable by root only, and a figure derived from the
rated power is not a measurement.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

SMALLEST_WINDOW_S = 5.0
SMALLEST_CALLS = 100
WATCH_EVERY_S = 0.1
# Bits of nvmlDeviceGetCurrentClocksEventReasons that slow the clock down: power cap, hardware
# slowdown, software thermal, hardware thermal, power brake.
THROTTLE_BITS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one window; every None is explained by `reason`."""

    joules: float | None
    seconds: float | None
    power_mean_w: float | None
    power_idle_w: float | None
    calls: int
    exclusive: bool | None
    throttled: bool | None
    reason: str | None = None


def unavailable(reason: str) -> Energy:
    """The row of a device whose energy cannot be measured."""
    return Energy(
        joules=None,
        seconds=None,
        power_mean_w=None,
        power_idle_w=None,
        calls=0,
        exclusive=None,
        throttled=None,
        reason=reason,
    )


def open_nvml() -> tuple[Any | None, str | None]:
    """(the initialised pynvml module, None) or (None, why there is none)."""
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML is not available: {error}"
    return pynvml, None


def handle_of(nvml: Any, uuid: str) -> Any:
    """NVML's handle of a device, by UUID: NVML does not follow CUDA_VISIBLE_DEVICES' order."""
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


class Watch:
    """Samples power and throttle bits of one device in a side thread inside a `with` block."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self.power_w: list[float] = []
        self.throttled = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.power_w.append(self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3)
            bits = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
            self.throttled = self.throttled or bool(bits & THROTTLE_BITS)
            if self._stop.wait(WATCH_EVERY_S):
                return


def is_exclusive(nvml: Any, handle: Any) -> bool | None:
    """True if only this process computes on the device; None where the driver does not tell."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    return all(process.pid == os.getpid() for process in processes)


def measure_energy(
    call: Callable[[], object],
    sync: Callable[[], object],
    nvml: Any,
    handle: Any,
    *,
    idle_s: float = 5.0,
    window_s: float = SMALLEST_WINDOW_S,
) -> Energy:
    """Energy of a window of at least `window_s` seconds and 100 calls, after `idle_s` of idling.

    The idle power is stated beside the energy and never subtracted from it.
    """
    sync()
    with Watch(nvml, handle) as idle:
        time.sleep(idle_s)
    calls = 0
    with Watch(nvml, handle) as load:
        sync()
        before = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        start = time.perf_counter()
        while calls < SMALLEST_CALLS or time.perf_counter() - start < window_s:
            call()
            calls += 1
            if calls % 10 == 0:
                sync()  # else the queue runs far ahead of the clock that ends the window
        sync()
        seconds = time.perf_counter() - start
        joules = (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3
    moved = joules > 0
    return Energy(
        joules=joules if moved else None,
        seconds=seconds,
        power_mean_w=joules / seconds if moved else None,
        power_idle_w=sum(idle.power_w) / len(idle.power_w),
        calls=calls,
        exclusive=is_exclusive(nvml, handle),
        throttled=load.throttled,
        reason=None if moved else "the energy counter did not move during the window",
    )
