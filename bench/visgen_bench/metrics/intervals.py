"""Closed-form 95 % intervals, each with the assumption it rests on."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # standard normal, 97.5 %


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of a share of independent trials: (low, high), inside 0..1.

    Unlike share +- 1.96 sd it is sound at shares of 0 and 1.
    """
    scale = 1.0 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    # At 0 and 1 the bound is the share itself, but for rounding.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t by Fisher's expansion; errs by < 1e-3 from 9 degrees.

    Raises:
        ValueError: below 9 degrees of freedom, where the expansion is poor.
    """
    if freedom < 9:
        raise ValueError(f"student_t has {freedom} degrees of freedom; the expansion needs 9.")
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
