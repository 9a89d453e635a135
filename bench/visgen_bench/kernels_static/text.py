"""Findings on a terminal: a table a target, or all that is known of a user's kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from visgen_bench.kernels_static.examine import Finding
from visgen_bench.kernels_static.request import OwnTask, Task
from visgen_kernels.roofline import devices, devices_of
from visgen_kernels.static.analysis import Analysis, Prediction
from visgen_kernels.static.report import LoopCost
from visgen_kernels.static.targets import TARGETS

_HEADS = (
    "layer", "kernel", "tile", "regs", "spill", "KiB", "blocks", "instr", "exp", "work", "wide",
    "floor", "by", "model", "x floor",
)  # fmt: skip
_LEFT = {"layer", "kernel", "tile", "by"}
LEGEND = (
    "regs: registers of a thread; spill: bytes of local memory; KiB: shared memory of a block; "
    "blocks: resident (r registers, s shared memory, t tensor memory, w warps, b blocks limit); "
    "instr, exp: instructions, exponentials for each score in the loop over whole tiles; work: "
    "matrix FLOPs executed over needed; wide: of the loaded bytes of q, k, v and the like, the "
    "share in loads as wide as their strides allow; floor: microseconds of the binding limit; "
    "model: predicted microseconds, nothing was run."
)


def layer_lines(findings: Sequence[Finding]) -> list[str]:
    """Tables of the package's kernels, one a target; the first device of a target stands in it."""
    lines: list[str] = []
    for target, own in groupby(findings, key=lambda one: one.task.target):
        device = devices_of(target)[0]
        members = list(own)
        rows = [_HEADS, *(_cells(one, one.analysis) for one in members if one.analysis)]
        lines += [f"{target}, floors and model of {device.name}", *_aligned(rows)]
        lines += [
            f"failed: {_layer(one)} {one.kernel}: {(one.error or 'no reason').splitlines()[0]}"
            for one in members
            if one.analysis is None
        ]
        lines.append("")
    return [*lines, LEGEND]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if head in _LEFT else cell.rjust(width)
            for cell, width, head in zip(row, widths, _HEADS, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _layer(finding: Finding) -> str:
    return finding.task.shape if isinstance(finding.task, Task) else ""


def _cells(finding: Finding, analysis: Analysis) -> list[str]:
    found, loop = analysis.report, analysis.report.interior
    compiled, limiter = found.compiled, found.occupancy.limiter[0]
    wide = found.whole.counts.wide_share(analysis.facts.widest)
    one = analysis.predictions[0]
    return [
        _layer(finding),
        finding.kernel,
        tile_text(finding.tile),
        str(compiled.registers),
        str(compiled.stack),
        f"{compiled.shared / 1024:.1f}{'' if compiled.fits else '!'}",
        f"{found.occupancy.blocks}{limiter}",
        _number(loop.instructions, 2),
        _number(loop.exponentials, 2),
        _number(loop.mma_ratio, 2),
        "-" if wide is None else f"{wide:.0%}",
        *_time_cells(one),
    ]


def _time_cells(one: Prediction) -> list[str]:
    floor = None if one.floor is None else one.floor.time
    ratio = one.seconds / floor if floor and one.seconds else None
    by = "" if one.floor is None else one.floor.binding
    return [_micro(floor), by, _micro(one.seconds), _number(ratio, 1)]


def tile_text(tile: dict[str, int]) -> str:
    """`64x64/32 w4 s2` (masked tiles in pieces of 32), or `4 blocks of 16`."""
    if "blocks" in tile:
        text = f"{tile['blocks']} of {tile['block']}"
    else:
        rows = [str(value) for name, value in tile.items() if name.startswith("block")]
        text = "x".join(rows)
        piece = tile.get("masked_n")
        text += f"/{piece}" if piece not in (None, tile.get("block_n")) else ""
    narrow = " n16" if tile.get("matrix_instr_nonkdim") == 16 else ""
    return f"{text} w{tile.get('warps')} s{tile.get('stages')}{narrow}".strip()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.1f}"


