import datetime
import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visgen_results import schema, store
from visgen_results.rows import RowError
from visgen_results.store import Problem, ResultFileWarning, Store, new_run_id, run_day

FIXTURE = Path(__file__).parent / "fixtures" / "runs-v1-without-threads.parquet"
ENDED = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
RUN: dict[str, Any] = {"cell_key": "c", "status": "ok", "ended_at": ENDED}
METRIC: dict[str, Any] = {"cell_key": "c", "metric": "fid", "stat": "value", "value": 1.0}


def visible(root: Path) -> list[Path]:
    return sorted(root.rglob("*.parquet"))


def temporaries(root: Path) -> list[Path]:
    return sorted(root.rglob(".*.tmp"))


def append_many(root: Path, count: int) -> None:
    for number in range(count):
        Store(root).append("runs", [RUN], kind="train", run_id=f"r{number:03}")


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    start = "import os, resource, signal, sys\nfrom visgen_results.store import Store, new_run_id\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_run_ids_have_ulid_layout_and_rise() -> None:
    ids = [new_run_id() for _ in range(2000)]
    assert ids == sorted(set(ids))
    assert all(len(i) == 26 and set(i) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for i in ids)


def test_a_run_id_holds_its_day() -> None:
    assert run_day(new_run_id()) == f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    assert run_day("01ARZ3NDEKTSV4RRFFQ69G5FAV") == "2016-07-30"  # the ULID specification's example


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    run_id = new_run_id()
    path = Store(tmp_path).append("metrics", [METRIC], kind="quality", run_id=run_id)
    assert path.relative_to(tmp_path).parts[:3] == ("metrics", "v=1", "kind=quality")
    assert path.name == f"{run_id}-0.parquet"
    content = Store(tmp_path).read("metrics")
    assert content.schema.equals(schema.METRICS, check_metadata=False)
    row = content.to_pylist()[0]
    assert row["run_id"] == run_id
    assert row["kind"] == "quality"
    assert row["value"] == 1.0
    assert row["protocol"] is None


def test_null_and_nan_survive_the_disk(tmp_path: Path) -> None:
    rows = [METRIC | {"value": math.nan}, METRIC | {"metric": "kid", "value": None, "reason": "no"}]
    Store(tmp_path).append("metrics", rows, kind="quality", run_id=new_run_id())
    first, second = Store(tmp_path).read("metrics").column("value").to_pylist()
    assert math.isnan(first)
    assert second is None


def test_pandas_and_duckdb_read_the_folder_without_us(tmp_path: Path) -> None:
    import duckdb
    import pandas

    Store(tmp_path).append("runs", [RUN], kind="train", run_id="007")
    frame = pandas.read_parquet(tmp_path / "runs")
    assert frame["run_id"].tolist() == ["007"]
    assert frame["kind"].tolist() == ["train"]
    glob = f"{tmp_path}/runs/**/*.parquet"
    sql = f"select kind, run_id from read_parquet('{glob}', union_by_name=true)"
    with duckdb.connect() as connection:
        assert connection.execute(sql).fetchall() == [("train", "007")]


def test_a_file_is_never_rewritten(tmp_path: Path) -> None:
    root = Store(tmp_path)
    path = root.append("runs", [RUN], kind="train", run_id="a")
    before = path.read_bytes()
    with pytest.raises(RowError, match="never rewritten"):
        root.append("runs", [RUN | {"status": "oom"}], kind="train", run_id="a")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": "../../x"}, "is no file name"),
        ({"writer": ".hidden"}, "is no file name"),
        ({"kind": "qualty"}, "nearest: 'quality'"),
        ({"rows": []}, "no rows"),
        ({"rows": [RUN | {"kind": "kernel"}]}, "row has kind='kernel'"),
        ({"rows": [RUN | {"run_id": "b"}]}, "row has run_id='b'"),
        ({"rows": [RUN | {"modle": "m"}]}, "nearest: 'model'"),
        ({"table": "run"}, "no table 'run'"),
    ],
)
def test_a_refused_row_writes_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {"table": "runs", "rows": [RUN], "kind": "train", "run_id": "a"} | change
    with pytest.raises(RowError, match=message):
        Store(tmp_path).append(given.pop("table"), given.pop("rows"), **given)
    assert list(tmp_path.iterdir()) == []


