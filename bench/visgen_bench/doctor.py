"""Self-checks of this machine: clock, threads, disk, devices, and what cannot be measured here."""

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. `note`: something cannot be measured here; `bad`: results cannot be trusted."""

    name: str
    level: Level
    text: str


def examine(out: Path, *, offline: bool = True) -> Iterator[Check]:
    """All checks, one by one; takes a few seconds and writes only a probe file."""
    checks: tuple[Callable[[], Check], ...] = (
        clock_resolution,
        timer_overhead,
        known_duration,
        threads,
        deterministic_seeds,
        lambda: disk_space(out),
        lambda: write_and_rename(out),
        accelerator,
        nvml,
    )
    for check in checks:
        yield check()
    yield from metrics_here(offline)


def clock_resolution() -> Check:
    """The smallest step that the clock makes."""
    steps = []
    for _ in range(200):
        start = now = time.perf_counter_ns()
        while now == start:
            now = time.perf_counter_ns()
        steps.append(now - start)
    step = min(steps)
    level: Level = "ok" if step < 10_000 else "bad"
    return Check(name="clock resolution", level=level, text=f"{step} ns")


def timer_overhead() -> Check:
    """What reading the clock twice costs: the error of a single very short call."""
    costs = []
    for _ in range(2000):
        start = time.perf_counter_ns()
        costs.append(time.perf_counter_ns() - start)
    cost = statistics.median(costs)
    level: Level = "ok" if cost < 5_000 else "bad"
    return Check(name="timer overhead", level=level, text=f"{cost:.0f} ns a reading, median")


def known_duration(seconds: float = 0.02, calls: int = 15) -> Check:
    """A sleep of 20 ms must be measured within 2 %."""
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        time.sleep(seconds)
        found.append(time.perf_counter() - start)
    error = statistics.median(found) / seconds - 1
    level: Level = "ok" if abs(error) <= 0.02 else "note"
    text = f"a sleep of {seconds * 1e3:.0f} ms is measured with {error:+.1%}"
    return Check(name="known duration", level=level, text=text)


def threads() -> Check:
    """Threads that a worker would use, and what the container grants."""
    from visgen_bench.measure import environment

    usable, quota = environment.usable_cores(), environment.cgroup_quota()
    text = f"{usable} usable cores"
    if quota is not None:
        text += f", a quota of {quota:g}"
    if os.environ.get("OMP_NUM_THREADS"):
        text += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    short = quota is not None and quota < usable
    load = os.getloadavg()[0]
    if load > usable:
        return Check(
            name="threads", level="note", text=f"{text}; load {load:.1f}: timings will be noisy"
        )
    return Check(name="threads", level="note" if short else "ok", text=text)


def deterministic_seeds() -> Check:
    """The first normal numbers of seed 0 are the same on every machine."""
    import torch

    from visgen.seeds import normal

    one = normal(torch.arange(4), "doctor", (8,))
    both = normal(torch.tensor([3, 0]), "doctor", (8,))
    same = torch.equal(one[[3, 0]], both) and math.isfinite(float(one.sum()))
    text = "a sample's noise depends on its seed alone" if same else "noise depends on the batch"
    return Check(name="seeds", level="ok" if same else "bad", text=text)


def disk_space(out: Path) -> Check:
    """Free space where results would go."""
    folder = _existing(out)
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free > 2**28 else "bad"
    return Check(name="disk space", level=level, text=f"{free / 2**30:.1f} GiB free at {folder}")


def write_and_rename(out: Path) -> Check:
    """A file can be written beside its place, flushed, and renamed into it."""
    folder = _existing(out)
    try:
        handle, name = tempfile.mkstemp(prefix=".visgen-doctor-", dir=folder)
        start = time.perf_counter()
        with os.fdopen(handle, "wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        target = Path(f"{name}-moved")
        os.replace(name, target)
        target.unlink()
    except OSError as error:
        return Check(name="write and rename", level="bad", text=f"{folder}: {error.strerror}")
    spent = (time.perf_counter() - start) * 1e3
    return Check(name="write and rename", level="ok", text=f"{spent:.1f} ms at {folder}")


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def accelerator() -> Check:
    """Whether torch sees an accelerator, and synchronising with it works."""
    import torch

    if not torch.accelerator.is_available():
        return Check(name="accelerator", level="note", text="none; cells run on the CPU")
    torch.accelerator.synchronize()
    kind = torch.accelerator.current_accelerator()
    text = f"{torch.accelerator.device_count()} x {kind}, synchronise works"
    return Check(name="accelerator", level="ok", text=text)


def nvml() -> Check:
    """Whether energy and clocks of a GPU can be read."""
    from visgen_bench.measure import energy

    found, reason = energy.open_nvml()
    if found is None:
        return Check(name="NVML", level="note", text=f"no energy and no clocks: {reason}")
    return Check(name="NVML", level="ok", text="energy and clocks can be read")


def metrics_here(offline: bool) -> Iterator[Check]:
    """Which metrics can be computed here, and what fixes the others."""
    from visgen_bench.extractors.opening import Extractors
    from visgen_bench.metrics import plugins
    from visgen_bench.metrics.evaluation import available, names

    broken = plugins.broken()
    for fault in broken.values():
        yield Check(name="metrics", level="note", text=fault)
    extractors = Extractors(allow_download=not offline)
    reasons: dict[str, list[str]] = {}
    for metric in (name for name in names() if name not in broken):
        reasons.setdefault(available(metric, extractors) or "", []).append(metric)
    for reason, metrics in reasons.items():
        level: Level = "note" if reason else "ok"
        text = ", ".join(metrics) + (f": {reason}" if reason else "")
        yield Check(name="metrics", level=level, text=text)
