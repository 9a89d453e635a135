"""Scoring a folder: the score, its floor, and never the two at different sample counts."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from visgen.data import open_data
from visgen_bench.cell import QualityCell
from visgen_bench.evaluate import evaluate, suite_of
from visgen_bench.plan import Options
from visgen_bench.suite import Suite, SuiteError
from visgen_results.leaderboard import leaderboard


def pictures(folder: Path, start: int, count: int) -> Path:
    folder.mkdir()
    data = open_data("digits:8")
    for number, picture in enumerate(data.images(torch.arange(start, start + count))):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(
            folder / f"{number}.png"
        )
    return folder


def quality_cells(suite: Suite) -> list[QualityCell]:
    return [placed.cell for placed in suite.cells if isinstance(placed.cell, QualityCell)]


def options(tmp_path: Path) -> Options:
    return Options(out=tmp_path / "out", in_process=True, offline=True)


def test_a_folder_against_a_shipped_set_stands_beside_five_draws_of_real_images(
    tmp_path: Path,
) -> None:
    mine = pictures(tmp_path / "mine", 0, 12)
    found = evaluate(mine, "digits:8", ["copy_share"], options=options(tmp_path))
    rows = [row for row in found.rows if row["metric"] == "copy_share"]
    floors = [row for row in rows if row["model"] == "real-images"]
    (own,) = [row for row in rows if row["model"] == "folder:mine"]
    assert len(floors) == 5
    assert {row["n"] for row in rows} == {12}
    assert [row["value"] for row in floors] == [1.0] * 5
    assert own["value"] > 0.5, "most of the digits are training images"


def test_more_samples_than_a_floor_can_have_are_scored_twice(tmp_path: Path) -> None:
    mine, real = pictures(tmp_path / "mine", 0, 9), pictures(tmp_path / "real", 20, 10)
    found = suite_of(str(mine), str(real), ["precision"], options(tmp_path))
    cells = quality_cells(found)
    assert [(c.split, c.samples, c.images_split) for c in cells] == [
        ("all", None, "all"),
        ("half-b", 5, "all"),
        ("half-b", 5, "half-a"),
    ]


def test_two_folders_have_the_distance_of_halves_as_their_floor(tmp_path: Path) -> None:
    mine, real = pictures(tmp_path / "mine", 0, 6), pictures(tmp_path / "real", 20, 12)
    found = evaluate(mine, str(real), ["precision"], options=options(tmp_path))
    rows = [row for row in found.rows if row["metric"] == "precision"]
    by_split = {(row["model"], row["split"]): (row["n"], row["n_ref"]) for row in rows}
    assert by_split == {
        ("folder:mine", "all"): (6, 12),
        ("folder:mine", "half-b"): (6, 6),
        ("folder:real", "half-b"): (6, 6),
    }


def test_two_folders_of_one_name_are_two_rows(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    mine = pictures(tmp_path / "a" / "imgs", 0, 6)
    real = pictures(tmp_path / "b" / "imgs", 20, 12)
    found = evaluate(mine, str(real), ["precision"], options=options(tmp_path))
    board = leaderboard(found.plan.options.out)
    (halves,) = [one for one in board.boards if one.group["split"] == "half-b"]
    assert [row.role for row in halves.rows] == ["ranked", "reference"]
    score, floor = (row.label for row in halves.rows)
    assert score != floor
    assert (score.startswith("folder:imgs "), floor.endswith("-half-a")) == (True, True)
    (whole,) = [one for one in board.boards if one.group["split"] == "all"]
    assert whole.rows[0].label == score, "one name in both tables"


def test_a_folder_without_pictures_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SuiteError, match="holds no picture"):
        evaluate(tmp_path / "empty", "digits:8", options=options(tmp_path))
    with pytest.raises(SuiteError, match="no folder"):
        evaluate(tmp_path / "none", "digits:8", options=options(tmp_path))
    mine = pictures(tmp_path / "mine", 0, 2)
    with pytest.raises(SuiteError, match='nearest: "digits:8"'):
        evaluate(mine, "digit:8", options=options(tmp_path))
    assert not (tmp_path / "out").exists()


def test_the_default_metrics_suit_the_reference(tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 0, 2)
    digits = quality_cells(suite_of(str(mine), "digits:8", None, options(tmp_path)))[0]
    folder = quality_cells(suite_of(str(mine), str(mine), None, options(tmp_path)))[0]
    assert "digit_classes" in digits.metrics
    assert folder.metrics == ("fd_lite0", "kid_lite0", "precision", "recall")
