"""How numbers and foreign text are shown: one unit a column, four figures, nothing unprintable."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from visgen_results.statistics import Interval

_STEPS: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "FLOP": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")),
    "J": ((1.0, "J"), (1e-3, "mJ")),
}


@dataclass(frozen=True)
class Scale:
    """The unit in which a column is shown: stored value / factor."""

    factor: float
    unit: str

    def show(self, value: float) -> str:
        """The value in this unit, four significant figures."""
        return figures(value / self.factor)

    def show_interval(self, interval: Interval) -> str:
        """`±x` where the interval is symmetric, else `[low, high]`."""
        up, down = interval.high - interval.value, interval.value - interval.low
        if math.isfinite(up) and math.isclose(up, down, rel_tol=0.01) and up >= 0:
            return f"±{figures(up / self.factor, 2)}"
        return f"[{self.show(interval.low)}, {self.show(interval.high)}]"


def scale(values: Iterable[float], unit: str) -> Scale:
    """The largest unit in which the column's smallest magnitude is at least 1."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    for factor, name in _STEPS.get(unit, ()):
        if sizes and min(sizes) >= factor:
            return Scale(factor, name)
    steps = _STEPS.get(unit)
    if steps is None:
        return Scale(1.0, "" if unit == "1" else unit)
    return Scale(*steps[-1]) if sizes else Scale(1.0, unit)


def figures(value: float, digits: int = 4) -> str:
    """A number with `digits` significant figures, without exponent between 1e-4 and 1e7."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def plain(text: object, limit: int | None = None) -> str:
    """Text on one line, with control characters (terminal escapes too) made visible."""
    shown = "".join(sign if sign.isprintable() else _visible(sign) for sign in str(text))
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def _visible(sign: str) -> str:
    return " " if sign in "\n\r\t" else f"\\x{ord(sign):02x}"


def rank(place: tuple[int, int] | None) -> str:
    """`2`, `1-3`, or a dash for what is not ranked."""
    if place is None:
        return "-"
    return str(place[0]) if place[0] == place[1] else f"{place[0]}-{place[1]}"


_MARKDOWN_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {s: f"\\{s}" for s in "\\`*_[]|#"}


def escape_markdown(text: object) -> str:
    """Foreign text that Markdown shows as it is."""
    return "".join(_MARKDOWN_SIGNS.get(sign, sign) for sign in plain(text))