def own_lines(findings: Sequence[Finding]) -> list[str]:
    """Everything that is known of a user's kernel on every target."""
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.kernel} for {finding.task.target}")
        if finding.analysis is None:
            lines += [f"  failed: {finding.error}", ""]
            continue
        lines += [f"  {name}: {value}" for name, value in _facts(finding.analysis, finding.task)]
        lines.append("")
    return lines


def _facts(analysis: Analysis, task: Task | OwnTask) -> list[tuple[str, str]]:
    found, counts = analysis.report, analysis.report.whole.counts
    compiled, occupancy, target = found.compiled, found.occupancy, TARGETS[analysis.target]
    spilled = "" if compiled.spilled is None else f", {compiled.spilled} registers spilled"
    rows = [
        ("warps", f"{compiled.warps} a block"),
        ("registers", f"{compiled.registers} a thread"),
        ("spills", f"{compiled.stack} bytes of local memory, {counts.local} accesses{spilled}"),
        (
            "shared memory",
            f"{compiled.shared} of {target.shared_limit} bytes a block"
            + ("" if compiled.fits else "; DOES NOT FIT"),
        ),
        (
            "occupancy",
            f"{occupancy.blocks} blocks, {occupancy.warps / target.warps:.0%} of the warps; "
            f"{occupancy.limiter} is the limit",
        ),
        ("instructions", f"{counts.total}: {_pipes(counts.pipes)}"),
        ("matrix", ", ".join(f"{n} {name}" for name, n in counts.matrix.items()) or "none"),
        ("exponentials", str(counts.exponentials)),
        ("loads", _moved_text(analysis, stores=False)),
        ("stores", _moved_text(analysis, stores=True)),
        ("bulk copies, atomics", f"{counts.bulk}, {counts.atomics}"),
    ]
    for place, loop in enumerate(found.loops):
        rows.append((f"main loop {place + 1}", _loop_text(loop)))
    rows += [
        (f"not read ({name})", reason)
        for name, reason in found.unread.items()
        if not name.startswith("wide_share")
    ]
    rows += [(devices()[one.device].name, _device_text(one)) for one in analysis.predictions]
    return rows


def _moved_text(analysis: Analysis, *, stores: bool) -> str:
    """Loads or stores of global memory by pointer and width, and how many bytes are wide."""
    found, facts = analysis.report, analysis.facts
    counts = found.whole.counts
    moved = counts.stores if stores else counts.loads
    names = "all pointers" if facts.tensors is None else ", ".join(sorted(facts.tensors))
    parts = [
        f"{through}: " + ", ".join(f"{one.count} x {one.width} bytes" for one in accesses)
        for through, accesses in (
            (names, moved.tensors),
            ("others", moved.others),
            ("unattributed", moved.unattributed),
        )
        if accesses
    ]
    wide = counts.wide_share(facts.widest, stores=stores)
    reason = found.unread.get("wide_share/stores" if stores else "wide_share", "")
    share = reason if wide is None else f"{wide:.0%} of the bytes of {names} wide"
    return "; ".join([*parts, share])


def _loop_text(loop: LoopCost) -> str:
    text = f"{loop.counts.total} instructions: {_pipes(loop.pipes)}"
    for name, value in (
        ("a score", loop.instructions),
        ("exponentials a score", loop.exponentials),
        ("of the matrix work needed", loop.mma_ratio),
    ):
        text += "" if value is None else f"; {value:.2f} {name}"
    return text


def _pipes(pipes: object) -> str:
    counted = dict(pipes) if isinstance(pipes, dict) else {}
    return ", ".join(f"{n} {name}" for name, n in sorted(counted.items(), key=lambda x: -x[1]))


def _device_text(one: Prediction) -> str:
    """The issue model's cycles, and the model's time where it has one."""
    text = ""
    if one.cycles is not None:
        pipes = ", ".join(f"{name} {n:.0f}" for name, n in one.cycles.pipes.items() if n)
        text = f"model, cycles of one pass: {one.cycles.of(one.resident):.0f} ({pipes})"
    if one.launched is not None:
        text += f"; {one.launched.waves:.2f} waves, {one.launched.tail:.0%} of places empty"
    if one.seconds is not None:
        return f"{text}; predicted {one.seconds * 1e6:,.1f} us (nothing was run)"
    return f"{text}; no time: {one.reason}" if one.reason else text