def test_kill_between_write_and_rename_leaves_nothing_visible(tmp_path: Path) -> None:
    code = (
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "row = {'cell_key': 'c', 'status': 'ok'}\n"
        "Store(sys.argv[1]).append('runs', [row], kind='train', run_id=new_run_id())\n"
    )
    assert child(code, tmp_path).returncode == -signal.SIGKILL
    assert visible(tmp_path) == []
    assert len(temporaries(tmp_path)) == 1  # the kill came after the write
    assert Store(tmp_path).read("runs").num_rows == 0
    assert "killed" in str(Store(tmp_path).validate()[0])
    Store(tmp_path).append("runs", [RUN], kind="train", run_id=new_run_id())
    assert Store(tmp_path).read("runs").num_rows == 1


def test_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "row = {'cell_key': 'c', 'status': 'ok', 'error_msg': os.urandom(2000).hex()}\n"
        "try:\n"
        "    Store(sys.argv[1]).append('runs', [row], kind='train', run_id='a')\n"
        "except OSError as error:\n"
        "    print(error.errno, error)\n"
    )
    done = child(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{errno.EFBIG} ")
    assert "a-0.parquet" in done.stdout
    assert visible(tmp_path) == temporaries(tmp_path) == []


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a tmpfs")
def test_tiny_tmpfs_that_fills_up_keeps_only_whole_files(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount here; the RLIMIT_FSIZE test stands for it")
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            append_many(tmp_path, 100)
        assert caught.value.errno == errno.ENOSPC
        written = visible(tmp_path)
        assert 0 < len(written) < 100
        assert Store(tmp_path).read("runs").num_rows == len(written)
        assert temporaries(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_folder_that_may_not_be_written_is_named() -> None:
    code = (
        "if os.geteuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    row = {'cell_key': 'c', 'status': 'ok'}\n"
        "    Store(sys.argv[1]).append('runs', [row], kind='train', run_id='a')\n"
        "except OSError as error:\n"
        "    print(error.errno, error)\n"
    )
    # not below tmp_path: its parents are closed to the user that the child becomes
    with tempfile.TemporaryDirectory() as closed:
        os.chmod(closed, 0o555)
        done = child(code, closed)
        assert done.stdout.startswith(f"{errno.EACCES} "), done.stderr
        assert closed in done.stdout
        assert os.listdir(closed) == []


def test_two_writers_at_once_lose_no_row(tmp_path: Path) -> None:
    code = (
        "row = {'cell_key': 'c', 'status': 'ok'}\n"
        "for n in range(15):\n"
        "    run_id = new_run_id()\n"
        "    Store(sys.argv[1]).append('runs', [row], kind='train', run_id=run_id)\n"
        "    print(run_id)\n"
    )
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: child(code, tmp_path), range(2)))
    written = {line for one in done for line in one.stdout.split()}
    assert len(written) == 30
    assert set(Store(tmp_path).read("runs").column("run_id").to_pylist()) == written


def test_a_reader_beside_a_writer_sees_only_whole_rows(tmp_path: Path) -> None:
    def write() -> None:
        for _ in range(25):
            rows = [METRIC | {"phase": str(i)} for i in range(20)]
            Store(tmp_path).append("metrics", rows, kind="quality", run_id=new_run_id())

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            assert Store(tmp_path).read("metrics").num_rows % 20 == 0
        writing.result()
    assert Store(tmp_path).read("metrics").num_rows == 500


def test_unreadable_and_foreign_files_are_named_and_left_out(tmp_path: Path) -> None:
    good = Store(tmp_path).append("runs", [RUN], kind="train", run_id="a")
    (good.parent / "torn.parquet").write_bytes(good.read_bytes()[:500])
    pq.write_table(pa.table({"x": [1]}), good.parent / "foreign.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "runs" / "elsewhere.parquet")
    (good.parent / "notes.txt").write_text("not a table")
    problems: list[Problem] = []
    assert Store(tmp_path).read("runs", problems.append).num_rows == 1
    assert {problem.path.name for problem in problems} == {
        "torn.parquet", "foreign.parquet", "elsewhere.parquet",
    }  # fmt: skip
    with pytest.warns(ResultFileWarning) as caught:
        Store(tmp_path).read("runs")
    assert len(caught) == 3


def test_another_tables_file_is_foreign(tmp_path: Path) -> None:
    path = Store(tmp_path).append("metrics", [METRIC], kind="quality", run_id="a")
    wrong = tmp_path / "runs" / path.relative_to(tmp_path / "metrics")
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(path.read_bytes())
    with pytest.warns(ResultFileWarning, match=r"not a runs file of visgen \(.*visgen.metrics"):
        assert Store(tmp_path).read("runs").num_rows == 0


def test_files_of_a_newer_schema_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Store(tmp_path).append("runs", [RUN], kind="train", run_id="a")
    metadata = dict(schema.RUNS.metadata) | {b"visgen.schema_version": b"2"}
    pq.write_table(pq.ParquetFile(path).read().replace_schema_metadata(metadata), path)
    with pytest.warns(ResultFileWarning, match="schema version 2; this visgen reads 1"):
        assert Store(tmp_path).read("runs").num_rows == 0


def test_an_older_file_without_a_later_column_is_read(tmp_path: Path) -> None:
    assert "threads" not in pq.read_schema(FIXTURE).names
    folder = tmp_path / "runs/v=1/kind=quality/day=2026-11-01"
    folder.mkdir(parents=True)
    (folder / "old-0.parquet").write_bytes(FIXTURE.read_bytes())
    Store(tmp_path).append("runs", [RUN | {"threads": 4}], kind="quality", run_id=new_run_id())
    content = Store(tmp_path).read("runs")
    assert content.column("threads").to_pylist() == [None, 4]
    assert content.column("model").to_pylist() == ["dcgan-old", None]


def test_a_column_of_another_type_is_a_problem_not_a_guess(tmp_path: Path) -> None:
    path = Store(tmp_path).append("runs", [RUN], kind="train", run_id="a")
    content = pq.ParquetFile(path).read()
    at = content.column_names.index("seed")
    text = pa.chunked_array([pa.array(["007"])])
    changed = content.set_column(at, "seed", text).replace_schema_metadata(schema.RUNS.metadata)
    pq.write_table(changed, path)
    with pytest.warns(ResultFileWarning, match="column seed is string, expected int64"):
        Store(tmp_path).read("runs")


def test_latest_is_the_newest_ok_row_of_each_cell(tmp_path: Path) -> None:
    later = ENDED + datetime.timedelta(seconds=5)
    for run_id, change in (
        ("a", {"ended_at": later}), ("b", {}), ("c", {"ended_at": later, "status": "oom"}),
        ("d", {"cell_key": "other", "status": "crash"}),
        ("e", {"cell_key": "tie"}), ("f", {"cell_key": "tie"}),
    ):  # fmt: skip
        Store(tmp_path).append("runs", [RUN | change], kind="train", run_id=run_id)
    assert Store(tmp_path).latest().column("run_id").to_pylist() == ["a", "f"]


def test_a_missing_folder_has_no_rows(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing").read("metrics").num_rows == 0
    with pytest.raises(ValueError, match="no table 'metric'; nearest: 'metrics'"):
        Store(tmp_path).read("metric")


def test_the_folder_is_synced_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spied(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done.append(name)
            return real(*arguments)

        return call

    monkeypatch.setattr(store.os, "fsync", spied("fsync", os.fsync))
    monkeypatch.setattr(store.os, "replace", spied("replace", os.replace))
    Store(tmp_path).append("runs", [RUN], kind="train", run_id="a")
    assert done[-3:] == ["fsync", "replace", "fsync"]


def test_committing_a_row_costs_under_20_ms(tmp_path: Path) -> None:
    took = []
    for _ in range(20):
        start = time.process_time()  # not the clock: other processes and the disk are not ours
        Store(tmp_path).append("runs", [RUN], kind="train", run_id=new_run_id())
        took.append(time.process_time() - start)
    assert min(took) < 0.020
