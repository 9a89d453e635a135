"""Which number may carry which name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from visgen.names import hint
from visgen_bench.metrics.errors import ProtocolError

# Names of published measurements, and the weights that alone may produce them.
RESERVED = ("fid", "kid", "isc", "fvd")
PLUGIN_FORMULA = "plug-in"  # the formula is a function of a plug-in's
_I3D_LOGITS = ("logits", "Mean:0")
_I3D_MIN_FRAMES = 9  # three strides of 2 in time, then an average over 2 frames


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One entry of protocols.toml; its comments say what the fields mean."""

    metric: str
    id: str
    formula: str
    extractor: str
    layer: str
    sha256: str
    resize: str
    samples: int
    published: bool
    options: Mapping[str, float | int]


@cache
def protocols() -> dict[str, Protocol]:
    """All protocols by metric name."""
    table = tomllib.loads((Path(__file__).parent / "protocols.toml").read_text())
    return {metric: Protocol(metric=metric, **entry) for metric, entry in table.items()}


def protocol(metric: str) -> Protocol:
    """The protocol of a metric.

    Raises:
        ProtocolError: if there is none of that name, or a plug-in's is broken; names the nearest.
    """
    known = protocols()
    if metric in known:
        return known[metric]
    from visgen_bench.metrics import plugins  # which describe themselves by this file's `Protocol`

    found = plugins.find(metric)
    if found is not None:
        return found.protocol
    names = [*known, *plugins.plugin_names()]
    raise ProtocolError(
        f'no image metric "{metric}"{hint(metric, names)} (there are {", ".join(names)}).'
    )


def require_published_weights(metric: str, sha256: str) -> None:
    """Raise ProtocolError if `metric` is a reserved name and the weights are not the published.

    Args:
        metric: A metric name; names that are not reserved pass.
        sha256: Hex hash of the weights that made the features.
    """
    if metric not in RESERVED or metric not in protocols():
        return
    expected = protocols()[metric].sha256
    if sha256 != expected:
        raise ProtocolError(
            f"{metric} is reserved for the network with sha256 {expected}; these features come "
            f"from {sha256}. "
            "Name the number fd_<extractor>, kid_<extractor> or isc_<extractor> instead."
        )


def require_video_protocol(metric: str, frames: int, layer: str) -> None:
    """Raise ProtocolError if `fvd` would be computed from pooled features or from too few frames.

    Args:
        metric: Names other than "fvd" pass.
        frames: Frames of a clip; I3D's strides need 9.
        layer: Layer of the features; FVD is defined on I3D's logits (400), not on its pool (1024).
    """
    if metric != "fvd":
        return
    if layer not in _I3D_LOGITS:
        raise ProtocolError(
            f'fvd is defined on I3D\'s logits, not on layer "{layer}"; name it fvd_<extractor>.'
        )
    if frames < _I3D_MIN_FRAMES:
        raise ProtocolError(
            f"fvd needs clips of at least {_I3D_MIN_FRAMES} frames (I3D halves time three "
            f"times), got {frames}."
        )
