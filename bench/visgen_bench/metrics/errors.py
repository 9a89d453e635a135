"""What can be wrong with features, images and statistics, each by a name of its own.

All are `MetricError`, so a caller that wants "a row that says why there is no number" catches one
name.
"""


class MetricError(ValueError):
    """A metric cannot be computed from what was given; the message says what would help."""


class TooFewSamples(MetricError):
    """Fewer samples than the definition needs."""


class FeatureShapeError(MetricError):
    """Features that are not (n, d), or two sets whose widths differ."""


class NotFiniteError(MetricError):
    """NaN or infinity among the features or in a result."""


class ImageRangeError(MetricError):
    """Images that are not uint8 (n, 3, h, w) in 0..255."""


class ClipShapeError(MetricError):
    """Clips that are not (n, t, 3, h, w), or not of the frames that were expected."""


class FactsMissing(MetricError):
    """A metric of single samples was not given what it compares them with."""


class FrechetError(MetricError):
    """A Frechet distance that is negative beyond rounding: the statistics contradict each other."""


class ProtocolError(MetricError):
    """A number would carry a name that its protocol does not allow."""


class StateError(MetricError):
    """Accumulators that do not fit: other metrics, another reference, indices seen twice."""
