"""Numbers that each clip has for itself, and their mean over clips with an interval.

A metric is a function (clips, facts) -> float32 rows (n, w): one row for each clip, one column for
each frame, for each pair of successive frames, or a single one. NaN stands where a column has no
meaning. The value is the mean over samples of the mean over columns. To add one: an entry in
protocols.toml (formula "per-sample-mean", or "per-sample-share" for rows of 0 and 1) and a function
in the table that `VideoEvaluation(per_sample=...)` is given; a `MetricError` that the function
raises becomes the reason why there is no number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visgen.conditions import Condition
from visgen_bench.extractors.images import check_clips
from visgen_bench.metrics.errors import ClipShapeError, FactsMissing, NotFiniteError, TooFewSamples
from visgen_bench.metrics.intervals import student_t, wilson
from visgen_bench.metrics.protocol import Protocol
from visgen_bench.metrics.scoring import Score

DATA_RANGE = 255.0
CAP_DB = 100.0  # stands for the infinite PSNR of identical frames; option `cap` of the protocol
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
_FREEDOM = 9  # fewest degrees of freedom of a t interval (`intervals.student_t`)

Rows = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleFacts:
    """What is known of a batch of n samples beside their pixels; None where nothing is.

    Attributes:
        real: The real clips that the samples stand beside, uint8 (n, t, 3, h, w).
        reconstruction: What a tokenizer makes of `real`, uint8 (n, t, 3, h, w).
        condition: What the model was asked for.
        context: How many first frames the model was given.
        again: A second draw under the same condition, uint8 (n, t, 3, h, w).
    """

    real: Tensor | None = None
    reconstruction: Tensor | None = None
    condition: Condition | None = None
    context: int = 0
    again: Tensor | None = None

    def check(self, clips: Tensor) -> None:
        """See that every clip here is one of the same kind as the samples.

        Raises:
            ImageRangeError: as `check_clips`.
            ClipShapeError: as `check_clips`, and where a shape or the context does not fit.
        """
        for name in ("real", "reconstruction", "again"):
            own: Tensor | None = getattr(self, name)
            if own is not None and check_clips(own).shape != clips.shape:
                raise ClipShapeError(
                    f"facts.{name} has shape {tuple(own.shape)}, the samples {tuple(clips.shape)}; "
                    "give one clip for each sample, of the same frames and size."
                )
        if not 0 <= self.context < clips.shape[1]:
            raise ClipShapeError(
                f"facts.context={self.context} leaves no predicted frame of {clips.shape[1]}; it "
                f"is 0..{clips.shape[1] - 1}."
            )

    def on(self, device: torch.device) -> SampleFacts:
        """The same facts with their clips on a device; the condition stays where it is."""

        def moved(clips: Tensor | None) -> Tensor | None:
            return None if clips is None else clips.to(device)

        return replace(
            self,
            real=moved(self.real),
            reconstruction=moved(self.reconstruction),
            again=moved(self.again),
        )


PerSample = Callable[[Tensor, SampleFacts], Tensor]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal to noise ratio of each frame, dB; higher is better.

        PSNR = 10 log10( 255^2 / mean (a - b)^2 )        over channels and pixels of one frame

    a, b: uint8 (n, t, 3, h, w), 0..255 -> float64 (n, t), +inf where frames are identical.
    """
    error = _difference(a, b).square().mean(dim=(2, 3, 4), dtype=torch.float64)
    return 10.0 * torch.log10(DATA_RANGE**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004); 1 for identical frames, at most.

        SSIM = (2 ma mb + C1)(2 cab + C2) / ((ma^2 + mb^2 + C1)(va + vb + C2)),  Ci = (255 Ki)^2

    Moments under a Gaussian window 11 x 11, sigma 1.5, population covariance; only windows that lie
    inside the frame; mean over windows and the three channels.

    a, b: uint8 (n, t, 3, h, w), 0..255 -> float64 (n, t).

    Raises:
        ClipShapeError: if a side is shorter than the window.
    """
    if min(a.shape[-2:]) < _WINDOW:
        raise ClipShapeError(
            f"ssim looks through a window of {_WINDOW} x {_WINDOW} pixels, frames have "
            f"{a.shape[-2]} x {a.shape[-1]}; use psnr for frames this small."
        )
    pairs = zip(a.flatten(0, 1).split(32), b.flatten(0, 1).split(32), strict=True)
    return torch.cat([_ssim(x.double(), y.double()) for x, y in pairs]).unflatten(0, a.shape[:2])


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Exact, in int32: half of what float64 would take."""
    return a.int() - b.int()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    c1, c2 = (DATA_RANGE * _K1) ** 2, (DATA_RANGE * _K2) ** 2
    mean_x, mean_y = _windows(x), _windows(y)
    var_x = _windows(x * x) - mean_x * mean_x
    var_y = _windows(y * y) - mean_y * mean_y
    covariance = _windows(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3))


