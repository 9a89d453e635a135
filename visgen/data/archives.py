"""Published data sets that lie unpacked below a data root, or are downloaded to it.

Every file is compared with its published MD5 before anything else reads it; the archive is too,
before it is unpacked.
"""

import contextlib
import hashlib
import os
import socket
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from visgen.data.dataset import DataError, DataMissing

_SILENCE = 60.0  # seconds without a byte from the server before a download is given up


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A published set: `url` of the archive, its md5, and the md5 of each file in `folder`."""

    name: str
    url: str
    filename: str
    md5: str
    megabytes: int
    folder: str
    files: Mapping[str, str]


def default_root() -> Path:
    """Return where data sets are kept if no root is given: `visgen/data` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "visgen" / "data"


def checked_folder(archive: Archive, root: Path | None, *, offline: bool) -> Path:
    """Return the folder of the unpacked set below `root`, all files checked.

    Downloads and unpacks it first if files are missing or differ and `offline` is False.

    Raises:
        DataMissing: files are missing and could not be downloaded, or may not be (`offline`).
        DataError: files differ from the published ones, also after a download.
    """
    root = (root or default_root()).expanduser()
    folder = root / archive.folder
    missing, different = _faults(archive, folder)
    if not missing and not different:
        return folder
    if offline:
        _refuse(archive, root, missing, different)
    _download(archive, root)
    missing, different = _faults(archive, folder)
    if missing or different:
        raise DataError(
            f"{archive.name}: {archive.url} was unpacked to {folder}, but there "
            f"{_list(missing, different)}; delete {root / archive.filename} and run again."
        )
    return folder


def _refuse(archive: Archive, root: Path, missing: list[str], different: list[str]) -> None:
    folder = root / archive.folder
    if different:
        raise DataError(
            f"{archive.name}: in {folder} {_list(missing, different)}, and nothing of it was read; "
            "run without --offline to download it again."
        )
    raise DataMissing(
        f"{archive.name} is not on this machine: {folder} lacks {', '.join(missing)}. Give the "
        f"folder that holds {archive.folder}/ with --data-root PATH, or run without --offline to "
        f"download {archive.url} ({archive.megabytes} MB)."
    )


def _list(missing: list[str], different: list[str]) -> str:
    parts = [f"{name} is missing" for name in missing]
    parts += [f"{name} does not have its published MD5" for name in different]
    return ", ".join(parts)


def _faults(archive: Archive, folder: Path) -> tuple[list[str], list[str]]:
    missing = [name for name in archive.files if not (folder / name).is_file()]
    different = [
        name
        for name, md5 in archive.files.items()
        if name not in missing and _md5(folder / name) != md5
    ]
    return missing, different


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        # MD5 is what was published; FIPS builds of Python refuse it for anything but identity.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(archive: Archive, root: Path) -> None:
    from torchvision.datasets.utils import download_url  # seconds to import

    try:
        with _patience(_SILENCE), contextlib.redirect_stdout(sys.stderr):
            download_url(archive.url, root, filename=archive.filename, md5=archive.md5)
        with tarfile.open(root / archive.filename) as packed:
            packed.extractall(root, filter="data")  # nothing outside `root`, no links, no devices
    except (OSError, RuntimeError, tarfile.TarError) as error:  # RuntimeError: a wrong MD5
        raise DataMissing(
            f"{archive.name} is not in {root} and could not be brought there from {archive.url} "
            f"({type(error).__name__}: {error}). Download and unpack it elsewhere and give the "
            f"folder that holds {archive.folder}/ with --data-root PATH."
        ) from error


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a silent server: torchvision sets no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
