"""A comparison as plain text, Markdown and one JSON document."""

import math
import textwrap
from typing import Any

from visgen_results.compare import Comparison, Pair
from visgen_results.display import Scale, escape_markdown, plain, scale

_LABEL = 34


def to_text(comparison: Comparison, width: int = 100) -> str:
    """One line per pair, at most `width` columns (at least 90); reasons beneath."""
    width = max(width, 90)
    lines = [f"{'':<{_LABEL}}{'A':>12}{'B':>12}{'B/A':>9}  verdict"]
    for pair in comparison.pairs:
        shown = _scale(pair)
        ratio = "-" if pair.ratio is None else f"{pair.ratio:.3f}"
        name = plain(_heading(pair, shown), _LABEL - 1)
        lines.append(
            f"{name:<{_LABEL}}{shown.show(pair.a):>12}{shown.show(pair.b):>12}{ratio:>9}"
            f"  {pair.verdict}"
        )
        because = "; ".join(part for part in (_interval(pair, shown), pair.reason) if part)
        lines += textwrap.wrap(
            plain(f"{pair.label}: {because}"), width, initial_indent="    ",
            subsequent_indent="    ",
        )  # fmt: skip
    for side, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            text = f"only in {side}: " + "; ".join(names)
            lines += ["", *textwrap.wrap(plain(text), width, subsequent_indent="  ")]
    return "\n".join(lines) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """One table; foreign text is escaped."""
    lines = ["| metric | model | A | B | B/A | interval | verdict | why |", "|" + "---|" * 8]
    for pair in comparison.pairs:
        shown = _scale(pair)
        cells = (
            _heading(pair, shown), pair.label, shown.show(pair.a), shown.show(pair.b),
            "-" if pair.ratio is None else f"{pair.ratio:.4f}", _interval(pair, shown) or "none",
            pair.verdict, pair.reason,
        )  # fmt: skip
        lines.append("| " + " | ".join(escape_markdown(cell) for cell in cells) + " |")
    for side, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        lines += [f"\nOnly in {side}: " + escape_markdown("; ".join(names))] if names else []
    return "\n".join(lines) + "\n"


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """One document for JSON with a list under `rows`; NaN becomes null."""
    rows = []
    for pair in comparison.pairs:
        interval = pair.interval
        rows.append(
            {
                **pair.facts,
                "label": pair.label,
                "a": _finite(pair.a),
                "b": _finite(pair.b),
                "ratio": _finite(pair.ratio),
                "difference": _finite(pair.difference),
                "interval_of": pair.of or None,
                "ci_low": None if interval is None else _finite(interval.low),
                "ci_high": None if interval is None else _finite(interval.high),
                "ci_method": None if interval is None else interval.method,
                "p": pair.p,
                "verdict": pair.verdict,
                "reason": pair.reason or None,
                "differs": {name: list(values) for name, values in pair.differs.items()},
            }
        )
    only = {"only_a": list(comparison.only_a), "only_b": list(comparison.only_b)}
    return {"rows": rows, **only}


def _scale(pair: Pair) -> Scale:
    return scale([pair.a, pair.b], pair.metric.unit)


def _heading(pair: Pair, shown: Scale) -> str:
    facts = pair.facts
    parts = [pair.metric.label, "" if facts["stat"] == "value" else facts["stat"]]
    parts.append("" if facts["phase"] in (None, "total") else facts["phase"])
    parts.append(f"b{facts['batch_size']}" if facts["batch_size"] else "")
    unit = f" [{shown.unit}]" if shown.unit else ""
    return " ".join(part for part in parts if part) + unit


def _interval(pair: Pair, shown: Scale) -> str:
    if pair.interval is None:
        return ""
    low, high = pair.interval.low, pair.interval.high
    if pair.of == "ratio":
        return f"B/A in [{low:.4f}, {high:.4f}] ({pair.interval.method})"
    return f"B-A in [{shown.show(low)}, {shown.show(high)}] ({pair.interval.method})"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
