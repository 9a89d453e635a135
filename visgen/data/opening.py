"""From the text in a suite to an opened image set."""

import importlib.metadata
from pathlib import Path

from visgen.data.cifar10 import open_cifar10
from visgen.data.dataset import Data, DataError, DataMissing, UnknownData
from visgen.data.digits import SIZES, open_digits
from visgen.data.stl10 import open_stl10, open_stl10_48
from visgen.names import hint

GROUP = "visgen.data"
SPECS = (*(f"digits:{side}" for side in SIZES), "folder:PATH", "cifar10", "stl10", "stl10:48")


def data_names() -> list[str]:
    """What `open_data` takes: our own sets, then the plug-ins (none of them is loaded)."""
    plugins = importlib.metadata.entry_points(group=GROUP)
    return [*SPECS, *sorted({point.name for point in plugins})]


def check_name(spec: str) -> None:
    """Raise UnknownData, with the nearest match, if no set has this name; opens nothing."""
    kind = spec.partition(":")[0]
    if kind == "folder" or spec in SPECS:
        return  # plug-ins are looked for only where our own sets end
    names = data_names()
    if kind in names[len(SPECS) :]:
        return
    near = f'; nearest: "folder:{spec}"' if _is_folder(spec) else hint(spec, names)
    raise UnknownData(f'unknown data "{spec}"{near} (there are {", ".join(names)}).')


def _is_folder(spec: str) -> bool:
    try:
        return Path(spec).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long for a name, or nobody's home
        return False


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
    point = next(iter(importlib.metadata.entry_points(group=GROUP, name=kind)))
    return _open_plugin(point, spec, root, offline)


def _open_plugin(
    point: importlib.metadata.EntryPoint, spec: str, root: Path | None, offline: bool
) -> Data:
    """What a plug-in opens; whatever goes wrong while it loads is told under its name."""
    try:
        data = point.load()(spec, root=root, offline=offline)
    except (DataError, DataMissing):
        raise
    except Exception as error:  # somebody else's code may raise anything
        raise DataError(
            f'plug-in {point.name} ({point.value}) cannot open "{spec}": '
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(data, Data):
        raise DataError(
            f'plug-in {point.name} ({point.value}) gave {type(data).__name__} for "{spec}"; '
            "it must give a visgen.data.Data."
        )
    return data


def _open_folder(spec: str, path: str) -> Data:
    if not path:
        raise DataError(f'"{spec}" names no folder; write folder:PATH, as in folder:samples/mine.')
    from visgen.data.folder import open_folder  # Pillow's plugins are imported only if needed

    return open_folder(Path(path).expanduser(), name=spec)
