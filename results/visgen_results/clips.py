"""Clips among the results: under which condition, how many, and where their frames lie.

A table of clips holds one condition (`naming.condition`), because what a model was asked for and
given decides its numbers as much as the model does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from visgen_results.naming import IDENTITY, by_role, condition, is_clips, role, short
from visgen_results.reading import Results, Row

FRAME_METRICS = ("fid_frames", "fd_lite0_frames")  # their n counts frames, not clips
SHEET, FILM = "samples.png", "samples.webp"
REAL_SHEET, REAL_FILM = "reference.png", "reference.webp"


@dataclass(frozen=True)
class Clips:
    """What one quality cell left for people to look at; paths are relative to the result folder.

    `n` is how many clips its numbers rest on, None if that is not recorded; `caption` names model,
    weights, condition, sampling, n and seed.
    """

    run: Row
    n: int | None
    caption: str

    @property
    def sheet(self) -> str:
        """Frames from left to right, a clip a row."""
        return f"{self.run['artifacts_path']}/{SHEET}"

    @property
    def real_sheet(self) -> str:
        """The same of the real clips beside them."""
        return f"{self.run['artifacts_path']}/{REAL_SHEET}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {name: self.run[name] for name in ("run_id", "dataset", "split", "resolution")}
        return {**facts, "caption": self.caption, "sheet": self.sheet, "real": self.real_sheet}


def clip_count(row: Mapping[str, Any]) -> int | None:
    """Clips behind a number: its n, or of a number over frames n over the frames of a clip."""
    n, frames = row.get("n"), frames_of(row.get("resolution"))
    if n is None or frames is None or row["metric"] not in FRAME_METRICS:
        return n
    return n // frames


def frames_of(resolution: object) -> int | None:
    """Frames of a clip, from `16x3x32x32`; None for pictures."""
    parts = str(resolution or "").split("x")
    return int(parts[0]) if len(parts) == 4 and parts[0].isdigit() and int(parts[0]) else None


def shown_clips(results: Results) -> tuple[Clips, ...]:
    """The clips of each quality cell; of cells that differ in their seed alone, the lowest one's.

    Trained models first, then untrained ones, then references.
    """
    counts: dict[str, int] = {}
    for row in results.numbers:
        n = clip_count(row) if row["kind"] == "quality" else None
        if n is not None:
            counts[row["run_id"]] = max(n, counts.get(row["run_id"], 0))
    found: dict[tuple[Any, ...], Clips] = {}
    for run in by_role(_of_clips(results.runs)):
        setting = (run["dataset"], run["split"], run["resolution"], run["data_fingerprint"])
        key = (*setting, *(run[name] for name in IDENTITY))
        if key not in found:
            n = counts.get(run["run_id"])
            found[key] = Clips(run, n, caption(run, n))
    return tuple(found.values())


def _of_clips(runs: Iterable[Row]) -> list[Row]:
    return [r for r in runs if r["kind"] == "quality" and is_clips(r) and r["artifacts_path"]]


def caption(run: Row, n: int | None) -> str:
    """Model, weights, condition, sampling, n and seed of a quality cell of clips."""
    parts = [run["model"] or "(no model)"]
    if run["weights"]:
        parts.append(f"weights {short(run['weights'])}")
    folder = run["family"] == "folder" or (not run["weights"] and role(run) == "reference")
    if folder:
        parts.append(f"content {run['variant']}" if run["variant"] else "a folder")
    else:
        asked = condition(run)
        rest = (run["variant"] or "").removeprefix(asked or "").strip()
        parts.append(f"condition {asked or 'none'}")
        parts += [f"sampling {rest}"] if rest and rest != "untrained" else []
    parts.append("n not recorded" if n is None else f"n = {n:,} clips")
    if run["seed"] is not None and not folder:
        parts.append(f"seed {run['seed']}")
    return ", ".join(parts)
