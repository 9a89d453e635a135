"""Measured time against a device's ceilings (`visgen_kernels/devices.toml`).

A device is known by its name alone: one of an entry's `driver_names` stands in the name that the
driver reports, as whole words, hyphens and underscores counting as spaces. "NVIDIA H100 80GB HBM3"
is h100-sxm; "NVIDIA H100 PCIe" is nothing, because its rates are others. The longest match wins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from visgen_kernels.roofline import Device, Floor, Work, devices, floor


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Floors of a piece of work on a device; None with a reason where they are not known."""

    device: str | None = None
    floor: Floor | None = None
    reason: str | None = None


def match_device(reported: str) -> Device | None:
    """The device whose ceilings hold for a driver's name, or None."""
    text = _words(reported)
    found = [
        (len(name), device)
        for device in devices().values()
        for name in device.driver_names
        if re.search(rf"(?<!\w){re.escape(_words(name))}(?!\w)", text)
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def _words(name: str) -> str:
    return re.sub(r"[-_ ]+", " ", name).strip()


def ceilings(work: Work, device_type: str, reported: str, dtype: str) -> Ceilings:
    """What the device allows for this work."""
    if device_type == "cpu":
        return Ceilings(reason="no ceilings are listed for CPUs")
    device = match_device(reported)
    if device is None:
        known = ", ".join(devices())
        return Ceilings(
            reason=f'no ceilings are listed for "{reported}" (devices.toml has {known})'
        )
    if dtype not in device.flops:
        return Ceilings(device=device.id, reason=f"no {dtype} rate is listed for {device.name}")
    return Ceilings(device=device.id, floor=floor(work, device, dtype))
