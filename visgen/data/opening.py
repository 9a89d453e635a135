"""From the text in a suite to an opened image set."""

from pathlib import Path

from visgen.data.cifar10 import open_cifar10
from visgen.data.dataset import Data, DataError
from visgen.data.digits import SIZES, open_digits
from visgen.data.plugins import check_known, known_names, open_plugin
from visgen.data.stl10 import open_stl10, open_stl10_48

GROUP = "visgen.data"
SPECS = (*(f"digits:{side}" for side in SIZES), "folder:PATH", "cifar10", "stl10", "stl10:48")


def data_names() -> list[str]:
    """What `open_data` takes: our own sets, then the plug-ins (none of them is loaded)."""
    return known_names(SPECS, GROUP)


def check_name(spec: str) -> None:
    """Raise UnknownData, with the nearest match, if no set has this name; opens nothing."""
    check_known(spec, SPECS, GROUP, what="data", path_kind="folder", is_path=Path.is_dir)


def open_data(spec: str, *, root: Path | None = None, offline: bool = False) -> Data:
    """Open the image set that `spec` names.

    `digits:8`, `digits:16`, `digits:32` come with the installation. `folder:PATH` is any folder of
    pictures. `cifar10` and `stl10` lie below `root` (default: the user's cache, `archives.py`)
    and are downloaded to it unless `offline`; `stl10:48` is STL-10 at half its size. `NAME` or
    `NAME:REST` may be a plug-in's: an entry point NAME of the group `visgen.data`, a function with
    this signature.

    Raises:
        UnknownData: no set of that name; the nearest match and the list are in the message.
        DataMissing: the set is not on this machine; path and flag are in the message.
        DataError: the set is there but cannot be used.
    """
    check_name(spec)
    kind, _, rest = spec.partition(":")
    if kind == "folder":
        return _open_folder(spec, rest)
    if kind == "digits":
        return open_digits(int(rest))
    if spec == "cifar10":
        return open_cifar10(root, offline=offline)
    if spec == "stl10":
        return open_stl10(root, offline=offline)
    if spec == "stl10:48":
        return open_stl10_48(root, offline=offline)
    return open_plugin(GROUP, spec, Data, root=root, offline=offline)


def _open_folder(spec: str, path: str) -> Data:
    if not path:
        raise DataError(f'"{spec}" names no folder; write folder:PATH, as in folder:samples/mine.')
    from visgen.data.folder import open_folder  # Pillow's plugins are imported only if needed

    return open_folder(Path(path).expanduser(), name=spec)
