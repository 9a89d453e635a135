import re
from pathlib import Path
from typing import Any

import pytest

from visgen_results.query import QueryError, query

README = Path(__file__).parents[2] / "results" / "README.md"


@pytest.fixture
def results(folder: Any) -> Path:
    folder.machine()
    folder.run({"fd_lite0": 0.5}, cell_key="a", seed=0)
    folder.run({"fd_lite0": 0.4}, cell_key="a", seed=0)
    folder.run([{"metric": "kid_lite0", "value": None, "reason": "no extractor"}], cell_key="b")
    folder.run(status="oom", cell_key="c")
    folder.run({"throughput": 9.0}, kind="performance", cell_key="d", series={"latency": [0.1]})
    return folder.root


def test_latest_is_the_newest_ok_run_of_each_cell(results: Path) -> None:
    sql = "select value from metrics join latest using (run_id) where metric = 'fd_lite0'"
    assert query(results, sql)["value"].tolist() == [0.4]
    assert query(results, "select count(*) as n from latest")["n"].tolist() == [3]


def test_all_tables_are_there_with_their_kind(results: Path) -> None:
    for table, rows in (("runs", 5), ("metrics", 4), ("measurements", 1), ("machines", 1)):
        counted = query(results, f"select count(*) as n, count(kind) as k from {table}")
        assert counted.iloc[0].tolist() == [rows, rows]


def test_null_is_null_in_sql(results: Path) -> None:
    frame = query(results, "select reason from metrics where value is null")
    assert frame["reason"].tolist() == ["no extractor"]


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/hostname')",
        "select * from '/etc/hostname'",
        "copy runs to 'stolen.csv'",
        "attach 'other.db'",
        "install httpfs",
        "set enable_external_access = true",
    ],
)
def test_a_query_reaches_no_file(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QueryError):
        query(results, sql)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_query_changes_nothing_on_disk(results: Path) -> None:
    query(results, "delete from runs")
    assert query(results, "select count(*) as n from runs")["n"].tolist() == [5]


def test_python_variables_are_out_of_reach(results: Path) -> None:
    secret = query(results, "select 1 as x")
    assert len(secret) == 1
    with pytest.raises(QueryError, match="secret does not exist"):
        query(results, "select * from secret")


def test_a_mistake_names_the_tables(results: Path) -> None:
    with pytest.raises(QueryError, match="runs, metrics, measurements, machines, latest"):
        query(results, "select * from metric")
    with pytest.raises(QueryError, match="gives no table"):
        query(results, "")


def test_every_query_of_the_readme_runs(results: Path) -> None:
    queries = re.findall(r'query\("[^"]+", """(.*?)"""\)', README.read_text("utf-8"), re.DOTALL)
    assert len(queries) == 3
    answers = [query(results, sql) for sql in queries]
    assert answers[0]["fd"].tolist() == [0.4]
    assert answers[1]["status"].tolist() == ["oom"]
    assert answers[2]["per_s"].tolist() == [9.0]
