"""From row dicts to an Arrow table with explicit types, with every fault named.

Arrays are laid out buffer by buffer: `pyarrow.array` imports pandas at its first call (0.5 s, which
every worker would pay), turns 0.5 into 0 in an integer column and True into 1.0 in a float column.
"""

import datetime
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import pyarrow as pa

from visgen_results import schema
from visgen_results.metrics import METRICS, MetricInfo, info

MESSAGE_LIMIT = 4096
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_NUMPY = {pa.int16(): np.int16, pa.int32(): np.int32, pa.int64(): np.int64}

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that cannot be written: unknown key, wrong type, or a missing reason."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no whitespace and no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def nearest(word: str, choices: Iterable[str], least: float = 0.0) -> str:
    """The choice most like `word`; empty if none reaches `least`, difflib's ratio from 0 to 1."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=least)), "")


def _text(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError("text")
    return value.encode("utf-8", errors="backslashreplace")


def _integer(value: object) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError("a whole number")
    if isinstance(value, SupportsIndex):
        return value.__index__()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise TypeError("a whole number")


def _real(value: object) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes) or not isinstance(value, SupportsFloat):
        raise TypeError("a number")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError("true or false")
    return bool(value)


def _microseconds(value: object) -> int:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise TypeError("a time in ISO 8601 with its zone") from None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        raise TypeError("a time with its zone")
    return (value - _EPOCH) // _MICROSECOND


def column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Python values to an Arrow array; None is null and NaN stays NaN.

    Raises `TypeError` whose text says what the type needs, or `OverflowError`.
    """
    present = np.array([v is not None for v in values], dtype=bool)
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    if kind == pa.string():
        parts = [b"" if v is None else _text(v) for v in values]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(p) for p in parts], out=offsets[1:])
        if offsets[-1] > np.iinfo(np.int32).max:
            raise OverflowError("2 GiB of text in one column")
        buffers = [pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(parts))]
    elif kind == pa.bool_():
        flags = np.array([False if v is None else _flag(v) for v in values], dtype=bool)
        buffers = [pa.py_buffer(np.packbits(flags, bitorder="little"))]
    elif kind == pa.float64():
        buffers = [pa.py_buffer(np.array([0.0 if v is None else _real(v) for v in values]))]
    else:
        convert = _microseconds if pa.types.is_timestamp(kind) else _integer
        width = _NUMPY.get(kind, np.int64)
        whole = [0 if v is None else convert(v) for v in values]
        buffers = [pa.py_buffer(np.array(whole, dtype=width))]
    return pa.Array.from_buffers(kind, len(values), [validity, *buffers])


def _check_choice(table: str, row: Row, key: str, choices: Sequence[str]) -> None:
    value = row.get(key)
    if value is not None and value not in choices:
        near = nearest(str(value), choices)
        raise RowError(
            f"{table}: {key}={value!r} is none of {', '.join(choices)}; nearest: {near!r}"
        )


def _with_unit(row: dict[str, Any], entry: MetricInfo) -> None:
    """Fill unit and direction from the table of metrics, or refuse ones that contradict it."""
    if row.get("unit") is None:
        row["unit"] = entry.unit
    elif row["unit"] not in (entry.unit, *entry.other_units):
        allowed = ", ".join((entry.unit, *entry.other_units))
        raise RowError(f"metrics: {entry.name} is in {allowed}, got unit={row['unit']!r}")
    if row.get("higher_is_better") is None:
        row["higher_is_better"] = entry.higher_is_better
    elif row["higher_is_better"] != entry.higher_is_better:
        raise RowError(
            f"metrics: {entry.name} has higher_is_better={entry.higher_is_better} in the table of "
            f"metrics, got {row['higher_is_better']}"
        )


def _finish_metric(row: dict[str, Any]) -> None:
    metric = row.get("metric")
    if not isinstance(metric, str):
        raise RowError(
            f"metrics: metric={metric!r} is no name; nearest: {nearest('fid', METRICS)!r}"
        )
    _with_unit(row, info(metric))
    _check_choice("metrics", row, "stat", schema.STATS)
    _check_choice("metrics", row, "status", schema.STATUSES)
    if row.get("value") is None and not row.get("reason"):
        raise RowError(
            f"metrics: {metric} has value null and no reason; say why it was not measured "
            "(0 and NaN are values, null is not)"
        )


def _finish(table: str, given: Row) -> dict[str, Any]:
    """One row with its keys checked, JSON columns as text, and implied columns filled."""
    row = dict(given)
    columns = schema.COLUMNS[table]
    names = [c.name for c in columns]
    for key in row:
        if key not in names:
            raise RowError(f"{table} has no column {key!r}; nearest: {nearest(key, names)!r}")
    for entry in columns:
        if entry.json and isinstance(row.get(entry.name), dict | list | tuple):
            try:
                row[entry.name] = canonical_json(row[entry.name])
            except (TypeError, ValueError) as error:
                raise RowError(f"{table}: {entry.name} is not plain JSON: {error}") from None
    _check_choice(table, row, "kind", schema.KINDS)
    if table == "runs":
        _check_choice(table, row, "status", schema.STATUSES)
        row["schema_version"] = schema.SCHEMA_VERSION
        if isinstance(row.get("error_msg"), str):
            row["error_msg"] = row["error_msg"][:MESSAGE_LIMIT]
    elif table == "metrics":
        _finish_metric(row)
    for entry in columns:
        if entry.required and row.get(entry.name) in (None, ""):
            raise RowError(f"{table}: {entry.name} is required, got {row.get(entry.name)!r}")
    return row


def to_table(table: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of one table, without the columns that lie in the path.

    Missing keys become null; NaN stays NaN. Raises `RowError` naming the key or column and the fix.
    """
    if table not in schema.SCHEMAS:
        raise RowError(f"no table {table!r}; tables: {', '.join(schema.TABLES)}")
    finished = [_finish(table, row) for row in rows]
    fields = [f for f in schema.SCHEMAS[table] if f.name not in schema.PARTITION_COLUMNS]
    arrays = []
    for field in fields:
        values = [row.get(field.name) for row in finished]
        try:
            arrays.append(column(values, field.type))
        except (TypeError, OverflowError, ValueError):
            arrays.append(_blame(table, field, values))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, schema.SCHEMAS[table].metadata))


def _blame(table: str, field: pa.Field, values: Sequence[object]) -> pa.Array:
    """Find the row at fault and say so."""
    for index, value in enumerate(values):
        try:
            column([value], field.type)
        except (TypeError, OverflowError, ValueError) as error:
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
            raise RowError(
                f"{table}: row {index}: {field.name}={shown} does not fit {field.type} ({error})"
            ) from None
    raise RowError(f"{table}: {field.name} does not fit {field.type}")


def to_rows(content: pa.Table) -> list[dict[str, Any]]:
    """An Arrow table as row dicts, times as datetimes in UTC.

    As `Table.to_pylist`, which imports pandas as soon as it meets a time.
    """
    columns = []
    for field, values in zip(content.schema, content.columns, strict=True):
        if pa.types.is_timestamp(field.type):
            micro = values.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
            columns.append([None if m is None else _EPOCH + m * _MICROSECOND for m in micro])
        else:
            columns.append(values.to_pylist())
    names = content.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
