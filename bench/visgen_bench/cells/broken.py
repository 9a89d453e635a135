"""Files of a data set that could not be used: counted, named, never silently dropped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from visgen_bench.cell import spec_name
from visgen_bench.context import Context

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen.data.videos import VideoData

_NAMED = 5  # in a message; the row has the first hundred
_RECORDED = 100


Files = Sequence[tuple[str, str]]


def describe(data: "Data | VideoData") -> str | None:
    """One line with the counts and the first names, or None if there is nothing to say."""
    lines = [_line(data.name, files, said) for _, files, said in _kinds(data) if files]
    return "; ".join(lines) or None


def _kinds(data: "Data | VideoData") -> list[tuple[str, Files, str]]:
    """(metric, files, what is said of them): of clips also those too short or of uneven rate."""
    return [
        ("broken_files", data.broken, "cannot be used"),
        ("short_files", getattr(data, "short", ()), "are shorter than a clip and left out"),
        ("uneven_files", getattr(data, "varying", ()), "have frames that are unevenly far apart"),
    ]


def _line(name: str, files: Files, said: str) -> str:
    named = "; ".join(f"{file} ({reason})" for file, reason in files[:_NAMED])
    more = "; ..." if len(files) > _NAMED else ""
    return f"{name}: {len(files)} files {said}: {named}{more}"


def report(data: "Data | VideoData", context: Context, *, phase: str) -> None:
    """A row for each kind of them that there is; `phase` says whose (`data`, `images`)."""
    for metric, files, said in _kinds(data):
        if not files:
            continue
        text = _line(data.name, files, said)
        context.progress(text)
        recorded = [list(entry) for entry in files[:_RECORDED]]
        options = {"files": recorded, "named": len(recorded)}
        reason = text.replace(data.name, spec_name(data.name), 1)  # rows hold no paths
        count = float(len(files))
        context.metric(metric, count, phase=phase, reason=reason, metric_opts=options)
