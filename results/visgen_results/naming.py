"""What a row is called: its model, its role, and what sets it apart from others of its table."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]

# What tells rows of one model apart; two values of one seed are never two seeds.
IDENTITY = ("model", "weights", "variant", "dtype", "attention", "compile_mode", "memory_format")


ROLES = ("ranked", "untrained", "reference")
VIDEO_TASK = "video-generation"
CONDITIONS = ("class", "frames", "text", "actions")


def role(row: Row) -> str:
    """`reference`, `untrained` or `ranked`, from what the row says of its model and weights."""
    if "reference" in (row["family"], row["task"]) or row["weights"] == "fit":
        return "reference"
    if row["kind"] != "performance" and untrained(row):
        return "untrained"
    return "ranked"  # speed does not depend on what the weights are


def untrained(row: Row) -> bool:
    """True for a model with the weights it was initialised with."""
    return "untrained" in (row["weights"], row["variant"])


def by_role(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of trained models, then of untrained ones, then of references; low seeds first."""

    def order(run: Row) -> tuple[int, str, int]:
        place = 2 if role(run) == "reference" else 1 if untrained(run) else 0
        return (place, run["model"] or "", run["seed"] or 0)

    return sorted(runs, key=order)


def is_clips(row: Row) -> bool:
    """True if what was measured are clips, not pictures."""
    return row["task"] == VIDEO_TASK or str(row["resolution"] or "").count("x") == 3


def condition(row: Row) -> str | None:
    """What samples were asked for, as in `class+frames:1` (first frames given); None for nothing.

    It stands first in the variant (`text guidance=2.0`); how they were drawn, which follows, is no
    condition: two ways to draw may be compared.
    """
    first = (row["variant"] or "").partition(" ")[0]
    kinds = {kind.partition(":")[0] for kind in first.split("+")}
    return first if first and kinds <= set(CONDITIONS) else None


def label(row: Row, distinguishing: Iterable[str] = ()) -> str:
    """Name of a row: its model, `untrained` where it is, and what sets it apart in its table."""
    return _name(row, role(row), distinguishing)


class Named(Protocol):
    """A row of a board, as far as its name goes."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def role(self) -> str: ...


def label_of(row: Named, distinguishing: Iterable[str]) -> str:
    """As `label`, for a row of a board that is shown in another table."""
    return _name(row.identity, row.role, distinguishing)


def _name(facts: Mapping[str, Any], its_role: str, distinguishing: Iterable[str]) -> str:
    extra = ["untrained"] if its_role == "untrained" else []
    for name in distinguishing:
        value = facts.get(name)
        if value and name != "model" and value not in ("untrained", "none", "contiguous"):
            extra.append(short(value))
    return " ".join([facts["model"] or "(no model)", *extra])


def short(text: str) -> str:
    """Weights without all but the start of a hash."""
    head, colon, rest = str(text).partition(":")
    if colon and len(rest) >= 32 and all(sign in "0123456789abcdef" for sign in rest):
        return f"{head}:{rest[:8]}"
    return str(text)


def distinguishing(
    identities: Sequence[Mapping[str, Any]], everywhere: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """The columns in which rows of one model differ; only these need to be in a label.

    `everywhere`: the rows of all tables. Variants that differ there are named in each table, or
    two folders of one name would be one name in two tables.
    """
    found = []
    for name in IDENTITY[1:]:
        values: dict[str, set[Any]] = defaultdict(set)
        for identity in everywhere if name == "variant" else identities:
            if "untrained" not in (identity[name], identity["weights"]) or name != "weights":
                values[identity["model"]].add(identity[name])
        if any(len(seen) > 1 for seen in values.values()):
            found.append(name)
    return tuple(found)
