"""Care of a result folder: validate, merge folders of several machines, compact closed days."""

import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from visgen_results import schema
from visgen_results.rows import column, to_rows
from visgen_results.store import (
    REPLACES,
    Problem,
    Store,
    check_holds_results,
    new_run_id,
    read_file,
    write_file,
)

# runs come last, so that a merge that is killed leaves no run without its numbers
_MERGE_ORDER = ("machines", "measurements", "metrics", "runs")
_METRIC_KEY = ("run_id", "metric", "stat", "phase", "rank", "timing_method")
_BESIDE = ("artifacts", "logs")


class MergeConflict(ValueError):
    """Two folders hold one run id with different content."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; `kept` are files of the target whose namesake in a source differs."""

    runs_added: int
    runs_known: int
    files_written: int
    kept: tuple[Path, ...]


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did; days with problems are left as they are."""

    files_before: int
    files_after: int
    problems: tuple[Problem, ...]


def validate(root: Path | str) -> list[Problem]:
    """Unreadable, foreign or misplaced files, duplicate keys, orphans, and nulls with no reason.

    Raises `ValueError` if the folder holds no result table.
    """
    store = Store(root)
    check_holds_results(store.root)
    problems: list[Problem] = []
    run_ids: set[str] = set()
    for table in schema.TABLES:
        seen: Counter[tuple[object, ...]] = Counter()
        for path, (_, content) in store.read_files(table, problems.append).items():
            if table == "runs":
                names = content.column("run_id").to_pylist()
                run_ids.update(names)
                seen.update((name,) for name in names)
            elif table == "metrics":
                for row in to_rows(content):
                    seen[tuple(row[name] for name in _METRIC_KEY)] += 1
                    problems += _metric_faults(path, row)
            if table in ("metrics", "measurements"):
                orphans = sorted(set(content.column("run_id").to_pylist()) - run_ids)
                problems += [Problem(path, f"run {o} has no row in runs") for o in orphans]
        for key, count in seen.items():
            if count > 1:
                shown = ", ".join(str(part) for part in key)
                problems.append(Problem(store.root / table, f"{count} rows for ({shown})"))
    for leftover in sorted(store.root.rglob(".*.tmp")):
        problems.append(Problem(leftover, "left by a writer that was killed; may be deleted"))
    return problems


def _metric_faults(path: Path, row: dict[str, Any]) -> Iterable[Problem]:
    if row["value"] is None and not row["reason"]:
        yield Problem(path, f"{row['metric']} of run {row['run_id']} is null and gives no reason")


def _digest(rows: Iterable[dict[str, Any]]) -> str:
    text = "\n".join(sorted(repr(sorted(row.items())) for row in rows))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _rows(content: pa.Table, places: Sequence[int]) -> pa.Table:
    return content.take(column(list(places), pa.int64()))


class _Runs:
    """Where the rows of every run lie in one table of a folder; runs are hashed when asked for."""

    def __init__(self, root: Path, table: str) -> None:
        self.places: dict[str, list[tuple[Path, list[int]]]] = defaultdict(list)
        self.files = Store(root).read_files(table, _refuse)
        for path, (_, content) in self.files.items():
            here: dict[str, list[int]] = defaultdict(list)
            for index, key in enumerate(_keys(table, content)):
                here[key].append(index)
            for key, indices in here.items():
                self.places[key].append((path, indices))

    def digest(self, key: str) -> str:
        """Hash of all rows of one run, whatever files they lie in and in whatever order."""
        pieces = (_rows(self.files[path][1], places) for path, places in self.places[key])
        return _digest(row for piece in pieces for row in to_rows(piece))


def _keys(table: str, content: pa.Table) -> list[str]:
    if table == "machines":  # facts, not runs: a row is its own identity
        return [_digest([row]) for row in to_rows(content)]
    return content.column("run_id").to_pylist()


def _refuse(problem: Problem) -> None:
    raise ValueError(f"cannot merge: {problem}; repair or remove that file first")


def merge(sources: Sequence[Path | str], target: Path | str) -> MergeReport:
    """Bring the runs of other folders into `target`; a run that is there already is left alone.

    Nothing is written if any run id has different content in two folders (`MergeConflict`), or if
    a file is unreadable or of a newer schema (`ValueError`). Pictures and logs are copied too.
    """
    goal = Path(target)
    for source in map(Path, sources):
        check_holds_results(source)
        if goal.exists() and source.samefile(goal):
            raise ValueError(f"cannot merge {source} into itself")
    steps: list[tuple[str, _Runs, set[str]]] = []
    added: set[str] = set()
    known: set[str] = set()
    for table in _MERGE_ORDER:
        folders = [_Runs(goal, table)]
        for source in map(Path, sources):
            runs = _Runs(source, table)
            new = {key for key in runs.places if _is_new(table, key, runs, folders)}
            folders.append(runs)
            steps.append((table, runs, new))
            if table == "runs":
                added |= new
                known |= set(runs.places) - new
    kept = tuple(
        path for source in map(Path, sources) for path in _copy_beside(source, goal)
    )  # pictures before rows: a row's path never points at nothing
    written = sum(_write_new(table, runs, new, goal) for table, runs, new in steps)
    return MergeReport(len(added), len(known - added), written, kept)


def _is_new(table: str, key: str, runs: _Runs, folders: Sequence[_Runs]) -> bool:
    for folder in folders:
        if key in folder.places:
            if folder.digest(key) != runs.digest(key):
                here, there = folder.places[key][0][0], runs.places[key][0][0]
                raise MergeConflict(f"{table}: run {key} differs between {here} and {there}")
            return False
    return True


def _write_new(table: str, runs: _Runs, new: set[str], goal: Path) -> int:
    places: dict[Path, list[int]] = defaultdict(list)
    for key in new:
        for path, indices in runs.places[key]:
            places[path] += indices
    for path, indices in places.items():
        content = _rows(runs.files[path][1], sorted(indices))
        part = goal / table / Path(*path.parts[-4:-1]) / path.name
        if part.exists():  # only a folder that was compacted before it was merged comes here
            part = part.with_name(f"{new_run_id()}-merged.parquet")
        write_file(part, content.replace_schema_metadata(schema.SCHEMAS[table].metadata))
    return len(places)


def _copy_beside(source: Path, goal: Path) -> Iterable[Path]:
    """Copy pictures and logs that the target lacks; yields those it has with other content."""
    for folder in _BESIDE:
        for path in sorted((source / folder).rglob("*")):
            copy = goal / path.relative_to(source)
            if path.is_symlink() or not path.is_file():
                continue
            if copy.exists():
                if copy.read_bytes() != path.read_bytes():
                    yield copy
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(f".{copy.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            shutil.copyfile(path, partial)
            os.replace(partial, copy)


def compact(root: Path | str, *, today: datetime.date | None = None) -> CompactReport:
    """Merge the files of every closed day into one file per table and kind.

    The new file names the parts it replaces, so a reader that finds both (a kill between rename
    and deletion) counts each row once. Parts go only after the new file was read back in full.
    Raises `ValueError` if the folder holds no result table.
    """
    store, problems = Store(root), []
    check_holds_results(store.root)
    closed_before = f"{today or datetime.datetime.now(datetime.UTC).date():%Y-%m-%d}"
    before = after = 0
    for table in schema.TABLES:
        days: dict[Path, list[Path]] = defaultdict(list)
        for _, path in store.files(table, problems.append):
            before += 1
            after += 1
            if path.parent.name.removeprefix("day=") < closed_before:
                days[path.parent].append(path)
        for folder, parts in days.items():
            try:
                after -= _compact_day(table, folder, parts)
            except ValueError as error:
                problems.append(Problem(folder, str(error)))
    return CompactReport(before, after, tuple(problems))


def _compact_day(table: str, folder: Path, parts: Sequence[Path]) -> int:
    """Returns by how many the number of files fell."""
    contents: dict[str, pa.Table] = {}
    replaced: set[str] = set()
    for path in parts:
        contents[path.name], names = read_file(table, path)
        replaced.update(names)
    live = {name: content for name, content in contents.items() if name not in replaced}
    gone = set(contents) - set(live)
    if len(live) > 1:
        whole = pa.concat_tables(live.values()).combine_chunks()
        metadata = dict(schema.SCHEMAS[table].metadata) | {REPLACES: json.dumps(sorted(contents))}
        path = folder / f"{new_run_id()}-compacted.parquet"
        write_file(path, whole.replace_schema_metadata(metadata))
        found = read_file(table, path)[0].num_rows
        if found != whole.num_rows:
            raise ValueError(f"{path.name} has {found} rows of {whole.num_rows}; parts are kept")
        gone = set(contents)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return len(gone) - (len(live) > 1)
