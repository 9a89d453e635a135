import math
from pathlib import Path
from typing import Any

import pytest

from visgen_results import load
from visgen_results.reading import failure_reason, read_results


def test_only_the_newest_ok_run_of_a_cell_counts(folder: Any) -> None:
    folder.run({"fid": 9.0}, cell_key="a")
    newest = folder.run({"fid": 7.0}, cell_key="a")
    folder.run({"fid": 5.0}, cell_key="a", status="crash")
    results = read_results(folder.root)
    assert [(row["run_id"], row["value"]) for row in results.numbers] == [(newest, 7.0)]
    assert results.failed == []


def test_a_cell_with_no_ok_run_is_failed_once_by_its_newest_run(folder: Any) -> None:
    folder.run(cell_key="a", status="crash")
    newest = folder.run(cell_key="a", status="oom")
    results = read_results(folder.root)
    assert [row["run_id"] for row in results.failed] == [newest]


def test_numbers_get_what_they_left_to_their_run_and_machine(folder: Any) -> None:
    folder.machine(torch="2.14.1", driver="580.1")
    run_id = folder.run(weights="zoo:x", model="m")
    row = {"cell_key": "cell-1", "metric": "fid", "stat": "value", "value": 1.0}
    folder.store.append("metrics", [row], kind="quality", run_id=run_id)
    number = read_results(folder.root).numbers[0]
    assert (number["model"], number["weights"], number["dataset"]) == ("m", "zoo:x", "digits:8")
    assert (number["torch"], number["driver"]) == ("2.14.1", "580.1")


def test_broken_files_are_named_not_fatal(folder: Any) -> None:
    folder.run({"fid": 1.0})
    broken = folder.store.path("metrics", "quality", "torn")
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_bytes(b"PAR1 and then nothing")
    told: list[object] = []
    results = read_results(folder.root, told.append)
    assert len(results.numbers) == 1
    assert [problem.path for problem in results.problems] == [broken]
    assert told == list(results.problems)


def test_a_folder_without_results_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no results .*run a suite with --out"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"status": "skipped", "invalid_reason": "no GPU"}, "no GPU"),
        ({"status": "oom", "error_type": "OutOfMemoryError", "error_msg": "8 GiB"},
         "OutOfMemoryError: 8 GiB"),
        ({"status": "crash", "signal": 9}, "ended by signal 9"),
        ({"status": "crash", "exit_code": 1}, "exit code 1"),
        ({"status": "error"}, "no reason was recorded"),
    ],
)  # fmt: skip
def test_every_failure_has_a_reason(folder: Any, columns: dict[str, Any], text: str) -> None:
    folder.run(**columns)
    assert failure_reason(read_results(folder.root).failed[0]) == text


def test_load_gives_a_frame_of_a_folder_or_a_file(folder: Any) -> None:
    folder.run({"fid": 2.0}, cell_key="a")
    run_id = folder.run([{"metric": "fid", "value": None, "reason": "no weights"}], cell_key="a")
    frame = load(folder.root)
    assert frame["metric"].tolist() == ["fid", "fid"]
    assert load(folder.root, only_latest=True)["run_id"].tolist() == [run_id]
    assert math.isnan(frame["value"].tolist()[1])
    assert frame["reason"].tolist()[1] == "no weights"
    assert load(folder.root, "runs")["kind"].tolist() == ["quality", "quality"]
    assert load(folder.store.path("metrics", "quality", run_id))["reason"].tolist() == [
        "no weights"
    ]
    with pytest.raises(ValueError, match="no result folder or file"):
        load(folder.root / "nowhere")
