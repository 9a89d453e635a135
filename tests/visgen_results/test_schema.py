from pathlib import Path

import pyarrow as pa
import pytest

from visgen_results import schema

README = Path(__file__).parents[2] / "results" / "README.md"


@pytest.mark.parametrize("table", schema.TABLES)
def test_readme_shows_every_column_as_the_schema_has_it(table: str) -> None:
    assert schema.markdown(table) in README.read_text("utf-8")


@pytest.mark.parametrize("table", schema.TABLES)
def test_columns_have_a_meaning_and_appear_once(table: str) -> None:
    columns = schema.COLUMNS[table]
    assert len({column.name for column in columns}) == len(columns)
    assert all(column.meaning for column in columns)


@pytest.mark.parametrize("table", schema.TABLES)
def test_types_are_explicit_and_known_to_the_writer(table: str) -> None:
    known = {
        pa.string(), pa.float64(), pa.bool_(), pa.int16(), pa.int32(), pa.int64(),
        pa.timestamp("us", tz="UTC"),
    }  # fmt: skip
    assert {field.type for field in schema.SCHEMAS[table]} <= known


@pytest.mark.parametrize("table", schema.TABLES)
def test_parquet_metadata_names_table_and_version(table: str) -> None:
    metadata = schema.SCHEMAS[table].metadata
    assert metadata[b"visgen.schema_name"] == f"visgen.{table}".encode()
    assert int(metadata[b"visgen.schema_version"]) == schema.SCHEMA_VERSION


def test_columns_promised_to_other_packages_exist() -> None:
    promised = {
        "protocol", "comparable", "extractor", "n_ref", "predicted", "reason", "machine_id",
        "env_id", "threads", "attention",
    }  # fmt: skip
    assert promised <= set(schema.METRICS.names)
    assert {"kind", "artifacts_path", "config_json", "attention"} <= set(schema.RUNS.names)


def test_copies_are_the_columns_that_runs_and_metrics_share() -> None:
    run = {"run_id": "r", "cell_key": "c", "model": "m", "kind": "train", "log_path": "x"}
    assert schema.copies(run) == {"run_id": "r", "cell_key": "c", "model": "m"}
