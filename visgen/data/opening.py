"""From the text in a suite to an opened image set."""

import difflib
from pathlib import Path

from visgen.data.cifar10 import open_cifar10
from visgen.data.dataset import Data, DataError, UnknownData
from visgen.data.digits import SIZES, open_digits
from visgen.data.stl10 import open_stl10

SPECS = (*(f"digits:{side}" for side in SIZES), "folder:PATH", "cifar10", "stl10")


def open_data(spec: str, *, root: Path | None = None, offline: bool = False) -> Data:
    """Open the image set that `spec` names.

    `digits:8`, `digits:16`, `digits:32` come with the installation. `folder:PATH` is any folder of
    pictures. `cifar10` and `stl10` lie below `root` (default: the user's cache, `archives.py`)
    and are downloaded to it unless `offline`.

    Raises:
        UnknownData: no set of that name; the nearest match and the list are in the message.
        DataMissing: the set is not on this machine; path and flag are in the message.
        DataError: the set is there but cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if kind == "folder":
        return _open_folder(spec, rest)
    if kind == "digits" and spec in SPECS:
        return open_digits(int(rest))
    if spec == "cifar10":
        return open_cifar10(root, offline=offline)
    if spec == "stl10":
        return open_stl10(root, offline=offline)
    nearest = difflib.get_close_matches(spec, SPECS, n=1, cutoff=0.0)[0]
    raise UnknownData(
        f'unknown data "{spec}"; nearest: "{nearest}" (there are {", ".join(SPECS)}).'
    )


def _open_folder(spec: str, path: str) -> Data:
    if not path:
        raise DataError(f'"{spec}" names no folder; write folder:PATH, as in folder:samples/mine.')
    from visgen.data.folder import open_folder  # Pillow's plugins are imported only if needed

    return open_folder(Path(path).expanduser(), name=spec)