def _windows(x: Tensor) -> Tensor:
    """Gaussian means of (n, 3, h, w) at every place where the window fits."""
    at = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-at.square() / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).expand(3, 1, _WINDOW)
    rows = F.conv2d(x, weights[..., None], groups=3)
    return F.conv2d(rows, weights[:, :, None], groups=3)


def psnr_of_samples(clips: Tensor, facts: SampleFacts) -> Tensor:
    """PSNR of predicted frames against the real ones: float32 (n, t), NaN in the context."""
    return _predicted(psnr(clips, _given(facts.real, "real")), facts)


def ssim_of_samples(clips: Tensor, facts: SampleFacts) -> Tensor:
    """SSIM of predicted frames against the real ones: float32 (n, t), NaN in the context."""
    return _predicted(ssim(clips, _given(facts.real, "real")), facts)


def psnr_of_reconstructions(clips: Tensor, facts: SampleFacts) -> Tensor:
    """PSNR of a tokenizer's reconstructions against the real clips: float32 (n, t)."""
    reconstruction = _given(facts.reconstruction, "reconstruction")
    return psnr(reconstruction, _given(facts.real, "real")).float()


def ssim_of_reconstructions(clips: Tensor, facts: SampleFacts) -> Tensor:
    """SSIM of a tokenizer's reconstructions against the real clips: float32 (n, t)."""
    reconstruction = _given(facts.reconstruction, "reconstruction")
    return ssim(reconstruction, _given(facts.real, "real")).float()


def diversity(clips: Tensor, facts: SampleFacts) -> Tensor:
    """Mean |sample - second draw| of each predicted frame, 0..255: float32 (n, t)."""
    again = _given(facts.again, "again")
    size = _difference(clips, again).abs().mean(dim=(2, 3, 4), dtype=torch.float64)
    return _predicted(size, facts)


def flicker(clips: Tensor, facts: SampleFacts) -> Tensor:
    """Mean |frame - next frame| of each pair of frames, 0..255: float32 (n, t - 1)."""
    if clips.shape[1] < 2:
        raise ClipShapeError("flicker compares successive frames; clips have 1.")
    size = _difference(clips[:, 1:], clips[:, :-1]).abs()
    return size.mean(dim=(2, 3, 4), dtype=torch.float64).float()


PER_SAMPLE: dict[str, PerSample] = {
    "psnr": psnr_of_samples,
    "ssim": ssim_of_samples,
    "psnr_reconstruction": psnr_of_reconstructions,
    "ssim_reconstruction": ssim_of_reconstructions,
    "diversity": diversity,
    "flicker": flicker,
}


def _given(fact: Tensor | None, name: str) -> Tensor:
    if fact is None:
        raise FactsMissing(f"no facts.{name} came with the samples ({_MEANING[name]}).")
    return fact


_MEANING = {
    "real": "the real clips they are compared with",
    "reconstruction": "a tokenizer's reconstructions of the real clips",
    "again": "a second draw under the same condition",
}


def _predicted(rows: Tensor, facts: SampleFacts) -> Tensor:
    rows = rows.float()
    rows[:, : facts.context] = float("nan")
    return rows


