"""Peak rates of devices, for model FLOP utilisation (MFU).

    MFU = FLOPs per sample * samples per second / (devices * peak dense FLOP/s of the used dtype)

The table is `devices.toml`, with a source per cell. An unknown peak gives no MFU, and a reason.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("devices.toml")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak FLOP/s of one device and dtype; `flops` is None exactly when `reason` says why."""

    flops: float | None
    source: str | None = None
    reason: str | None = None


@cache
def _devices() -> tuple[dict, ...]:
    with TABLE.open("rb") as file:
        return tuple(tomllib.load(file)["device"])


def peak_for(
    device_type: str,
    device_name: str,
    dtype: str,
    *,
    tf32: bool = False,
    peak_tflops: float | None = None,
) -> Peak:
    """Peak of `device_name` (as its driver reports it) in `dtype` ("fp32", "bf16", "fp16").

    fp32 work that may use TF32 is held against the TF32 peak. `peak_tflops` is the user's own
    figure and wins. Raises ValueError if it is not positive.
    """
    if peak_tflops is not None:
        if not peak_tflops > 0:
            raise ValueError(
                f"peak_tflops={peak_tflops}; the peak is a positive number of TFLOP/s."
            )
        return Peak(flops=peak_tflops * 1e12, source="peak_tflops")
    if device_type == "cpu":
        return Peak(flops=None, reason="no peak is listed for CPUs; --set peak_tflops=N gives one")
    kind = "tf32" if dtype == "fp32" and tf32 else dtype
    name = re.sub(r"[-_ ]+", " ", device_name)
    matches = [
        (len(pattern), device)
        for device in _devices()
        for pattern in device["match"]
        if re.search(rf"\b{re.escape(pattern)}\b", name)
    ]
    if not matches:
        reason = f'no peak is listed for "{device_name}"; --set peak_tflops=N gives one'
        return Peak(flops=None, reason=reason)
    device = max(matches, key=lambda match: match[0])[1]
    if kind not in device:
        reason = f"no {kind} peak is listed for {device['name']}; --set peak_tflops=N gives one"
        return Peak(flops=None, reason=reason)
    return Peak(flops=device[kind]["tflops"] * 1e12, source=device[kind]["source"])


def utilisation(
    flops_per_sample: float | None, samples_per_second: float | None, devices: int, peak: Peak
) -> tuple[float | None, str | None]:
    """(MFU as a fraction, None) or (None, the reason)."""
    if peak.flops is None:
        return None, peak.reason
    if flops_per_sample is None or samples_per_second is None:
        return None, "needs both FLOPs and throughput, and one of them is missing"
    return flops_per_sample * samples_per_second / (devices * peak.flops), None
