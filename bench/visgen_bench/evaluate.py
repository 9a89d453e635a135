"""Scoring anyone's folder of images or of videos, with the floor beside the score.

    rows = evaluate("my_samples/", "digits:8").rows
    rows = evaluate("my_clips/", "moving-digits", clip="16x32x32").rows

The floor is what real samples score as if they were generated, with equally many samples on both
sides: for a shipped set five seeded draws of training images or clips, for a folder one half of it
against the other. Where the user has more samples than a floor can be taken for, a second row
scores as many of them as the floor has, because numbers of different sample counts are never
compared.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgen_bench import media
from visgen_bench.cell import DEFAULT_METRICS
from visgen_bench.plan import Options, Plan, plan
from visgen_bench.running import Summary, run
from visgen_bench.suite import Entry, Suite, SuiteError, from_entries
from visgen_results.rows import to_rows
from visgen_results.store import Store

VIDEO_METRICS = ("fvd_lite0_frames", "fd_lite0_frames")
DIGIT_METRICS = ("digit_classes", "digit_confident", "copy_share")
FLOOR_DRAWS = 5
_NAMED = 5  # files in a message
_CLIP = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of the table `metrics` for one folder, and the run they came from."""

    rows: list[dict[str, Any]]
    summary: Summary

    @property
    def plan(self) -> Plan:
        return self.summary.plan


