"""From the text in a suite to an opened video set."""

from pathlib import Path

from visgen.data.archives import default_root
from visgen.data.dataset import DataError, DataMissing
from visgen.data.plugins import check_known, known_names, open_plugin
from visgen.data.videos import Clip, VideoData

GROUP = "visgen.videos"
SPECS = (
    "videos:PATH",
    "bair",
    "ucf101",
    *(f"ucf101:{fold}" for fold in (1, 2, 3)),
    "moving-digits",
    "moving-digits:1",
    "moving-shapes",
    "grid-agent",
    "camera-moves",
)
_HDF5 = (".h5", ".hdf5")


def video_names() -> list[str]:
    """What `open_videos` takes: our own sets, then the plug-ins (none of them is loaded)."""
    return known_names(SPECS, GROUP)


def check_video_name(spec: str) -> None:
    """Raise UnknownData, with the nearest match, if no set has this name; opens nothing."""
    check_known(spec, SPECS, GROUP, what="video data", path_kind="videos", is_path=Path.exists)


def open_videos(
    spec: str, clip: Clip, *, root: Path | None = None, offline: bool = False
) -> VideoData:
    """Open the video set that `spec` names, for one kind of clip.

    `videos:PATH` is any folder of videos, one file of them, or one HDF5 file. `bair` (`bair.hdf5`)
    and `ucf101` (`UCF-101`, `ucfTrainTestlist`; `ucf101:2` is its second fold) lie below `root`
    (default: the user's cache, `archives.py`); nobody may hand them out, so they are never
    downloaded. `moving-digits` (two of them; `moving-digits:1`), `moving-shapes`, `grid-agent` and
    `camera-moves` are drawn. `NAME` or `NAME:REST` may be a plug-in's: an entry point NAME of the
    group `visgen.videos`, a function with this signature.

    Raises:
        UnknownData: no set of that name; the nearest match and the list are in the message.
        DataMissing: the set is not on this machine; path and what to do are in the message.
        DataError: the set is there but cannot be used.
    """
    check_video_name(spec)
    kind, _, rest = spec.partition(":")
    if kind == "videos":
        return _open_path(spec, rest, clip)
    if spec == "bair":
        return _open_bair(clip, _root(root))
    if kind == "ucf101" and spec in SPECS:
        from visgen.data.ucf101 import open_ucf101

        return open_ucf101(_root(root) / "UCF-101", clip, fold=int(rest or 1), name=spec)
    if spec in SPECS:
        return _open_drawn(spec, clip)
    return open_plugin(GROUP, spec, VideoData, clip, root=root, offline=offline)


def _root(root: Path | None) -> Path:
    return (root or default_root()).expanduser()


def _open_path(spec: str, path: str, clip: Clip) -> VideoData:
    """A folder or a file; the decoders are imported only if needed."""
    if not path:
        raise DataError(
            f'"{spec}" names no folder or file; write videos:PATH, as in videos:samples/mine.'
        )
    place = Path(path).expanduser()
    if place.is_file() and place.suffix.lower() in _HDF5:
        from visgen.data.video_hdf5 import open_video_hdf5

        return open_video_hdf5(place, clip, name=spec)
    from visgen.data.video_files import open_video_file, open_video_folder

    if place.is_file():
        return open_video_file(place, clip, name=spec)
    return open_video_folder(place, clip, name=spec)


def _open_bair(clip: Clip, root: Path) -> VideoData:
    path = root / "bair.hdf5"
    if not path.is_file():
        raise DataMissing(
            f"there is no {path}; convert bair_robot_pushing_dataset_v0.tar to VideoGPT's HDF5 "
            "(train_data, train_idx, test_data, test_idx) and put it there, or name the folder "
            "that holds it with --data-root PATH."
        )
    from visgen.data.video_hdf5 import open_video_hdf5

    return open_video_hdf5(path, clip, name="bair")


def _open_drawn(spec: str, clip: Clip) -> VideoData:
    if spec.startswith("moving-digits"):
        from visgen.data.moving_digits import open_moving_digits

        return open_moving_digits(clip, digits=1 if spec.endswith(":1") else 2)
    if spec == "moving-shapes":
        from visgen.data.moving_shapes import open_moving_shapes

        return open_moving_shapes(clip)
    if spec == "grid-agent":
        from visgen.data.grid_agent import open_grid_agent

        return open_grid_agent(clip)
    from visgen.data.camera_moves import open_camera_moves

    return open_camera_moves(clip)
