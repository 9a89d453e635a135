"""From accumulators to numbers with their interval and provenance, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visgen_bench.metrics.copies import CopyReference
from visgen_bench.metrics.digit_share import DigitCounts
from visgen_bench.metrics.errors import MetricError, StateError, TooFewSamples
from visgen_bench.metrics.inception_score import ScoreAccumulator
from visgen_bench.metrics.intervals import student_t, wilson
from visgen_bench.metrics.kernel_distance import block_standard_error, kernel_distance, kid_full
from visgen_bench.metrics.prdc import Prdc, prdc
from visgen_bench.metrics.protocol import PLUGIN_FORMULA, Media, Protocol
from visgen_bench.metrics.reference import LayerStatistics
from visgen_bench.metrics.streams import FeatureStream

_Part = TypeVar("_Part")
_AGAINST: dict[Media, tuple[str, str]] = {
    "image": ("real images", "fd_lite0"),
    "video": ("real clips", "fvd_lite0_frames"),
    "frame": ("real frames", "fd_lite0_frames"),
}
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number of one set of samples, or the reason why there is none.

    Attributes:
        metric: Name as in protocols.toml.
        value: The number, or None.
        stat: What it is of the metric; "value".
        n: Generated samples it rests on.
        n_ref: Real images it rests on; 0 for metrics without a reference.
        ci_low: 95 % interval, or None.
        ci_high: 95 % interval, or None.
        stderr: Standard error, or None.
        ci_method: How the interval was made, or None; `metric_opts["interval"]` then says why there
            is none.
        protocol: Protocol id.
        extractor: Network.
        extractor_sha256: Of its weights as loaded.
        comparable: Whether it may stand beside published numbers.
        metric_version: Raised when the definition changes.
        metric_opts: What defines the number; equal for numbers that may be compared.
        details: What is known of this one number (raw value, solver, standard deviation over
            subsets or splits).
        reason: Why `value` is None.
    """

    metric: str
    value: float | None
    stat: str = "value"
    n: int
    n_ref: int
    ci_low: float | None = None
    ci_high: float | None = None
    stderr: float | None = None
    ci_method: str | None = None
    protocol: str
    extractor: str
    extractor_sha256: str
    comparable: bool
    metric_version: str = "1"
    metric_opts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, float | int | str] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one evaluation has gathered for one metric.

    Attributes:
        indices: Samples seen, ascending.
        samples: Samples expected.
        stream: Features of the metric's layer.
        reference: Real images seen through that layer.
        score: Sums of the Inception Score.
        digits: The judge's counts.
        copied: Samples that are copies.
        copies: The training images.
    """

    indices: NDArray[np.int64]
    samples: int
    stream: FeatureStream | None = None
    reference: LayerStatistics | None = None
    score: ScoreAccumulator | None = None
    digits: DigitCounts | None = None
    copied: int = 0
    copies: CopyReference | None = None
    shared: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number and what belongs to it alone."""

    value: float
    n: int
    n_ref: int = 0
    interval: tuple[float, float] | None = None
    stderr: float | None = None
    method: str | None = None
    no_interval: str | None = None
    details: dict[str, float | int | str] = field(default_factory=dict)


def score(entry: Protocol, evidence: Evidence) -> Score:
    """The number of one metric.

    Raises:
        MetricError: if there is none; the message says why.
    """
    if len(evidence.indices) == 0:
        raise TooFewSamples("no sample was given.")
    return _FORMULAS[entry.formula](entry, evidence)


def _frechet(entry: Protocol, evidence: Evidence) -> Score:
    stream, reference = _features(evidence)
    side = _need(reference.frechet)
    n = len(evidence.indices)
    # A convention of fewer samples than features (VideoGPT: 256 clips, 400 logits) is kept.
    conventional = entry.samples > side.width
    if entry.published and conventional and min(n, side.n) <= side.width:
        real, proxy = _AGAINST[entry.media]
        raise TooFewSamples(
            f"{entry.metric} with {n} samples against {side.n} {real} is mostly bias: a "
            f"covariance of {side.width} features needs more than {side.width} on both sides. "
            f"Give more, or use {proxy}."
        )
    rows = stream.rows(evidence.indices)
    if rows is not None and min(n, side.n) <= side.width:
        result = side.to_features(rows)
    else:
        result = side.to_moments(stream.moments())
    return Score(
        value=result.value,
        n=n,
        n_ref=side.n,
        no_interval="none: a bootstrap of one sample set doubles the bias; repeat over seeds",
        details={
            "raw": result.raw,
            "mean_term": result.mean_term,
            "trace": result.trace,
            "solver": result.solver,
        },
    )


def _kernel_subsets(entry: Protocol, evidence: Evidence) -> Score:
    rows, real = _rows(evidence)
    options = entry.options
    result = kernel_distance(
        rows,
        real,
        subsets=int(options["subsets"]),
        subset_size=int(options["subset_size"]),
        seed=int(options["seed"]),
    )
    return _with_blocks(result.value, rows, real, {"subset_std": result.subset_std or 0.0})


def _kernel_full(entry: Protocol, evidence: Evidence) -> Score:
    rows, real = _rows(evidence, int(entry.options["max_samples"]))
    return _with_blocks(kid_full(rows, real).value, rows, real, {})


