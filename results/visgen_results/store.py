"""Append-only Parquet store: one new file per write, complete or invisible.

Layout: `<root>/<table>/v=1/kind=<kind>/day=<yyyy-mm-dd>/<run_id>-<writer>.parquet`. A file is
written under a dot-name in the same folder, flushed to disk and renamed; no two writers share a
name, so no lock is needed. A result file is never rewritten: corrections are new rows, and readers
take the newest ok row of a cell (`Store.latest`).
"""

import contextlib
import datetime
import json
import os
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from visgen_results import schema
from visgen_results.rows import Row, RowError, column, nearest, to_table

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PARTS = re.compile(r"v=(\d+)/kind=([a-z]+)/day=(\d{4}-\d\d-\d\d)/[^/]+")
REPLACES = b"visgen.replaces"

_last_id = (0, 0)
_last_id_lock = threading.Lock()


class ResultFileWarning(UserWarning):
    """A file in the result folder was left out because it cannot be read as results."""


@dataclass(frozen=True)
class Problem:
    """One file (or row) that is not as it should be, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def new_run_id() -> str:
    """A 26-character id in ULID layout: 48 bits of milliseconds, 80 random bits, Crockford base 32.

    Ids of one process rise strictly, also within a millisecond.
    """
    global _last_id
    with _last_id_lock:
        now, entropy = time.time_ns() // 1_000_000, secrets.randbits(80)
        if now <= _last_id[0]:
            now, entropy = _last_id[0], _last_id[1] + 1
        _last_id = (now, entropy)
    number = (now << 80) + entropy
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def run_day(run_id: str) -> str:
    """The UTC day of a run id; today for an id of another layout."""
    if len(run_id) == 26 and all(sign in _CROCKFORD for sign in run_id) and run_id[0] < "8":
        number = 0
        for sign in run_id[:10]:
            number = number * 32 + _CROCKFORD.index(sign)
        moment = datetime.datetime.fromtimestamp(number / 1000, datetime.UTC)
    else:
        moment = datetime.datetime.now(datetime.UTC)
    return f"{moment:%Y-%m-%d}"


def _sync_folder(folder: Path) -> None:
    """Make names in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def write_file(path: Path, table: pa.Table) -> Path:
    """Write a Parquet file so that it is complete or absent, also after a kill or a full disk.

    Raises `OSError` naming the path; the temporary file is gone then.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _make_folder(path.parent)
        with open(temporary, "xb") as file:
            file.write(sink.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # a folder that went away; the first error says more
            temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"cannot write results ({error.strerror}); free or name another folder",
            str(path),
        ) from error
    return path


def fit_schema(table: str, found: pa.Table) -> pa.Table:
    """Bring a file's columns to today's schema: absent nullable columns become null.

    Raises `ValueError` if a required column is absent or a column has another type.
    """
    arrays = []
    fields = [f for f in schema.SCHEMAS[table] if f.name not in schema.PARTITION_COLUMNS]
    required = {c.name for c in schema.COLUMNS[table] if c.required}
    columns = dict(zip(found.column_names, found.columns, strict=True))
    for field in fields:
        if field.name in columns:
            here = columns[field.name]
            if here.type != field.type and not _widens(here.type, field.type):
                raise ValueError(f"column {field.name} is {here.type}, expected {field.type}")
            arrays.append(here if here.type == field.type else here.cast(field.type))
        elif field.name in required:
            raise ValueError(f"required column {field.name} is missing")
        else:
            arrays.append(pa.chunked_array([pa.nulls(found.num_rows, field.type)]))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _widens(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found) or (pa.types.is_large_string(found) and wanted == pa.string()):
        return True
    integers = pa.types.is_integer(found) and pa.types.is_integer(wanted)
    return integers and found.bit_width <= wanted.bit_width


def read_file(table: str, path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """One result file in today's schema, and the names of the files it replaces (compaction).

    Raises `ValueError` saying why the file is no result file of this table.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            name = metadata.get(b"visgen.schema_name", b"").decode()
            version = int(metadata.get(b"visgen.schema_version", b"0"))
            if name != f"{schema.SCHEMA_NAME}.{table}":
                raise ValueError(f"not a {table} file of visgen (schema name {name!r})")
            if version > schema.SCHEMA_VERSION:
                raise ValueError(
                    f"schema version {version}; this visgen reads {schema.SCHEMA_VERSION}"
                )
            found = fit_schema(table, file.read(use_threads=False))
    except pa.ArrowException as error:
        raise ValueError(f"unreadable: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ValueError(f"unreadable: {error.strerror or error}") from error
    return found, tuple(json.loads(metadata.get(REPLACES, b"[]")))


def _warn(problem: Problem) -> None:
    warnings.warn(f"left out {problem}", ResultFileWarning, stacklevel=4)


def check_holds_results(root: Path) -> None:
    """Raise `ValueError` unless one of the tables lies in the folder: a name is soon mistyped."""
    if not any((root / table).is_dir() for table in schema.TABLES):
        raise ValueError(
            f"{root} holds no results (no folder {', '.join(schema.TABLES)}); "
            "run a suite with --out there first"
        )


class Store:
    """The result tables under one folder. Reading never needs, and never takes, a lock."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def append(
        self, table: str, rows: Sequence[Row], *, kind: str, run_id: str, writer: str = "0"
    ) -> Path:
        """Commit rows as one new file and return its path.

        Missing keys become null; `run_id` and `kind` may be left out of the rows. Raises `RowError`
        for a row that does not fit (nothing is written) and `OSError` if the disk does not take it.
        """
        if kind not in schema.KINDS:
            near = nearest(kind, schema.KINDS)
            raise RowError(f"kind={kind!r} is none of {', '.join(schema.KINDS)}; nearest: {near!r}")
        for label, value in (("run_id", run_id), ("writer", writer)):
            if not _NAME.fullmatch(value):
                raise RowError(f"{label}={value!r} is no file name; use letters, digits, . _ -")
        if not rows:
            raise RowError(f"{table}: no rows given for run {run_id}; write at least one")
        own = {"kind": kind} | ({} if table == "machines" else {"run_id": run_id})
        for row in rows:
            for key, value in own.items():
                if row.get(key, value) != value:
                    raise RowError(f"{table}: row has {key}={row[key]!r}, the file has {value!r}")
        content = to_table(table, [own | dict(row) for row in rows])
        path = self.path(table, kind, run_id, writer)
        if path.exists():
            raise RowError(
                f"{path} is already written, and a result file is never rewritten; "
                "give another writer or a new run_id"
            )
        return write_file(path, content)

    def path(self, table: str, kind: str, run_id: str, writer: str = "0") -> Path:
        """Where `append` puts a file."""
        version = f"v={schema.SCHEMA_VERSION}"
        folder = self.root / table / version / f"kind={kind}" / f"day={run_day(run_id)}"
        return folder / f"{run_id}-{writer}.parquet"

    def files(
        self, table: str, on_problem: Callable[[Problem], None] = _warn
    ) -> Iterator[tuple[str, Path]]:
        """(kind, path) of every visible file, sorted by path; misplaced ones go to `on_problem`."""
        base = self.root / table
        for path in sorted(base.rglob("*.parquet")):
            inside = path.relative_to(base)
            if any(part.startswith((".", "_")) for part in inside.parts):
                continue
            match = _PARTS.fullmatch(inside.as_posix())
            if match is None or match[2] not in schema.KINDS:
                on_problem(Problem(path, "lies outside v=/kind=/day= of this table"))
            elif int(match[1]) != schema.SCHEMA_VERSION:
                on_problem(Problem(path, f"is of schema version {match[1]}"))
            else:
                yield match[2], path

    def read_files(
        self, table: str, on_problem: Callable[[Problem], None] = _warn
    ) -> dict[Path, tuple[str, pa.Table]]:
        """Every readable file with its kind, less those that a compacted file has replaced."""
        found: dict[Path, tuple[str, pa.Table]] = {}
        replaced: set[Path] = set()
        for kind, path in self.files(table, on_problem):
            try:
                content, parts = read_file(table, path)
            except ValueError as error:
                if path.exists():  # a compaction may have removed it since it was listed
                    on_problem(Problem(path, str(error)))
                continue
            found[path] = (kind, content)
            replaced.update(path.with_name(part) for part in parts)
        return {path: entry for path, entry in found.items() if path not in replaced}

    def read(self, table: str, on_problem: Callable[[Problem], None] = _warn) -> pa.Table:
        """All rows of a table in today's schema; a missing folder gives no rows.

        A file that cannot be read is left out and named: by a `ResultFileWarning`, or to
        `on_problem`.
        """
        if table not in schema.SCHEMAS:
            near = nearest(table, schema.TABLES)
            raise ValueError(f"no table {table!r}; nearest: {near!r} of {', '.join(schema.TABLES)}")
        target = schema.SCHEMAS[table]
        nothing = [column([], field.type) for field in target]
        pieces = [pa.Table.from_arrays(nothing, schema=target)]
        for kind, content in self.read_files(table, on_problem).values():
            kinds = column([kind] * content.num_rows, pa.string())
            whole = [kinds if n == "kind" else content.column(n) for n in target.names]
            pieces.append(pa.Table.from_arrays(whole, schema=target))
        return pa.concat_tables(pieces).combine_chunks()

    def latest(self, on_problem: Callable[[Problem], None] = _warn) -> pa.Table:
        """Of every cell the newest ok row of `runs`, ordered as the cells first appeared."""
        return latest(self.read("runs", on_problem))

    def validate(self) -> list[Problem]:
        """Everything wrong in the folder; empty when all is well."""
        from visgen_results.upkeep import validate

        return validate(self.root)


def latest(runs: pa.Table) -> pa.Table:
    """Of every `cell_key` the ok row with the newest `ended_at`; ties go to the larger run id."""
    best: dict[str, tuple[float, str, int]] = {}
    keys = (runs.column(c).to_pylist() for c in ("cell_key", "status", "run_id"))
    ended = runs.column("ended_at").cast(pa.int64()).to_pylist()
    for index, (cell, status, run_id) in enumerate(zip(*keys, strict=True)):
        rank = (float("-inf") if ended[index] is None else ended[index], run_id, index)
        if status == "ok" and (cell not in best or rank > best[cell]):
            best[cell] = rank
    return runs.take(column([index for _, _, index in best.values()], pa.int64()))
