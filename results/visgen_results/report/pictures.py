"""Sample grids as data URIs: only PNG files inside the result folder, and not too large."""

import base64
from dataclasses import dataclass
from pathlib import Path

from visgen_results.naming import by_role, is_clips
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
    path: str = ""  # relative to the result folder


def grids(results: Results, dataset: str, names: dict[str, str]) -> list[Picture]:
    """Real images first, then one grid per row of the leaderboard, of its lowest seed.

    Clips are not among them: `films.films` shows those. `names` maps run ids to the labels of the
    leaderboard; runs with no label are not shown.
    """
    shown: dict[str, Picture] = {}
    reference: Picture | None = None
    own = (r for r in results.runs if r["dataset"] == dataset and r["artifacts_path"])
    for run in by_role(r for r in own if r["kind"] == "quality" and not is_clips(r)):
        label = names.get(run["run_id"])
        if label is None:
            continue
        if reference is None or not reference.uri:
            reference = _picture(results.root, run, "reference", f"real images ({dataset})")
        if label not in shown:
            shown[label] = _picture(results.root, run, "samples", label)
    return [*([reference] if reference is not None else []), *shown.values()]


def _picture(root: Path, run: Row, which: str, label: str) -> Picture:
    inside = Path(run["artifacts_path"]) / _FILES[which]
    try:
        return Picture(label, data_uri(root, inside))
    except ValueError as error:
        return Picture(label, "", str(error))


def data_uri(root: Path, inside: Path) -> str:
    """A PNG file below `root` as a data URI.

    Raises `ValueError` as `read_inside`, and if the file is no PNG.
    """
    content = read_inside(root, inside)
    if not content.startswith(_SIGNATURE):
        raise ValueError(f"{inside} is no PNG file")
    return as_uri("image/png", content)


def read_inside(root: Path, inside: Path) -> bytes:
    """The content of a file below `root`.

    Raises `ValueError` if the path leaves `root` (also through a link), if there is no such file or
    if it is larger than 4 MiB.
    """
    path = (root / inside).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{inside} lies outside the result folder")
    if not path.is_file():
        raise ValueError(f"{inside} is not there")
    if path.stat().st_size > LARGEST_PICTURE:
        raise ValueError(f"{inside} is larger than {LARGEST_PICTURE // 2**20} MiB")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{inside} cannot be read: {error.strerror}") from error


def as_uri(kind: str, content: bytes) -> str:
    """Content of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
