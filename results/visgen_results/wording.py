"""What is written beside numbers: which data, how many, which machine, why one is missing."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from visgen_results.display import plain
from visgen_results.leaderboard import Board, Fault, Leaderboard, Missing
from visgen_results.pivot import Column, Pivot

UNRANKED_NOTE = "Untrained and reference rows are shown for scale and are not ranked."
RANK_NOTE = "Ranks are the places that the intervals leave open (Holm over all pairs of a table)."
SPEED_NOTE = (
    "Speed ranks rest on intervals within one run each; drift between runs is not in them "
    "(compare interleaved blocks for an A/B claim)."
)


def title(pivot: Pivot) -> str:
    """What the table is about: `digits:8, test split, 1000 samples`."""
    facts = pivot.facts
    if pivot.kind == "quality":
        parts = [facts["dataset"] or "no data set"]
        if facts["split"]:
            parts.append(f"{facts['split']} split")
        if facts["n"] is not None:
            parts.append(f"{facts['n']:,} samples")
        return ", ".join(plain(part) for part in parts)
    batch = "" if facts["batch_size"] is None else f", batch {facts['batch_size']}"
    phase = facts["phase"] or "total"
    data = f", {facts['dataset']}" if facts["dataset"] else ""
    return plain(f"{phase}{batch}, {facts['dtype'] or 'dtype not recorded'}{data}")


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
        parts += [group.get("protocol"), group.get("extractor")]
    else:
        parts += [group.get("timing_method"), f"L2 {group['l2']}" if group.get("l2") else None]
    if group.get("predicted"):
        parts.append("predicted by a model, not measured")
    parts.append(intervals(board))
    return plain("; ".join(str(part) for part in parts if part))


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
    """(what, status, reason, names) with equal reasons said once."""
    groups: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for entry in missing:
        groups[(entry.what, entry.status, entry.reason)][_where(entry)] = None
    return [(*key, list(names)) for key, names in groups.items()]


def faults(found: Sequence[Fault]) -> list[tuple[str, list[str]]]:
    """(what is wrong, names) with equal texts said once."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in found:
        groups[entry.text][_where(entry)] = None
    return [(text, list(names)) for text, names in groups.items()]


def _where(entry: Missing | Fault) -> str:
    return f"{entry.label} on {entry.dataset}" if entry.dataset else entry.label


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
