"""Whether a cell is about pictures or clips, and its data set opened as such."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgen.names import hint
from visgen_bench.cell import Cell, CellBase

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen.data.videos import Clip, VideoData

    AnyData = Data | VideoData

VIDEO_TASK = "video-generation"
STRIDE, POLICY = 1, "first"


def is_video(spec: str) -> bool:
    """Whether a data spec names clips; `videos:PATH` and the video sets do, plug-ins included."""
    from visgen.data import opening, video_opening

    kind = spec.partition(":")[0]
    if kind in _kinds(video_opening.SPECS):
        return True
    if kind in _kinds(opening.SPECS):
        return False  # plug-ins are looked for only where our own sets end: that takes a while
    return kind in _kinds(video_opening.video_names())


def _kinds(specs: Iterable[str]) -> set[str]:
    return {spec.partition(":")[0] for spec in specs}


def has_clips(cell: Cell, config: Any) -> bool:
    """Whether a cell's samples are clips: its model's task says so, or its data does."""
    if config is not None:
        return getattr(config, "task", "") == VIDEO_TASK
    return cell.data is not None and is_video(cell.data)


def check_name(spec: str) -> None:
    """Raise UnknownData, with the nearest match, if no set has this name; opens nothing."""
    from visgen.data import UnknownData
    from visgen.data.opening import check_name as check_image_name
    from visgen.data.video_opening import check_video_name, video_names

    if is_video(spec):
        check_video_name(spec)
        return
    try:
        check_image_name(spec)
    except UnknownData as error:
        names = video_names()
        clips = f"sets of clips are {', '.join(names)}"
        raise UnknownData(f"{error} With clips{hint(spec, names)}: {clips}.") from error


def clip_of(cell: CellBase, config: Any) -> "Clip":
    """What is taken of each video: the cell's own clip, or the model's.

    A sampling choice `frames` makes longer clips of the model's size; they are compared with real
    clips that are as long.

    Raises:
        ValueError: if neither says a size, or they differ.
    """
    from visgen.data.videos import Clip

    own = None if cell.clip is None else tuple(map(int, cell.clip.split("x")))
    models = getattr(config, "clip_size", None)
    size = own or models
    if size is None:
        raise ValueError('clip is missing; write frames x rows x columns, as in clip = "16x32x32"')
    if own is not None and models is not None and own != tuple(models):
        fits = "x".join(map(str, models))
        raise ValueError(f'clip = "{cell.clip}": {cell.model} makes clips of {fits}; leave it out')
    frames, rows, columns = size
    frames = int((getattr(cell, "sampling", None) or {}).get("frames") or frames)
    return Clip(
        frames=frames,
        size=(rows, columns),
        stride=cell.stride or STRIDE,
        policy=cell.policy or POLICY,
    )


def open_set(
    spec: str, cell: CellBase, config: Any, *, root: Path | None, offline: bool
) -> "AnyData":
    """The set that `spec` names, opened for the cell.

    Raises:
        UnknownData, DataMissing, DataError: as `visgen.data.open_data`.
        ValueError: as `clip_of`.
    """
    if not is_video(spec):
        from visgen.data import open_data

        return open_data(spec, root=root, offline=offline)
    from visgen.data.video_opening import open_videos

    return open_videos(spec, clip_of(cell, config), root=root, offline=offline)
