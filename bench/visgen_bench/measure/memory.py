"""Peak memory of one pass: host (VmHWM, reset per pass) and device (the caching allocator).

`getrusage().ru_maxrss` is not used: a child started from a large parent reports its parent's peak.
Bytes everywhere. A pass that measures memory measures nothing else.
"""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import nn

NO_DEVICE_MEMORY = "a CPU has no device allocator; see mem_host_peak"
SAMPLE_EVERY_S = 0.01


@dataclass(frozen=True, kw_only=True)
class MemoryPeaks:
    """Peaks of one pass in bytes; the device peaks are None where no device allocator is."""

    host: int
    host_before: int
    host_method: str
    allocated: int | None
    reserved: int | None


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """Size of one network: number of parameters, and bytes of parameters and of buffers."""

    params: int
    param_bytes: int
    buffer_bytes: int


def host_memory(field: str) -> int:
    """Bytes of a kB field of this process's status file: "VmHWM" (peak) or "VmRSS" (now).

    Raises OSError where there is no such file (only Linux has it).
    """
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}; host memory is read from it on Linux.")


def reset_host_peak() -> bool:
    """Set VmHWM back to the present resident size; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        # The file accepts the write on some sandboxed kernels without acting on it.
        return host_memory("VmHWM") - host_memory("VmRSS") < 8 * 2**20
    except OSError:
        return False


def release_freed_memory(device: str) -> None:
    """Hand freed memory back, so that an earlier pass does not count towards the next peak."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
    if device.split(":")[0] != "cpu":
        import torch

        torch.accelerator.empty_cache()


class HostPeak:
    """Peak resident size of this process inside a `with` block.

    The kernel's own mark is used where it can be reset; otherwise a thread samples the resident
    size every 10 ms, which can miss a shorter peak, and `method` says so.
    """

    def __init__(self, *, sample: bool = False) -> None:
        self._force_sampling = sample
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sampled = 0
        self.method = ""
        self.before = 0
        self.peak = 0

    def __enter__(self) -> Self:
        self.before = _resident()
        if not self._force_sampling and reset_host_peak():
            self.method = "VmHWM"
            return self
        self.method = "sampled every 10 ms"
        self._sampled = self.before
        self._thread = threading.Thread(target=self._watch, name="host-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is None:
            self.peak = host_memory("VmHWM")
            return
        self._stop.set()
        self._thread.join()
        self.peak = max(self._sampled, _resident())

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sampled = max(self._sampled, _resident())


def _resident() -> int:
    try:
        return host_memory("VmRSS")
    except OSError:
        import psutil

        return psutil.Process().memory_info().rss


def measure_peaks(call: Callable[[], object], device: str, *, calls: int = 2) -> MemoryPeaks:
    """Peaks over `calls` calls, after freed memory of earlier passes was handed back.

    Two calls, because the second still holds what the first one left (optimiser state, gradients).
    """
    release_freed_memory(device)
    on_device = device.split(":")[0] != "cpu"
    if on_device:
        import torch

        torch.accelerator.synchronize(device)
        torch.accelerator.reset_peak_memory_stats(device)
    with HostPeak() as host:
        for _ in range(calls):
            call()
    allocated = reserved = None
    if on_device:
        import torch

        torch.accelerator.synchronize(device)
        allocated = torch.accelerator.max_memory_allocated(device)
        reserved = torch.accelerator.max_memory_reserved(device)
    return MemoryPeaks(
        host=host.peak,
        host_before=host.before,
        host_method=host.method,
        allocated=allocated,
        reserved=reserved,
    )


def part_sizes(networks: "Mapping[str, nn.Module]") -> dict[str, PartSize]:
    """Size of each trainable part; a tensor shared inside one part counts once."""
    return {
        name: PartSize(
            params=sum(p.numel() for p in network.parameters()),
            param_bytes=sum(p.numel() * p.element_size() for p in network.parameters()),
            buffer_bytes=sum(b.numel() * b.element_size() for b in network.buffers()),
        )
        for name, network in networks.items()
    }
