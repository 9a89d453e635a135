"""What is written beside numbers: which data, how many, which machine, why one is missing."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from visgen_results.display import plain
from visgen_results.leaderboard import Board, BoardRow, Fault, Leaderboard, Missing
from visgen_results.naming import is_clips
from visgen_results.pivot import Column, Pivot

UNRANKED_NOTE = "Untrained and reference rows are shown for scale and are not ranked."
SHARED_MARK = "†"
SHARED_NOTE = (
    f"{SHARED_MARK} others used the device meanwhile: such a time may be several times too long, "
    "and its rank wrong."
)
RANK_NOTE = "Ranks are the places that the intervals leave open (Holm over all pairs of a table)."
SPEED_NOTE = (
    "Speed ranks rest on intervals within one run each; drift between runs is not in them "
    "(compare interleaved blocks for an A/B claim)."
)


def shared(pivot: Pivot) -> bool:
    """Whether a number of the table was measured while others used the device."""
    return any(cell.shared for row in pivot.rows for cell in row.cells if cell is not None)


def mark(row: BoardRow) -> str:
    """What stands behind a value that was measured while others used the device."""
    return SHARED_MARK if row.shared else ""


def title(pivot: Pivot) -> str:
    """What the table is about: `digits:8, test split, 1000 samples`."""
    facts = pivot.facts
    if pivot.kind == "quality":
        parts = [facts["dataset"] or "no data set"]
        if facts["split"]:
            parts.append(f"{facts['split']} split")
        clips = is_clips(facts)
        if facts["n"] is not None:
            parts.append(f"{facts['n']:,} {'clips' if clips else 'samples'}")
        if clips or facts["condition"]:
            parts.append(f"condition {facts['condition'] or 'none'}")
        return ", ".join(plain(part) for part in parts)
    batch = "" if facts["batch_size"] is None else f", batch {facts['batch_size']}"
    phase = facts["phase"] or "total"
    data = f", {facts['dataset']}" if facts["dataset"] else ""
    asked = f", condition {facts['condition']}" if facts["condition"] else ""
    return plain(f"{phase}{batch}, {facts['dtype'] or 'dtype not recorded'}{data}{asked}")


def setting(pivot: Pivot) -> str:
    """Where the numbers come from: device, threads, versions, resolution, machine id."""
    facts = pivot.facts
    parts = [facts.get("device_name") or facts.get("device_type")]
    if (facts.get("n_devices") or 1) > 1:
        parts.append(f"{facts['n_devices']} devices")
    if facts.get("threads"):
        parts.append(f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}")
    for name in ("torch", "driver"):
        if facts.get(name):
            parts.append(f"{name} {facts[name]}")
    parts += [facts.get("resolution"), facts.get("task")]
    parts.append(f"machine {facts['machine_id'][:8]}" if facts.get("machine_id") else None)
    return plain(", ".join(str(part) for part in parts if part))


def note(column: Column) -> str:
    """What the numbers of one column have in common, and how their intervals were made."""
    board = column.board
    group = board.group
    parts = [direction(board)]
    if board.kind == "quality":
        if group.get("n_ref"):
            parts.append(f"against {group['n_ref']:,} real")
        parts += [group.get("protocol"), group.get("extractor"), floor(column)]
    else:
        parts += [group.get("timing_method"), f"L2 {group['l2']}" if group.get("l2") else None]
    if group.get("predicted"):
        parts.append("predicted by a model, not measured")
    parts.append(intervals(board))
    return plain("; ".join(str(part) for part in parts if part))


def floor(column: Column) -> str:
    """What real clips score at the same counts: `floor 12.3`; empty where nobody asked.

    Where higher is better it is what real clips reach, and no floor. Of pictures the reference's
    row says it.
    """
    row = column.board.floor
    if row is None or not column.board.clips:
        return ""
    name = "floor" if column.board.metric.higher_is_better is False else "real clips"
    return f"{name} {column.scale.show(row.value)}"


def direction(board: Board) -> str:
    """Which way is better."""
    flags = {True: "higher is better", False: "lower is better", None: "neither way is better"}
    return flags[board.metric.higher_is_better]


def intervals(board: Board) -> str:
    """How the intervals of a board were made, and why others have none."""
    made = dict.fromkeys(row.interval.method for row in board.rows if row.interval is not None)
    lacking = dict.fromkeys(row.no_interval for row in board.rows if row.interval is None)
    parts = []
    if made:
        parts.append("95 % interval: " + ", ".join(made))
    if lacking:
        parts.append("no interval: " + ", ".join(lacking))
    return "; ".join(parts)


def collapsed(missing: Sequence[Missing]) -> list[tuple[str, str, str, list[str]]]:
    """(what, status, reason, names) with every reason said once.

    Reasons of one thing that differ in whole numbers alone are one ("30 to 172 samples; p99 needs
    299"), things that are missing for one reason stand together, and so do a row's phases.
    """
    alike: dict[tuple[str, str, str], list[Missing]] = defaultdict(list)
    for entry in missing:
        alike[(entry.what, entry.status, _NUMBER.sub("#", entry.reason))].append(entry)
    whats: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    names: dict[tuple[str, str], dict[tuple[str, str], dict[str, None]]] = defaultdict(dict)
    for (what, status, _), entries in alike.items():
        key = (status, _merged([entry.reason for entry in entries]))
        whats[key][what] = None
        for entry in entries:
            phases = names[key].setdefault((entry.label, entry.dataset), {})
            phases.update({entry.phase: None} if entry.phase else {})
    return [
        (", ".join(whats[key]), *key, [_where(*row, *phases) for row, phases in rows.items()])
        for key, rows in names.items()
    ]


_NUMBER = re.compile(r"(?<![\w.:])\d+(?![\w.:])")


def _merged(reasons: Sequence[str]) -> str:
    """Texts that differ in whole numbers alone, as one with the range of each number."""
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    ranges = iter([sorted({int(number) for number in column}) for column in columns])

    def spelled(_: re.Match[str]) -> str:
        found = next(ranges)
        return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"

    return _NUMBER.sub(spelled, reasons[0])


def faults(found: Sequence[Fault]) -> list[tuple[str, list[str]]]:
    """(what is wrong, names) with equal texts said once."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in found:
        groups[entry.text][_where(entry.label, entry.dataset)] = None
    return [(text, list(names)) for text, names in groups.items()]


def _where(label: str, dataset: str, *phases: str) -> str:
    name = f"{label} {'/'.join(phases)}" if phases else label
    return f"{name} on {dataset}" if dataset else name


def machine_lines(board: Leaderboard) -> list[str]:
    """One line per machine and environment."""
    return [plain(machine_line(row)) for row in board.machines]


def machine_line(row: dict[str, Any]) -> str:
    """Device, cores, memory and versions of one `machines` row."""
    parts = [row["cpu_model"], f"{row['cores']} cores" if row["cores"] else None]
    if row["ram_bytes"]:
        parts.append(f"{row['ram_bytes'] / 2**30:.0f} GiB")
    if row["gpu_name"]:
        parts.append(f"{row['gpu_count'] or 1}x {row['gpu_name']}")
    for name in ("torch", "triton", "cuda", "driver", "python"):
        if row[name] and (name != "cuda" or row["gpu_name"]):
            parts.append(f"{name} {row[name]}")
    parts.append(row["os"])
    return f"machine {row['machine_id'][:8]}: " + ", ".join(str(part) for part in parts if part)
