import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visgen_results.store import Store
from visgen_results.upkeep import MergeConflict, compact, merge, validate

ENDED = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
RUN: dict[str, Any] = {"cell_key": "c", "status": "ok", "ended_at": ENDED}
METRIC: dict[str, Any] = {"cell_key": "c", "metric": "fid", "stat": "value"}
OLD = "01ARZ3NDEKTSV4RRFFQ69G5F"  # ids of 2016: a day that is closed


def fill(root: Path, *names: str, value: float = 1.0) -> Store:
    store = Store(root)
    for name in names:
        rows = [METRIC | {"value": value, "phase": "total"}]
        store.append("metrics", rows, kind="quality", run_id=OLD + name)
        store.append("runs", [RUN], kind="quality", run_id=OLD + name)
    return store


def ids(root: Path, table: str = "runs") -> list[str]:
    return sorted(run_id[-2:] for run_id in Store(root).read(table).column("run_id").to_pylist())


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.parquet"))


def test_merge_brings_runs_together_and_is_idempotent(tmp_path: Path) -> None:
    a, b, target = tmp_path / "a", tmp_path / "b", tmp_path / "target"
    fill(a, "AA", "AB")
    fill(b, "AB", "AC")
    first = merge([a, b], target)
    assert (first.runs_added, first.runs_known) == (3, 0)
    assert ids(target) == ids(target, "metrics") == ["AA", "AB", "AC"]
    before = files(target)
    again = merge([a, b], target)
    assert (again.runs_added, again.runs_known, again.files_written) == (0, 3, 0)
    assert files(target) == before
    assert validate(target) == []


def test_merge_refuses_a_run_with_other_content_and_writes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "a", "AA", value=1.0)
    fill(tmp_path / "b", "AA", "AB", value=2.0)
    with pytest.raises(MergeConflict, match=f"run {OLD}AA differs"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_merge_takes_compacted_folders(tmp_path: Path) -> None:
    fill(tmp_path / "a", "AA", "AB")
    fill(tmp_path / "b", "AB", "AC")
    compact(tmp_path / "a")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "target")
    assert ids(tmp_path / "target") == ["AA", "AB", "AC"]


def test_merge_refuses_what_is_no_result_folder(tmp_path: Path) -> None:
    fill(tmp_path / "a", "AA")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no results"):
        merge([tmp_path / "empty"], tmp_path / "a")
    with pytest.raises(ValueError, match="into itself"):
        merge([tmp_path / "a"], tmp_path / "a")
    broken = files(tmp_path / "a")[0]
    broken.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"cannot merge: .*unreadable"):
        merge([tmp_path / "a"], tmp_path / "target")


def test_merge_copies_pictures_but_follows_no_link(tmp_path: Path) -> None:
    fill(tmp_path / "a", "AA")
    pictures = tmp_path / "a" / "artifacts" / "spec"
    pictures.mkdir(parents=True)
    (pictures / "samples.png").write_bytes(b"picture")
    (tmp_path / "secret").write_text("secret")
    (pictures / "link.png").symlink_to(tmp_path / "secret")
    merge([tmp_path / "a"], tmp_path / "target")
    copied = tmp_path / "target" / "artifacts" / "spec"
    assert [path.name for path in copied.iterdir()] == ["samples.png"]
    (pictures / "samples.png").write_bytes(b"another")
    assert merge([tmp_path / "a"], tmp_path / "target").kept == (copied / "samples.png",)
    assert (copied / "samples.png").read_bytes() == b"picture"


def test_compact_keeps_every_row_in_one_file_per_table(tmp_path: Path) -> None:
    fill(tmp_path, "AA", "AB", "AC")
    runs, metrics = Store(tmp_path).read("runs"), Store(tmp_path).read("metrics")
    done = compact(tmp_path)
    assert (done.files_before, done.files_after, done.problems) == (6, 2, ())
    assert len(files(tmp_path)) == 2
    assert Store(tmp_path).read("runs").sort_by("run_id") == runs.sort_by("run_id")
    assert Store(tmp_path).read("metrics").sort_by("run_id") == metrics.sort_by("run_id")
    assert compact(tmp_path).files_after == 2


def test_compact_leaves_today_alone(tmp_path: Path) -> None:
    fill(tmp_path, "AA", "AB")
    done = compact(tmp_path, today=datetime.date(2016, 7, 30))
    assert done.files_before == done.files_after == 4


def test_rows_appended_after_a_compaction_are_added_to_it(tmp_path: Path) -> None:
    fill(tmp_path, "AA", "AB")
    compact(tmp_path)
    fill(tmp_path, "AC")
    assert ids(tmp_path) == ["AA", "AB", "AC"]
    compact(tmp_path)
    assert ids(tmp_path) == ["AA", "AB", "AC"]
    assert len(files(tmp_path)) == 2


def test_kill_before_the_parts_are_deleted_counts_no_row_twice(tmp_path: Path) -> None:
    fill(tmp_path, "AA", "AB")
    code = (
        "import os, signal, sys, pathlib\n"
        "from visgen_results.upkeep import compact\n"
        "pathlib.Path.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "compact(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -9
    assert len(files(tmp_path)) == 5  # the first table's whole, and all parts
    assert ids(tmp_path) == ids(tmp_path, "metrics") == ["AA", "AB"]
    compact(tmp_path)
    assert len(files(tmp_path)) == 2
    assert ids(tmp_path) == ids(tmp_path, "metrics") == ["AA", "AB"]


def test_compact_leaves_a_day_with_a_broken_file_as_it_is(tmp_path: Path) -> None:
    store = fill(tmp_path, "AA", "AB")
    broken = store.path("runs", "quality", OLD + "AA")
    broken.write_bytes(b"PAR1")
    done = compact(tmp_path)
    assert [problem.path for problem in done.problems] == [broken.parent]
    assert broken.exists()
    assert store.path("runs", "quality", OLD + "AB").exists()


def test_validate_is_silent_on_a_good_folder(tmp_path: Path) -> None:
    fill(tmp_path, "AA", "AB")
    assert validate(tmp_path) == Store(tmp_path).validate() == []


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda s: s.append("metrics", [METRIC | {"value": 1.0}], kind="quality", run_id="lost"),
         "run lost has no row in runs"),
        (lambda s: s.append("runs", [RUN], kind="quality", run_id=OLD + "AA", writer="1"),
         f"2 rows for ({OLD}AA)"),
        (lambda s: s.path("runs", "quality", OLD + "AA").write_bytes(b""), "unreadable"),
        (lambda s: shutil.copy(s.path("runs", "quality", OLD + "AA"), s.root / "runs/a.parquet"),
         "lies outside v=/kind=/day="),
        (lambda s: (s.root / "runs/.x.parquet.1-ab.tmp").write_bytes(b""), "was killed"),
    ],
)  # fmt: skip
def test_validate_names_what_is_wrong(
    tmp_path: Path, harm: Callable[[Store], object], reason: str
) -> None:
    harm(fill(tmp_path, "AA"))
    assert any(reason in str(problem) for problem in validate(tmp_path))


def test_merge_stopped_by_a_full_disk_can_be_repeated(tmp_path: Path) -> None:
    fill(tmp_path / "a", "AA", "AB")
    code = (
        "import resource, sys\n"
        "from visgen_results.upkeep import merge\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "merge([sys.argv[1]], sys.argv[2])\n"
    )
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a"), str(target)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "OSError: [Errno 27] cannot write results" in done.stderr
    assert ids(target) == []
    merge([tmp_path / "a"], target)
    assert ids(target) == ["AA", "AB"]
    assert os.listdir(target) != []
