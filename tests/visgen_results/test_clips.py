from typing import Any

import pytest

from visgen_results.clips import clip_count, frames_of, shown_clips
from visgen_results.leaderboard import leaderboard
from visgen_results.reading import read_results

CLIPS: dict[str, Any] = {
    "task": "video-generation", "resolution": "16x3x32x32", "dataset": "moving-digits",
    "model": "videogpt-tiny", "family": "videogpt", "artifacts_path": "artifacts/a",
}  # fmt: skip


def captions(folder: Any) -> list[str]:
    return [one.caption for one in shown_clips(read_results(folder.root))]


@pytest.mark.parametrize(
    ("resolution", "frames"),
    [("16x3x32x32", 16), ("3x32x32", None), (None, None), ("0x3x32x32", None), ("ax3x3x3", None)],
)
def test_only_a_clip_has_frames(resolution: str | None, frames: int | None) -> None:
    assert frames_of(resolution) == frames


def test_a_number_over_frames_counts_its_clips() -> None:
    row: dict[str, Any] = {"resolution": "16x3x32x32", "n": 256}
    assert clip_count(row | {"metric": "fd_lite0_frames"}) == 16
    assert clip_count(row | {"metric": "fvd_lite0_frames"}) == 256
    assert clip_count(row | {"metric": "fd_lite0_frames", "resolution": None}) == 256
    assert clip_count({"metric": "fvd", "resolution": "16x3x32x32", "n": None}) is None


def test_a_caption_names_model_weights_condition_sampling_n_and_seed(folder: Any) -> None:
    columns = CLIPS | {"variant": "class+frames top_k=64", "weights": "train:" + "ab" * 16}
    numbers = [
        {"metric": "psnr", "value": 20.0, "n": 24},
        {"metric": "fd_lite0_frames", "value": 1.0, "n": 24 * 16},
    ]
    folder.run(numbers, **columns)
    assert captions(folder) == [
        "videogpt-tiny, weights train:abababab, condition class+frames, sampling top_k=64, "
        "n = 24 clips, seed 0"
    ]


def test_a_folder_of_clips_is_named_by_its_content(folder: Any) -> None:
    columns = CLIPS | {"model": "videos:mine", "family": "folder", "weights": None}
    folder.run({"psnr": 20.0}, variant="cb4b3584", **columns)
    assert captions(folder) == ["videos:mine, content cb4b3584, n not recorded"]


def test_every_cell_is_shown_once_with_its_lowest_seed_and_references_last(folder: Any) -> None:
    reference = {"model": "a-real", "family": "reference", "weights": "fit"}
    folder.run({"psnr": 20.0}, **CLIPS | reference)
    for seed in (2, 1):
        folder.run({"psnr": 20.0}, **CLIPS, seed=seed)
    folder.run({"psnr": 20.0}, **CLIPS, variant="text")
    folder.run({"fid": 20.0})  # pictures
    found = shown_clips(read_results(folder.root))
    shown = [(one.run["model"], one.run["variant"], one.run["seed"]) for one in found]
    assert shown == [
        ("videogpt-tiny", "text", 0),
        ("videogpt-tiny", None, 1),
        ("a-real", None, 0),
    ]


def test_text_markdown_and_json_name_the_strips_of_frames(folder: Any) -> None:
    folder.run({"psnr": 20.0}, **CLIPS, variant="text guidance=2.0", common={"n": 8})
    board = leaderboard(folder.root)
    text = " ".join(board.to_text().split())
    assert "moving-digits, test: videogpt-tiny, weights zoo:tiny, condition text" in text
    assert "artifacts/a/samples.png (real: artifacts/a/reference.png)" in text
    markdown = board.to_markdown()
    assert "## Frames of clips" in markdown
    assert "| artifacts/a/samples.png | artifacts/a/reference.png |" in markdown
    (document,) = board.to_dict()["clips"]
    assert (document["sheet"], document["real"], document["split"]) == (
        "artifacts/a/samples.png", "artifacts/a/reference.png", "test",
    )  # fmt: skip


def test_pictures_leave_no_strips(folder: Any) -> None:
    folder.run({"fid": 20.0}, artifacts_path="artifacts/a")
    assert leaderboard(folder.root).clips == ()
    assert "Frames of clips" not in leaderboard(folder.root).to_text()
