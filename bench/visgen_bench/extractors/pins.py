"""Weight files of which nobody has published a hash: the first one that can be used is pinned.

Its sha256 is written next to it as `<file>.sha256`, in the form that `sha256sum -c` reads, or into
the cache folder where that place cannot be written to. From then on another file at that place is
refused. The hash is in every row that the weights made, so two rows always tell whether they come
from one file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from visgen_bench.extractors.weights import WeightFile, WeightsMismatch, cache_folder, wanted


def read_pinned(path: Path, file: WeightFile) -> tuple[bytes, str]:
    """The file's bytes and their sha256, after a look at the pin, if there is one.

    Raises:
        WeightsMismatch: if the file is not the one that was pinned; nothing of it was loaded.
    """
    data = path.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    for pin in _places(path):
        pinned = _read(pin)
        if pinned is not None and pinned != actual:
            raise WeightsMismatch(
                f"{path} has sha256 {actual}, but {pin} holds {pinned} from its first use: the "
                f"file has changed, and numbers of both must not stand under one name. Put the "
                f"first one back ({wanted(file)}), or delete {pin} to take this one."
            )
    return data, actual


def pin(path: Path, sha256: str) -> Path:
    """Write down the hash of a file that was loaded and found usable; returns where it stands."""
    places = _places(path)
    for place in places:
        if _read(place) == sha256:
            return place
    try:
        return _write(places[0], path.name, sha256)
    except OSError:  # a folder that others look after
        places[1].parent.mkdir(parents=True, exist_ok=True)
        return _write(places[1], path.name, sha256)


def _places(path: Path) -> tuple[Path, Path]:
    # The folder is in the second name: two files of one name at two places have two pins.
    folder = hashlib.sha256(str(path.parent.absolute()).encode()).hexdigest()[:8]
    return (
        path.with_name(f"{path.name}.sha256"),
        cache_folder() / f"{path.name}.{folder}.sha256",
    )


def _read(place: Path) -> str | None:
    try:
        words = place.read_text("utf-8").split()
    except FileNotFoundError:
        return None
    return words[0] if words else None


def _write(place: Path, name: str, sha256: str) -> Path:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(f"{sha256}  {name}\n", "utf-8")
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    return place
