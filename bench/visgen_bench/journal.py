"""The write-ahead file of one attempt: `<root>/journal/<run_id>.jsonl`.

The parent writes the job as the first line and holds a lock on the file for as long as it lives;
the worker appends one line per number. Whatever kills the worker, the parent, or both, the lines
written so far are turned into rows: by the parent at the cell's end, or by the next run that finds
the file without its lock (`abandoned`).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

HEARTBEAT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to run one cell, and all that a row needs if it never answers.

    `cell` is the cell's JSON, `run` the columns of its `runs` row that are known before it starts.
    Paths other than `root` are relative to it.
    """

    run_id: str
    spec_key: str
    cell_key: str
    name: str
    cell: str
    root: str
    run: dict[str, Any]
    log: str
    data_root: str | None = None
    offline: bool = False
    limit: int | None = None
    threads: int = 1
    weights_path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Appends records; each is one `write` call, so a kill leaves at most one torn last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; raises `OSError` if the disk does not take it."""
        line = json.dumps(record, separators=(",", ":"), default=_plain).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            # A full disk takes part of a line; the rest raises the reason.
            os.write(self._file, line[written:])

    def lock(self) -> bool:
        """Claim the file for this process's lifetime; False if another living process has it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def beat(self) -> None:
        """Move the file's time forward: somebody is still working on it."""
        os.utime(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: object) -> Any:
    """Numbers of numpy and torch, and paths, as JSON knows them."""
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


def folder(root: Path) -> Path:
    """Where the journals of a result folder lie."""
    return root / "journal"


def open_for(job: Job) -> Journal:
    """Start the journal of a job, locked by this process."""
    place = folder(Path(job.root))
    place.mkdir(parents=True, exist_ok=True)
    journal = Journal(place / f"{job.run_id}.jsonl")
    try:
        journal.lock()
        journal.write({"job": asdict(job)})
    except BaseException:
        journal.close()
        raise
    return journal


def read(path: Path) -> list[dict[str, Any]]:
    """All whole records of a journal; torn lines are left out."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_job(path: Path) -> Job | None:
    """The job of a journal; None if its first line never reached the disk."""
    for record in read(path):
        if "job" in record:
            return Job(**record["job"])
    return None


def rank_path(path: Path, rank: int) -> Path:
    """Where a rank other than 0 writes its own records."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}.jsonl")


def read_all(path: Path) -> list[dict[str, Any]]:
    """Records of rank 0, then of the other ranks in order."""
    others = sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"), key=lambda p: (len(p.name), p))
    return [record for file in (path, *others) for record in read(file)]


def remove(path: Path) -> None:
    """Delete a journal and those of its other ranks."""
    for other in path.parent.glob(f"{path.stem}.rank*.jsonl"):
        other.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def abandoned(root: Path) -> Iterator[Path]:
    """Journals whose parent is dead; each is locked by us while it is being looked at."""
    for path in sorted(folder(root).glob("*.jsonl")):
        if ".rank" in path.name:
            continue
        with Journal(path) as journal:
            if journal.lock():
                yield path