def evaluate(
    samples: str | Path,
    reference: str,
    metrics: Sequence[str] | None = None,
    *,
    clip: str | None = None,
    options: Options | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score a folder of images or of videos against a data set or another folder.

    Args:
        samples: Folder of pictures of any size, or of videos.
        reference: A data spec (`digits:8`, `moving-digits`, ...) or a folder.
        metrics: Names; by default what suits the reference.
        clip: What is taken of each video, frames x rows x columns (`16x32x32`); None for pictures.
        options: Where results go (default `results/runs/eval`), limits, data root.
        say: Takes one line of progress at a time.

    Raises:
        SuiteError: if a folder, set or metric does not exist, a folder has no usable picture or
            video, `clip` does not fit the reference, or a video of the samples is shorter than it.
    """
    options = options or Options(out=Path("results/runs/eval"))
    suite = suite_of(str(samples), reference, metrics, options, clip=clip)
    summary = run(plan(suite, options), say)
    keys = {cell.cell_key for cell in summary.plan.cells}
    store = Store(options.out)
    newest = {run["run_id"] for run in to_rows(store.latest()) if run["cell_key"] in keys}
    rows = [row for row in to_rows(store.read("metrics")) if row["run_id"] in newest]
    return Evaluation(rows=rows, summary=summary)


def suite_of(
    samples: str,
    reference: str,
    metrics: Sequence[str] | None,
    options: Options,
    *,
    clip: str | None = None,
) -> Suite:
    """The cells of an evaluation: the score, the floor, and the score at the floor's size."""
    data = _data(reference, clip)
    kind = "folder" if clip is None else "videos"
    score: Entry = {
        "kind": "quality",
        "images": f"{kind}:{samples}",
        "data": data,
        "metrics": list(metrics or _default_metrics(data)),
    }
    if clip is not None:
        score["clip"] = clip
        _check_videos(samples)
    own = len(_samples(score, options))
    if options.limit is not None:
        own = min(own, options.limit)
    opened = _opened(data, options, clip)
    if data.startswith(("folder:", "videos:")):
        entries = _against_folder(score, own, len(opened) // 2)
    else:
        entries = _against_set(score, own, len(opened.split("train")))
    return from_entries("eval", entries, "eval")


def _against_set(score: Entry, own: int, train: int) -> list[Entry]:
    n = min(own, train)
    floor: Entry = {key: value for key, value in score.items() if key != "images"}
    model = "real-videos" if "clip" in score else "real-images"
    floor |= {"model": model, "samples": n, "seed": list(range(FLOOR_DRAWS))}
    at_equal_n = [{**score, "samples": n}] if n < own else []
    return [score, *at_equal_n, floor]


def _against_folder(score: Entry, own: int, half: int) -> list[Entry]:
    whole = {**score, "split": "all"}
    n = min(own, half)
    if n < 2:
        return [whole]
    at_equal_n = {**score, "split": "half-b", "samples": n}
    floor = {**at_equal_n, "images": score["data"], "images_split": "half-a"}
    return [whole, at_equal_n, floor]


def _data(reference: str, clip: str | None) -> str:
    """The reference as a data spec. Raises `SuiteError` if it and `clip` do not go together."""
    from visgen.data import UnknownData

    if clip is not None and not _CLIP.fullmatch(clip):
        raise SuiteError(
            f"eval: --clip {clip}: write frames x rows x columns, as in --clip 16x32x32"
        )
    if not _is_spec(reference):
        return f"{'folder' if clip is None else 'videos'}:{reference}"
    try:
        media.check_name(reference)
    except UnknownData as error:
        raise SuiteError(f"eval: {error}") from error
    if clip is None and media.is_video(reference):
        raise SuiteError(
            f"eval: {reference} holds clips, and how many frames of which size to take of each is "
            "not said; add --clip FRAMESxROWSxCOLUMNS, as in --clip 16x32x32"
        )
    if clip is not None and not media.is_video(reference):
        raise SuiteError(
            f"eval: --clip {clip} is about clips, and {reference} holds pictures; leave it out, or "
            "name clips: a set such as moving-digits, videos:PATH or a folder"
        )
    return reference


def _is_spec(reference: str) -> bool:
    """Whether a reference is a data spec; anything that is a folder on disk is that folder."""
    if Path(reference).expanduser().is_dir():
        return False
    return reference.startswith("videos:") or "/" not in reference.partition(":")[0]


def _default_metrics(data: str) -> tuple[str, ...]:
    if media.is_video(data):
        return VIDEO_METRICS
    return DEFAULT_METRICS + (DIGIT_METRICS if data.startswith("digits:") else ())


def _check_videos(samples: str) -> None:
    """Raise `SuiteError` for a folder of pictures where videos are wanted."""
    from visgen.data import DataError
    from visgen.data.video_files import find_videos

    folder = Path(samples).expanduser()
    if folder.is_file():
        return
    try:
        found = find_videos(folder)
    except DataError as error:
        raise SuiteError(f"eval: {error}") from error
    if pictures := found.folders.get("."):
        raise SuiteError(
            f"eval: {samples} is a folder of {len(pictures)} pictures, and with --clip a folder of "
            "videos is wanted: files, or a folder of pictures for each clip. To score pictures, "
            "leave --clip out and name pictures after --against"
        )


def _samples(score: Entry, options: Options) -> Any:
    """The user's samples, opened; a video that is too short is refused, or n would not be theirs.

    Raises:
        SuiteError: names the first of them and says how many there are.
    """
    found = _opened(score["images"], options, score.get("clip"))
    if short := getattr(found, "short", ()):
        frames = score["clip"].partition("x")[0]
        named = "; ".join(f"{file} ({reason})" for file, reason in short[:_NAMED])
        more = "; ..." if len(short) > _NAMED else ""
        files = f"{len(short)} of {len(short) + len(found)} videos"
        raise SuiteError(
            f"eval: {files} in {score['images'].partition(':')[2]} are shorter than the {frames} "
            f"frames asked for: {named}{more}; ask for fewer frames with --clip, or take them out"
        )
    return found


def _opened(spec: str, options: Options, clip: str | None = None) -> Any:
    from visgen.data import DataError, DataMissing, UnknownData, open_data
    from visgen.data.video_opening import open_videos
    from visgen.data.videos import Clip

    where = {"root": options.data_root, "offline": options.offline}
    try:
        if clip is None:
            return open_data(spec, **where)
        frames, rows, columns = map(int, clip.split("x"))
        wanted = Clip(frames=frames, size=(rows, columns), stride=media.STRIDE, policy=media.POLICY)
        return open_videos(spec, wanted, **where)
    except (DataError, DataMissing, UnknownData) as error:
        raise SuiteError(f"eval: {error}{_videos_there(spec, clip)}") from error


def _videos_there(spec: str, clip: str | None) -> str:
    """What to do where a folder without pictures holds videos."""
    from visgen.data import DataError
    from visgen.data.video_files import find_videos

    if clip is not None or not spec.startswith("folder:"):
        return ""
    try:
        found = find_videos(Path(spec.partition(":")[2]).expanduser())
    except DataError:
        return ""
    count = len(found.names) - len(found.folders)
    if not count:
        return ""
    return f" It holds {count} videos: score them with --clip, as in --clip 16x32x32."
