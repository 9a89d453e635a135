import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visgen_results.clips import shown_clips
from visgen_results.reading import read_results
from visgen_results.report.films import Budget, Films, film_of, films, webp_duration
from visgen_results.report.pictures import LARGEST_PICTURE, Picture

CLIPS: dict[str, Any] = {
    "task": "video-generation", "resolution": "4x3x8x8", "dataset": "moving-digits",
}  # fmt: skip


def webp(frames: int = 4, level: int = 0, step: int = 15) -> bytes:
    pages = [Image.new("RGB", (8, 8), (level, step * i, 0)) for i in range(frames)]
    file = io.BytesIO()
    pages[0].save(
        file, "webp", save_all=True, append_images=pages[1:], duration=125, loop=0, quality=90
    )
    return file.getvalue()


def artifacts(folder: Any, key: str, level: int = 0) -> str:
    place = folder.root / "artifacts" / key
    place.mkdir(parents=True)
    for name in ("samples", "reference"):
        (place / f"{name}.webp").write_bytes(webp(level=level))
        Image.fromarray(np.full((8, 32, 3), level, np.uint8)).save(place / f"{name}.png")
    return f"artifacts/{key}"


def found(folder: Any, budget: Budget | None = None) -> list[Films]:
    results = read_results(folder.root)
    return films(results, "moving-digits", shown_clips(results), budget or Budget())


def test_the_duration_is_read_from_the_file() -> None:
    assert webp_duration(webp(4), "x") == 500
    assert webp_duration(webp(16), "x") == 2000


def test_a_clip_in_which_nothing_moves_is_shown_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(webp(16, step=0))
    film = film_of(tmp_path, Path("a.webp"), "mean-clip")
    assert film.label == "mean-clip; nothing moves"
    assert film.uri


def test_a_film_says_in_its_alternative_text_how_long_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(webp(4))
    film = film_of(tmp_path, Path("a.webp"), "my clips")
    assert film.label == "my clips; 0.5 s, again and again"
    assert film.uri.startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "a.webp is not there"),
        (b"", "a.webp is no WebP file"),
        (b"RIFF\x00\x00", "a.webp is no WebP file"),
        (b"<svg onload=alert(1)>", "a.webp is no WebP file"),
        (webp(4)[:-40], "a.webp is damaged: "),
        (webp(4)[:9], "a.webp is no WebP file"),
        (b"RIFF" + struct.pack("<I", 4) + b"WEBP", "it holds no picture"),
        (b"RIFF" + struct.pack("<I", 12) + b"WEBPANMF" + b"\xff" * 4, "reaches beyond its end"),
        (bytes(LARGEST_PICTURE + 1), "a.webp is larger than 4 MiB"),
    ],
)
def test_a_film_that_is_missing_or_damaged_is_a_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "a.webp").write_bytes(content)
    film = film_of(tmp_path, Path("a.webp"), "clips")
    assert film.uri == ""
    assert reason in film.reason


def test_a_film_outside_the_result_folder_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(webp())
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link.webp").symlink_to(tmp_path / "a.webp")
    for path in ("../a.webp", "link.webp", str(tmp_path / "a.webp")):
        film = film_of(tmp_path / "results", Path(path), "clips")
        assert "lies outside the result folder" in film.reason


def test_real_clips_stand_once_for_all_samples_of_their_kind(folder: Any) -> None:
    for model, level in (("a", 10), ("b", 20)):
        path = artifacts(folder, model, level)
        folder.run({"psnr": 1.0}, model=model, artifacts_path=path, **CLIPS)
    path = artifacts(folder, "other", 30)
    folder.run({"psnr": 1.0}, model="a", split="test_comp", artifacts_path=path, **CLIPS)
    groups = found(folder)
    assert [(one.setting, len(one.samples)) for one in groups] == [
        ("test split, 4x3x8x8", 2),
        ("test_comp split, 4x3x8x8", 1),
    ]
    assert groups[0].real.film.uri == groups[0].samples[0].film.uri, "of the first cell"
    assert groups[0].samples[0].film.uri != groups[0].samples[1].film.uri


def test_real_clips_are_taken_from_the_first_cell_that_left_them_whole(folder: Any) -> None:
    for model in "ab":
        path = artifacts(folder, model)
        folder.run({"psnr": 1.0}, model=model, artifacts_path=path, **CLIPS)
    (folder.root / "artifacts" / "a" / "reference.webp").write_bytes(b"torn")
    (group,) = found(folder)
    assert group.real.film.uri
    (folder.root / "artifacts" / "b" / "reference.webp").unlink()
    (group,) = found(folder)
    assert group.real.film.reason == "artifacts/a/reference.webp is no WebP file"


def test_what_does_not_fit_into_the_page_is_named(folder: Any) -> None:
    for model in "ab":
        path = artifacts(folder, model)
        folder.run({"psnr": 1.0}, model=model, artifacts_path=path, **CLIPS)
    most = 1200
    budget = Budget(most)
    (group,) = found(folder, budget)
    assert 0 < budget.used <= most
    assert group.samples[-1].film.uri == ""
    assert group.samples[-1].film.reason == (
        "artifacts/b/samples.webp: the page holds 0 MiB of films and strips already"
    )
    assert "one of more than 4 MiB is not shown" in budget.said


def test_a_picture_that_was_not_read_keeps_its_reason() -> None:
    lacking = Picture("a", "", "x.webp is not there", "x.webp")
    assert Budget(0).take(lacking) == lacking