def _with_blocks(
    value: float, rows: NDArray[Any], real: NDArray[Any], details: dict[str, float | int | str]
) -> Score:
    try:
        stderr, blocks = block_standard_error(rows, real)
    except TooFewSamples as error:
        return Score(
            value=value, n=len(rows), n_ref=len(real), no_interval=f"none: {error}", details=details
        )
    half = student_t(blocks - 1) * stderr
    return Score(
        value=value,
        n=len(rows),
        n_ref=len(real),
        interval=(value - half, value + half),
        stderr=stderr,
        method="disjoint blocks, t",
        details={**details, "blocks": blocks},
    )


def _inception_score(entry: Protocol, evidence: Evidence) -> Score:
    if len(evidence.indices) != evidence.samples:
        raise TooFewSamples(
            f"{entry.metric} splits all {evidence.samples} samples, only {len(evidence.indices)} "
            "were given."
        )
    result = _need(evidence.score).score()
    return Score(
        value=result.value,
        n=len(evidence.indices),
        no_interval="none: the deviation over splits is no confidence interval",
        details={"split_std": result.split_std},
    )


def _prdc(entry: Protocol, evidence: Evidence) -> Score:
    rows, real = _rows(evidence, int(entry.options["max_samples"]))
    k = int(entry.options["k"])
    result = _prdc_once(rows, real, k, evidence)
    n, m = len(rows), len(real)
    value: float = getattr(result, entry.metric)
    if entry.metric == "density":
        error = result.density_std / n**0.5
        interval = (value - _NORMAL_95 * error, value + _NORMAL_95 * error)
        method = "normal, over samples at fixed reference"
        return Score(value=value, n=n, n_ref=m, interval=interval, stderr=error, method=method)
    return _share(value, n if entry.metric == "precision" else m, n, m)


def _prdc_once(rows: NDArray[Any], real: NDArray[Any], k: int, evidence: Evidence) -> Prdc:
    """All four metrics come from one pass over the distances."""
    known = evidence.shared.get("prdc")
    if not isinstance(known, Prdc):
        reference = _need(evidence.reference)
        known = prdc(real, rows, k, real_radii=reference.radii.get(k))
        evidence.shared["prdc"] = known
    return known


def _class_count(entry: Protocol, evidence: Evidence) -> Score:
    counts = _need(evidence.digits)
    return Score(
        value=float(counts.found(float(entry.options["min_share"]))),
        n=len(evidence.indices),
        no_interval="none: a count of classes",
        details={
            f"share_{c}": int(v) / len(evidence.indices) for c, v in enumerate(counts.classes)
        },
    )


def _confident_share(entry: Protocol, evidence: Evidence) -> Score:
    n = len(evidence.indices)
    return _share(_need(evidence.digits).confident_share(), n, n, 0)


def _copy_share(entry: Protocol, evidence: Evidence) -> Score:
    reference = _need(evidence.copies)
    n = len(evidence.indices)
    found = _share(evidence.copied / n, n, n, len(reference.train))
    details: dict[str, float | int | str] = {"threshold": reference.threshold}
    return Score(**{**vars(found), "details": details})


def _share(value: float, trials: int, n: int, n_ref: int) -> Score:
    return Score(
        value=value,
        n=n,
        n_ref=n_ref,
        interval=wilson(value, trials),
        stderr=(value * (1 - value) / trials) ** 0.5,
        method="wilson",
    )


def _plugin(entry: Protocol, evidence: Evidence) -> Score:
    """Somebody else's formula; whatever it raises is the reason why there is no number."""
    from visgen_bench.metrics import plugins  # which describe their results by this file's `Score`

    rows, real = _rows(evidence)
    plugin = plugins.find(entry.metric)
    if plugin is None or isinstance(plugin.formula, str):
        raise StateError(f"plug-in {entry.metric} is not installed here.")
    try:
        found = plugin.formula(rows, real, entry.options)
        value = found if isinstance(found, Score) else float(found)
    except MetricError:
        raise
    except Exception as error:
        raise MetricError(
            f"plug-in {entry.metric} failed: {type(error).__name__}: {error}"
        ) from error
    if isinstance(value, Score):
        return value
    why = "none: the plug-in gives none"
    return Score(value=value, n=len(rows), n_ref=len(real), no_interval=why)


_FORMULAS: dict[str, Callable[[Protocol, Evidence], Score]] = {
    "frechet": _frechet,
    "kernel-subsets": _kernel_subsets,
    "kernel-full": _kernel_full,
    "inception-score": _inception_score,
    "prdc": _prdc,
    "class-count": _class_count,
    "confident-share": _confident_share,
    "copy-share": _copy_share,
    PLUGIN_FORMULA: _plugin,
}


def _need(part: _Part | None) -> _Part:
    if part is None:
        raise StateError("this evaluation was not set up for the metric.")
    return part


def _features(evidence: Evidence) -> tuple[FeatureStream, LayerStatistics]:
    return _need(evidence.stream), _need(evidence.reference)


def _rows(
    evidence: Evidence, limit: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Feature rows of the first `limit` samples and real images."""
    stream, reference = _features(evidence)
    rows = _need(stream.rows(evidence.indices))
    return rows[:limit], _need(reference.features)[:limit]
