"""SQL over the result tables with DuckDB, in memory, with no way out to files or the network."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from visgen_results import schema
from visgen_results.store import Store, check_holds_results

if TYPE_CHECKING:
    import pandas as pd


class QueryError(ValueError):
    """A query that DuckDB refuses."""


def connect(root: Path | str) -> duckdb.DuckDBPyConnection:
    """A connection with `runs`, `metrics`, `measurements`, `machines` and the view `latest`.

    `latest` is the newest ok row of `runs` per cell_key. The tables are copies in memory: nothing a
    query does reaches the result folder, and reading or writing files from SQL is switched off.
    Raises `ValueError` if the folder holds no result table.
    """
    store = Store(root)
    check_holds_results(store.root)
    connection = duckdb.connect(":memory:", config={"python_enable_replacements": False})
    for table in schema.TABLES:
        connection.register("incoming", store.read(table))
        connection.execute(f"create table {table} as select * from incoming")  # fixed names
        connection.unregister("incoming")
    connection.execute(
        "create view latest as select * from runs where status = 'ok' qualify row_number() over "
        "(partition by cell_key order by ended_at desc nulls last, run_id desc) = 1"
    )
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def query(root: Path | str, sql: str) -> "pd.DataFrame":
    """The answer to one SELECT over a result folder.

    Raises `QueryError` with DuckDB's message, and `ValueError` if the folder holds no result table.
    """
    with connect(root) as connection:
        try:
            answer = connection.sql(sql)
            if answer is None:
                raise QueryError(f"the statement gives no table: {sql!r}; write a SELECT")
            return answer.df()
        except duckdb.Error as error:
            text = " ".join(str(error).replace("^", "").split())  # a mistake is one line
            raise QueryError(f"{text} (tables: {', '.join(schema.TABLES)}, latest)") from error