class RowStore:
    """The rows of one metric by sample index; they take memory from the first batch on.

    Args:
        entry: The metric's protocol.
        function: Makes rows.
        samples: How many indices there are.
    """

    def __init__(self, entry: Protocol, function: PerSample, samples: int) -> None:
        self.entry = entry
        self.function = function
        self.samples = samples
        self.rows: Rows = np.full((0, 0), np.nan, np.float32)  # (samples, w) once there are any
        self.reason: str | None = None

    def made(self, clips: Tensor, facts: SampleFacts) -> Rows:
        """Rows of a batch, (n, w); nothing is stored.

        Raises:
            MetricError: if the function gives none; says why.
            ClipShapeError: if it gives rows of another number or width than before.
        """
        rows = self.function(clips, facts).detach().cpu().numpy().astype(np.float32, copy=False)
        width = self.rows.shape[1] if len(self.rows) else None
        if rows.ndim != 2 or len(rows) != len(clips) or width not in (None, rows.shape[1]):
            raise ClipShapeError(
                f"{self.entry.metric} gave rows of shape {rows.shape} for {len(clips)} clips; it "
                f"must be ({len(clips)}, {width or 'w'}), the same width in every batch."
            )
        return rows

    def put(self, indices: NDArray[np.int64], rows: Rows) -> None:
        """Store what `made` gave for the samples `indices`."""
        if not len(self.rows):
            self.rows = np.full((self.samples, rows.shape[1]), np.nan, np.float32)
        self.rows[indices] = rows

    def merge(self, other: RowStore, indices: NDArray[np.int64]) -> None:
        """Take the rows of the samples `indices` from another rank's."""
        self.reason = self.reason or other.reason
        if len(other.rows) and len(indices):
            self.put(indices, other.rows[indices])

    def capped(self) -> tuple[NDArray[np.float64], int]:
        """Rows float64 (samples, w) with +inf replaced by the option `cap`, and how many were.

        Raises:
            NotFiniteError: if there is an infinity and no cap.
        """
        rows = self.rows.astype(np.float64)
        endless = np.isinf(rows)
        if endless.any():
            if "cap" not in self.entry.options or bool((rows[endless] < 0).any()):
                raise NotFiniteError(
                    f"{self.entry.metric} is infinite for {int(endless.sum())} values; its "
                    "protocol has no cap for them."
                )
            rows[endless] = float(self.entry.options["cap"])
        return rows, int(endless.sum())

    def score(self) -> Score:
        """Mean over samples with its interval: Student's t, or Wilson's for shares.

        Raises:
            TooFewSamples: if no sample has a value.
            NotFiniteError: as `capped`.
        """
        rows, endless = self.capped()
        known = ~np.isnan(rows)
        has = known.any(axis=1)
        n = int(has.sum())
        if n == 0:
            raise TooFewSamples(f"{self.entry.metric} has no value for any sample.")
        own = np.where(known, rows, 0.0)[has].sum(axis=1) / known[has].sum(axis=1)
        value = float(own.mean())
        details: dict[str, float | int | str] = {"columns": int(known.any(axis=0).sum())}
        if "cap" in self.entry.options:
            details["identical_frames"] = endless
        if self.entry.formula == "per-sample-share":
            return Score(
                value=value,
                n=n,
                interval=wilson(value, n),
                stderr=(value * (1 - value) / n) ** 0.5,
                method="wilson",
                details=details,
            )
        if n <= _FREEDOM:
            why = f"none: {n} samples, an interval needs {_FREEDOM + 1}"
            return Score(value=value, n=n, no_interval=why, details=details)
        error = float(own.std(ddof=1)) / n**0.5
        half = student_t(n - 1) * error
        return Score(
            value=value,
            n=n,
            interval=(value - half, value + half),
            stderr=error,
            method="mean over samples, t",
            details=details,
        )

    def curve(self) -> list[float]:
        """Mean over samples of each column; NaN where no sample has a value."""
        if not len(self.rows):
            return []
        rows, _ = self.capped()
        known = ~np.isnan(rows)
        sums, counts = np.where(known, rows, 0.0).sum(axis=0), known.sum(axis=0)
        return [float(s / c) if c else float("nan") for s, c in zip(sums, counts, strict=True)]


def stores(
    entries: list[Protocol], samples: int, table: Mapping[str, PerSample]
) -> dict[str, RowStore]:
    """A store for each per-sample metric, by name.

    Raises:
        FactsMissing: if the table has no function for one.
    """
    found = {}
    for entry in entries:
        if entry.metric not in table:
            raise FactsMissing(
                f"no function makes rows of {entry.metric}; there are {', '.join(table)}. Give "
                'VideoEvaluation per_sample={**PER_SAMPLE, "' + entry.metric + '": function}.'
            )
        found[entry.metric] = RowStore(entry, table[entry.metric], samples)
    return found
