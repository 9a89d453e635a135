"""Ceilings: how fast a piece of work can be at best on a device, and which limit says so.

    time >= max(bytes / bandwidth, matrix FLOPs / matrix rate, exponentials / exp rate)

This floor follows from the problem alone. A fourth limit, issue slots, needs the instructions of a
compiled kernel (`static`). All are models: no launch, no latency, nothing but one limit at a time.
A working set below the L2 size can beat the limit of bytes. Numbers and sources: `devices.toml`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources

CEILINGS = ("bytes", "mma", "exp", "issue")


@dataclass(frozen=True)
class Device:
    """Peak rates of one device.

    Attributes:
        id: Short name, `h100-sxm`.
        name: As a person writes it.
        target: The architecture that code is compiled for, `sm_90`.
        driver_names: Parts of the names that drivers report.
        units: Multiprocessors (AMD: compute units).
        clock: Hz.
        bandwidth: Bytes per second of the main memory.
        l2: Bytes.
        flops: Dense matrix FLOP/s by dtype; `fp32` is that of the vector units.
        lanes: Results a unit gives in a cycle, by pipe; see `devices.toml`.
        source: Where the numbers come from, by field.
        unverified: Fields that no source was read for.
    """

    id: str
    name: str
    target: str
    driver_names: tuple[str, ...]
    units: int
    clock: float
    bandwidth: float
    l2: int
    flops: Mapping[str, float]
    lanes: Mapping[str, int]
    source: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    def per_second(self, pipe: str) -> float:
        """Results per second of a pipe, all units together."""
        return self.units * self.lanes[pipe] * self.clock

    def mma_per_cycle(self, dtype: str) -> float:
        """Matrix FLOPs of one unit in one cycle."""
        return self.flops[dtype] / (self.units * self.clock)

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which bf16 matrix work takes longer than moving the bytes."""
        return self.flops["bf16"] / self.bandwidth


@dataclass(frozen=True)
class Work:
    """What has to be done; `instructions` are those of all lanes, None if no code was read."""

    flops: float = 0.0
    bytes: float = 0.0
    exponentials: float = 0.0
    instructions: float | None = None

    @property
    def intensity(self) -> float:
        """Matrix FLOPs per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Floor:
    """Seconds that each ceiling alone asks for; `issue` is there only if instructions are known."""

    seconds: Mapping[str, float]

    @property
    def binding(self) -> str:
        """The ceiling that asks for most."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def time(self) -> float:
        """Seconds of the binding ceiling."""
        return self.seconds[self.binding]


def floor(work: Work, device: Device, dtype: str = "bf16") -> Floor:
    """The least time that `work` takes on `device`.

    Raises:
        ValueError: if the device has no matrix rate for `dtype`.
    """
    if dtype not in device.flops:
        raise ValueError(
            f"no matrix rate of {device.name} for {dtype!r}; known: {', '.join(device.flops)}."
        )
    seconds = {
        "bytes": work.bytes / device.bandwidth,
        "mma": work.flops / device.flops[dtype],
        "exp": work.exponentials / device.per_second("exp"),
    }
    if work.instructions is not None:
        seconds["issue"] = work.instructions / device.per_second("issue")
    return Floor(seconds)


@functools.cache
def devices() -> dict[str, Device]:
    """All devices of `devices.toml` by id."""
    text = resources.files("visgen_kernels").joinpath("devices.toml").read_text("utf-8")
    found = {}
    for name, entry in tomllib.loads(text).items():
        entry |= {key: tuple(entry.get(key, ())) for key in ("driver_names", "unverified")}
        found[name] = Device(id=name, **entry)
    return found


def devices_of(target: str) -> tuple[Device, ...]:
    """Devices that run code of a target, in the file's order."""
    return tuple(device for device in devices().values() if device.target == target)


def find_device(name: str) -> Device:
    """A device by its id, its name, or a name that a driver reports (`NVIDIA H100 80GB HBM3`).

    Raises:
        ValueError: naming the nearest id.
    """
    known = devices()
    for device in known.values():
        # Whole words: a GB200 is not the B200 that its name contains.
        parts = "|".join(re.escape(x) for x in (device.id, device.name, *device.driver_names))
        if re.search(rf"(?<!\w)({parts})(?!\w)", name):
            return device
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    raise ValueError(f'unknown device "{name}"; nearest: "{near}" (known: {", ".join(known)}).')


def attention_work(
    heads: int, n_q: int, n_k: int, d: int, d_v: int, pairs: float, *, direction: str = "forward"
) -> Work:
    """The least work of one attention call in 16-bit numbers (statistics of a row in float32).

    heads: sequences times heads. pairs: visible (query, key) pairs of one of them. Every tensor
    moves once; exponentials are computed once, and `backward` counts five products, although a
    deterministic backward computes more (`static.work`).

    Raises:
        ValueError: for another direction than `forward` and `backward`.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction {direction!r} has no floor; there are forward and backward.")
    tensors = n_q * d + n_k * d + n_k * d_v + n_q * d_v
    forward = direction == "forward"
    products = d + d_v if forward else 3 * d + 2 * d_v
    # Forward: q, k, v read, o written, and the log-sum-exp. Backward: q, k, v, o, dO read, dq, dk,
    # dv written (o and dO are as large as each other), log-sum-exp and delta read.
    moved = 2 * tensors * (1 if forward else 2) + 4 * n_q * (1 if forward else 2)
    return Work(
        flops=2.0 * heads * pairs * products,
        bytes=float(heads * moved),
        exponentials=float(heads * pairs),
    )
