"""Files of a data set that could not be used: counted, named, never silently dropped."""

from typing import TYPE_CHECKING

from visgen_bench.cell import spec_name
from visgen_bench.context import Context

if TYPE_CHECKING:
    from visgen.data import Data

_NAMED = 5  # in a message; the row has the first hundred
_RECORDED = 100


def describe(data: "Data") -> str | None:
    """One line with the count and the first names, or None if every file was used."""
    if not data.broken:
        return None
    named = "; ".join(f"{file} ({reason})" for file, reason in data.broken[:_NAMED])
    more = "; ..." if len(data.broken) > _NAMED else ""
    return f"{data.name}: {len(data.broken)} files cannot be used: {named}{more}"


def report(data: "Data", context: Context, *, phase: str) -> None:
    """A row `broken_files` if there are any; `phase` says whose they are (`data`, `images`)."""
    text = describe(data)
    if text is None:
        return
    context.progress(text)
    files = [list(entry) for entry in data.broken[:_RECORDED]]
    options = {"files": files, "named": len(files)}
    reason = text.replace(data.name, spec_name(data.name), 1)  # rows hold no paths
    count = float(len(data.broken))
    context.metric("broken_files", count, phase=phase, reason=reason, metric_opts=options)
