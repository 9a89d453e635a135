"""Peak memory of one pass: host (VmHWM, reset per pass) and device (the caching allocator).

`getrusage().ru_maxrss` is not used: a child started from a large parent reports its parent's peak.
Bytes everywhere. A pass that measures memory measures nothing else.
"""

import ctypes
import dataclasses
import gc
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
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
    """Peak resident size of this process since `restart`.

    The kernel's own mark is used where it can be reset; otherwise a thread samples the resident
    size every 10 ms, which can miss a shorter peak, and `method` says so.
    """

    def __init__(self, *, sample: bool = False) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sampled = 0
        self.method = "sampled every 10 ms"
        if not sample and reset_host_peak():
            self.method = "VmHWM"

    def __enter__(self) -> Self:
        if self.method != "VmHWM":
            self._thread = threading.Thread(target=self._watch, name="host-memory", daemon=True)
            self._thread.start()
        self.restart()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()

    def restart(self) -> int:
        """Begin a new peak at what is resident now; returns that in bytes."""
        self._sampled = _resident()
        if self._thread is None:
            reset_host_peak()
        return self._sampled

    def peak(self) -> int:
        """Bytes at the peak since the last restart."""
        if self._thread is None:
            return host_memory("VmHWM")
        return max(self._sampled, _resident())

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sampled = max(self._sampled, _resident())


def _resident() -> int:
    try:
        return host_memory("VmRSS")
    except OSError:
        import psutil

        return psutil.Process().memory_info().rss


class PeakMeter:
    """Peaks of a pass, cut at marks: `mark("fwd")` closes the part that began at the last mark.

    A part that is marked several times keeps its largest peak. `peaks()` of "total" is the largest
    of all parts. Freed memory of earlier passes is handed back on entry.
    """

    def __init__(self, device: str, *, sample: bool = False) -> None:
        self._on_device = device.split(":")[0] != "cpu"
        self._device = device
        self._sample = sample
        self._parts: dict[str, MemoryPeaks] = {}

    def __enter__(self) -> Self:
        release_freed_memory(self._device)
        self._host = HostPeak(sample=self._sample)
        self._host.__enter__()
        self._restart()
        return self

    def __exit__(self, *error: object) -> None:
        self.mark("total")
        self._host.__exit__()

    def _restart(self) -> None:
        if self._on_device:
            import torch

            torch.accelerator.synchronize(self._device)
            torch.accelerator.reset_peak_memory_stats(self._device)
        self._before = self._host.restart()

    def mark(self, part: str) -> None:
        """The peak since the last mark belongs to `part`; the next part begins."""
        allocated = reserved = None
        if self._on_device:
            import torch

            torch.accelerator.synchronize(self._device)
            allocated = torch.accelerator.max_memory_allocated(self._device)
            reserved = torch.accelerator.max_memory_reserved(self._device)
        peaks = MemoryPeaks(
            host=self._host.peak(),
            host_before=self._before,
            host_method=self._host.method,
            allocated=allocated,
            reserved=reserved,
        )
        earlier = self._parts.get(part)
        self._parts[part] = peaks if earlier is None else combine([earlier, peaks])
        self._restart()

    def peaks(self) -> dict[str, MemoryPeaks]:
        """Peaks by part, and over all parts under "total"."""
        return {**self._parts, "total": combine(list(self._parts.values()))}


def combine(peaks: Sequence[MemoryPeaks]) -> MemoryPeaks:
    """The largest of each figure; `host_before` is the earliest one's."""

    def largest(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return max(known) if known else None

    return MemoryPeaks(
        host=max(p.host for p in peaks),
        host_before=peaks[0].host_before,
        host_method=peaks[0].host_method,
        allocated=largest([p.allocated for p in peaks]),
        reserved=largest([p.reserved for p in peaks]),
    )


def over_ranks(peaks: Sequence[MemoryPeaks]) -> MemoryPeaks:
    """One host's ranks together: host memory adds up, a device's peak is the largest rank's.

    Pages that ranks share are counted once per rank, so the sum is an upper bound.
    """
    together = combine(peaks)
    return dataclasses.replace(
        together,
        host=sum(p.host for p in peaks),
        host_before=sum(p.host_before for p in peaks),
    )


def measure_peaks(call: Callable[[], object], device: str, *, calls: int = 2) -> MemoryPeaks:
    """Peaks over `calls` calls.

    Two calls, because the second still holds what the first one left (optimiser state, gradients).
    """
    with PeakMeter(device) as meter:
        for _ in range(calls):
            call()
    return meter.peaks()["total"]


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
