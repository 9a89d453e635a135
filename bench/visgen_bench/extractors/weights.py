"""Weight files that are not ours: found, hashed before use, downloaded only if allowed.

Order: explicit path, then the folder VISGEN_WEIGHTS_DIR, then the cache folder, then a download.
Each way to fail has its own name. A file is read once: the bytes that were hashed are the bytes
that are loaded, and only as plain tensors.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import tempfile
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS_DIR_VARIABLE = "VISGEN_WEIGHTS_DIR"
_TIMEOUT_S = 30.0
_CHUNK = 1 << 20


class WeightsError(RuntimeError):
    """A weight file cannot be used."""


class WeightsMissing(WeightsError):
    """The file is nowhere, here or at its source."""


class WeightsMismatch(WeightsError):
    """The file's sha256 is not the expected one; nothing of it was loaded."""


class WeightsOffline(WeightsError):
    """The file is not here and the source cannot be reached."""


class WeightsUnreadable(WeightsError):
    """The file is the one asked for, but does not hold this network's tensors."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What is known about a weight file.

    Attributes:
        name: Our name for it.
        files: File names it is distributed under, best first.
        source: The page users get it from, in words.
        url: Where a download would go; "" if there is none.
        bytes: Its size; 0 where nobody publishes it.
        sha256: Its hash, hex; "" where nobody publishes it (`pins`).
    """

    name: str
    files: tuple[str, ...]
    source: str
    url: str
    bytes: int
    sha256: str


@cache
def known_weights() -> dict[str, WeightFile]:
    """The table in weights.toml, by name."""
    table = tomllib.loads((Path(__file__).parent / "weights.toml").read_text())
    return {
        name: WeightFile(name=name, **{**entry, "files": tuple(entry["files"])})
        for name, entry in table.items()
    }


def cache_folder() -> Path:
    """Where downloads go: $XDG_CACHE_HOME/visgen/weights, or ~/.cache/visgen/weights."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "visgen" / "weights"


def locate(
    file: WeightFile, *, path: Path | None = None, folder: Path | None = None
) -> Path | None:
    """Where the file lies, unchecked, or None.

    Args:
        file: What to look for.
        path: An explicit file; nothing else is tried then.
        folder: The cache folder; `cache_folder()` if None.

    Raises:
        WeightsMissing: if an explicit path does not exist.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsMissing(f"no weight file at {path}; {wanted(file)}.")
        return path
    named = os.environ.get(WEIGHTS_DIR_VARIABLE)
    folders = ([Path(named)] if named else []) + [folder or cache_folder()]
    for candidate in (place / name for place in folders for name in file.files):
        if candidate.is_file():
            return candidate
    return None


def read_verified(path: Path, sha256: str | None, file: WeightFile | None = None) -> bytes:
    """The file's bytes, after their hash was found right.

    Raises:
        WeightsMismatch: if the hash differs; says what the file looks like.
    """
    data = path.read_bytes()
    if sha256 is not None:
        _check_hash(data, sha256, str(path), file)
    return data


def fetch(
    file: WeightFile,
    *,
    path: Path | None = None,
    folder: Path | None = None,
    allow_download: bool = False,
    url: str | None = None,
) -> Path:
    """Where the verified file lies, after a download if it was allowed and needed.

    Args:
        file: What to look for.
        path: An explicit file; then nothing else is tried.
        folder: The cache folder; `cache_folder()` if None.
        allow_download: Whether the network may be used.
        url: Another source than `file.url`.

    Raises:
        WeightsMissing: if the explicit path, or the source, does not have it.
        WeightsMismatch: if what was found or downloaded has another hash.
        WeightsOffline: if it is not here and no download is allowed or possible.
    """
    found = locate(file, path=path, folder=folder)
    if found is not None:
        read_verified(found, file.sha256 or None, file)
        return found
    if not file.sha256 or not (url or file.url):
        raise WeightsOffline(
            f"{file.files[0]} is not here, and a file without a published hash is not downloaded; "
            f"{wanted(file)}."
        )
    if not allow_download:
        raise WeightsOffline(f"{file.files[0]} is not here and downloads are off; {wanted(file)}.")
    return _download(file, folder or cache_folder(), url or file.url)


def load_tensors(data: bytes, origin: str) -> dict[str, Tensor]:
    """Tensors of a .pth state dict, read without running pickled code.

    Raises:
        WeightsUnreadable: if it is not a state dict of tensors.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on foreign bytes
        raise WeightsUnreadable(
            f"{origin} cannot be read as plain tensors: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsUnreadable(f"{origin} holds {type(state).__name__}, not a dict of tensors.")
    return state


def _download(file: WeightFile, folder: Path, url: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.files[0]
    handle, name = tempfile.mkstemp(prefix=".download-", dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            _copy_from(url, out, file)
        _check_hash(temporary.read_bytes(), file.sha256, url, file)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _copy_from(url: str, out: io.BufferedIOBase, file: WeightFile) -> None:
    # One byte more than expected is enough to know that the file is another one.
    left = file.bytes + 1
    with _answer(url, file) as answer:
        while left > 0:
            try:
                chunk = answer.read(min(_CHUNK, left))
            except http.client.IncompleteRead as cut:
                out.write(cut.partial)  # its hash will say that it is truncated
                return
            except OSError as error:
                raise WeightsOffline(f"{url} broke off ({error}); {wanted(file)}.") from error
            if not chunk:
                return
            out.write(chunk)
            left -= len(chunk)


def _answer(url: str, file: WeightFile) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(url, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsMissing(
            f"{url} answered {error.code} {error.reason}; {wanted(file)}."
        ) from error
    except (OSError, http.client.HTTPException) as error:  # refused, no route, time-out, nonsense
        raise WeightsOffline(f"{url} cannot be reached ({error}); {wanted(file)}.") from error


def _check_hash(data: bytes, sha256: str, origin: str, file: WeightFile | None) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual == sha256:
        return
    looks = ""
    if data[:512].lstrip()[:1] == b"<":
        looks = " It is an HTML page, not weights."
    elif file is not None and len(data) < file.bytes:
        looks = f" It is {len(data):,} of {file.bytes:,} bytes: truncated."
    fix = f" Delete it; {wanted(file)}." if file is not None else ""
    raise WeightsMismatch(f"{origin} has sha256 {actual}, expected {sha256}.{looks}{fix}")


def wanted(file: WeightFile) -> str:
    """What a user can do about a missing file: what to get, from where, and where to put it."""
    known = f"{file.bytes:,} bytes, sha256 {file.sha256}"
    if not file.sha256:
        known = "no sha256 is published: the first file used is pinned"
    return (
        f"get {' or '.join(file.files)} ({known}) from "
        f"{file.source}, and give its path, or put it into the folder that "
        f"{WEIGHTS_DIR_VARIABLE} names or into {cache_folder()}"
    )
