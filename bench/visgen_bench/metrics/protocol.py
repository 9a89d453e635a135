"""Which number may carry which name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from visgen.names import hint
from visgen_bench.metrics.errors import ProtocolError

# Names of published measurements, and the weights that alone may produce them.
RESERVED = (
    "fid",
    "kid",
    "isc",
    "fid_frames",
    "fid_clean",  # of the package clean-fid; nothing here computes it
    "fvd",
    "fvd_videogpt",
    "fvd_styleganv",
    "fvd_cdfvd",
    "r_fvd",
    "fvd_star",
    "isc_video",
)
PLUGIN_FORMULA = "plug-in"  # the formula is a function of a plug-in's
PER_SAMPLE_FORMULAS = ("per-sample-mean", "per-sample-share")
PINNED = "pinned on first use"  # instead of a hash that nobody has published
_SHA256 = re.compile("[0-9a-f]{64}")
_I3D_LOGITS = ("logits", "Mean:0")
_I3D_MIN_FRAMES = 9  # three strides of 2 in time, then an average over 2 frames
_C3D_FRAMES = 16

Media = Literal["image", "video", "frame"]
Sides = Literal["samples/real", "reconstructions/real", "samples/reconstructions"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One entry of protocols.toml; its comments say what the fields mean."""

    metric: str
    id: str
    media: Media
    formula: str
    extractor: str
    layer: str
    sha256: str
    resize: str
    samples: int
    published: bool
    options: Mapping[str, float | int | str]
    sides: Sides = "samples/real"

    @property
    def per_sample(self) -> bool:
        """Whether each sample has a number of its own, from its pixels and facts alone."""
        return self.formula in PER_SAMPLE_FORMULAS

    @property
    def of_samples(self) -> bool:
        """Whether it looks at samples; else at reconstructions of real clips alone."""
        return self.sides != "reconstructions/real"

    @property
    def of_reconstructions(self) -> bool:
        """Whether it looks at a tokenizer's reconstructions of real clips."""
        return self.sides != "samples/real"

    @property
    def needs_reference(self) -> bool:
        """Whether statistics of the real samples enter."""
        return self.sides != "samples/reconstructions"


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
        f'no metric "{metric}"{hint(metric, names)} (there are {", ".join(names)}).'
    )


def require_published_weights(metric: str, sha256: str) -> None:
    """Raise ProtocolError if `metric` is a reserved name and the weights are not the published.

    Where nobody has published a hash, the extractor pins the first file that it can use; then a
    hash that belongs to another network, or is none, is refused here.

    Args:
        metric: A metric name; names that are not reserved pass.
        sha256: Hex hash of the weights that made the features.
    """
    if metric not in RESERVED or metric not in protocols():
        return
    expected = protocols()[metric].sha256
    if expected == PINNED:
        others = {entry.sha256 for entry in protocols().values()}
        fits = _SHA256.fullmatch(sha256) is not None and sha256 not in others
    else:
        fits = sha256 == expected
    if not fits:
        raise ProtocolError(
            f"{metric} is reserved for the network with sha256 {expected}; these features come "
            f"from {sha256}. "
            "Name the number fd_<extractor>, kid_<extractor> or isc_<extractor> instead."
        )


def require_video_protocol(metric: str, frames: int, layer: str) -> None:
    """Raise ProtocolError if clips or layer are not what a metric of videos is defined on.

    Args:
        metric: A metric name; those of pictures and of frames pass.
        frames: Frames of a clip; I3D's strides need 9, C3D's layers 16 exactly, a difference of
            frames 2.
        layer: Layer of the features; FVD is defined on I3D's logits (400), not on its pool (1024).
    """
    entry = protocols().get(metric)
    if entry is None or entry.media != "video":
        return
    if entry.extractor.startswith("i3d-"):
        if layer not in _I3D_LOGITS:
            raise ProtocolError(
                f'{metric} is defined on I3D\'s logits, not on layer "{layer}"; name it '
                "fvd_<extractor>."
            )
        if frames < _I3D_MIN_FRAMES:
            raise ProtocolError(
                f"{metric} needs clips of at least {_I3D_MIN_FRAMES} frames (I3D halves time three "
                f"times), got {frames}. fvd_lite0_frames takes shorter ones."
            )
    if entry.extractor == "c3d-ucf101" and frames != _C3D_FRAMES:
        raise ProtocolError(
            f"{metric} needs clips of {_C3D_FRAMES} frames exactly (C3D's first full layer has one "
            f"weight for each place in time), got {frames}."
        )
    if entry.extractor == "efficientnet-lite0-64-clips" and frames < 2:
        raise ProtocolError(
            f"{metric} needs clips of at least 2 frames (it looks at their difference), got "
            f"{frames}. fd_lite0_frames takes single frames."
        )
