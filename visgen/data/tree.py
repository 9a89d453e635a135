"""What lies below a folder, and how names are shown that are not UTF-8."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path, unreadable: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Every folder's name relative to `folder` (its own is empty), and the files in it, sorted.

    Names have "/" between the parts; hidden ones (leading dot) are left out. Links to folders are
    followed after the real ones, and no folder is entered twice, so loops end. A folder that cannot
    be listed is added to `unreadable`, with the reason.
    """
    entered: set[tuple[int, int]] = set()
    real, links = deque([""]), deque[str]()
    while real or links:
        name = real.popleft() if real else links.popleft()
        try:
            status = (folder / name).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append((name or ".", f"folder cannot be listed: {error.strerror}"))
            continue
        files = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                below = f"{name}/{entry.name}" if name else entry.name
                (links if entry.is_symlink() else real).append(below)
            else:
                files.append(entry.name)
        yield name, files


def printable(name: str | Path) -> str:
    """Bytes of a name that are not UTF-8 become escapes, so that tables can hold the name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
