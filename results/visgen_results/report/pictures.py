"""Sample grids as data URIs: only PNG files inside the result folder, and not too large."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from visgen_results.naming import role
from visgen_results.naming import untrained as is_untrained
from visgen_results.reading import Results, Row

LARGEST_PICTURE = 4 * 2**20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILES = {"samples": "samples.png", "reference": "reference.png"}


@dataclass(frozen=True)
class Picture:
    """A grid of samples; `uri` is empty where it cannot be shown, and `reason` says why."""

    label: str
    uri: str
    reason: str = ""


def grids(results: Results, dataset: str, names: dict[str, str]) -> list[Picture]:
    """Real images first, then one grid per row of the leaderboard, of its lowest seed.

    `names` maps run ids to the labels of the leaderboard; runs with no label are not shown.
    """
    shown: dict[str, Picture] = {}
    reference: Picture | None = None
    for run in _by_role(r for r in results.runs if r["dataset"] == dataset and r["artifacts_path"]):
        label = names.get(run["run_id"])
        if label is None:
            continue
        if reference is None or not reference.uri:
            reference = _picture(results.root, run, "reference", f"real images ({dataset})")
        if label not in shown:
            shown[label] = _picture(results.root, run, "samples", label)
    return [*([reference] if reference is not None else []), *shown.values()]


def _by_role(runs: Iterable[Row]) -> list[Row]:
    """Trained models, then untrained ones, then references; low seeds first."""

    def order(run: Row) -> tuple[int, str, int]:
        place = 2 if role(run) == "reference" else 1 if is_untrained(run) else 0
        return (place, run["model"] or "", run["seed"] or 0)

    return sorted((run for run in runs if run["kind"] == "quality"), key=order)


def _picture(root: Path, run: Row, which: str, label: str) -> Picture:
    inside = Path(run["artifacts_path"]) / _FILES[which]
    try:
        return Picture(label, data_uri(root, inside))
    except ValueError as error:
        return Picture(label, "", str(error))


def data_uri(root: Path, inside: Path) -> str:
    """A PNG file below `root` as a data URI.

    Raises `ValueError` if the path leaves `root` (also through a link), or is no PNG of at most
    4 MiB.
    """
    path = (root / inside).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{inside} lies outside the result folder")
    if not path.is_file():
        raise ValueError(f"{inside} is not there")
    if path.stat().st_size > LARGEST_PICTURE:
        raise ValueError(f"{inside} is larger than {LARGEST_PICTURE // 2**20} MiB")
    content = path.read_bytes()
    if not content.startswith(_SIGNATURE):
        raise ValueError(f"{inside} is no PNG file")
    return "data:image/png;base64," + base64.b64encode(content).decode()
