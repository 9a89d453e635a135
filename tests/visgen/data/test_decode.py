from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visgen.data.decode import BrokenPicture, Picture, bombs_refused, decode


def read(path: Path) -> Picture:
    with bombs_refused():
        return decode(path)


def values(path: Path) -> list[list[list[int]]]:
    return np.asarray(read(path).pixels).tolist()


def test_photo_with_exif_orientation_six_stands_upright(tmp_path: Path) -> None:
    # Orientation 6: the stored picture must be turned a quarter clockwise, so its left column
    # (top to bottom) becomes the top row (right to left).
    stored = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    stored.resize((16, 32), Image.Resampling.NEAREST).save(
        tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0
    )
    assert values(tmp_path / "turned.png") == [[[0, 0, 255], [255, 0, 0]]]
    photo = read(tmp_path / "turned.jpg").pixels
    assert photo.size == (32, 16)
    assert np.abs(np.asarray(photo)[8, 4].astype(int) - [0, 0, 255]).max() <= 3
    assert np.abs(np.asarray(photo)[8, 28].astype(int) - [255, 0, 0]).max() <= 3


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    # 51 / 255 = 0.2 of black over white: 0.8 * 255 = 204.
    assert values(tmp_path / "alpha.png") == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_grey_with_alpha_and_transparent_palette_show_white_behind(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8)).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.gif", transparency=1)
    palette.save(tmp_path / "p.png")
    assert values(tmp_path / "la.png") == [[[10, 10, 10], [255, 255, 255]]]
    assert values(tmp_path / "p.gif") == [[[9, 8, 7], [255, 255, 255]]]
    assert values(tmp_path / "p.png") == [[[9, 8, 7], [1, 2, 3]]]
    assert read(tmp_path / "la.png").grey
    assert not read(tmp_path / "p.png").grey


def test_sixteen_bit_grey_is_divided_by_257_and_rounded(tmp_path: Path) -> None:
    stored = np.array([[0, 128, 129, 257, 32767, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(stored).save(tmp_path / "deep.png")
    Image.fromarray(stored).save(tmp_path / "deep.tif")
    expected = [[[v, v, v] for v in (0, 0, 1, 1, 127, 128, 255)]]
    assert values(tmp_path / "deep.png") == expected
    assert values(tmp_path / "deep.tif") == expected
    assert read(tmp_path / "deep.png").grey


def test_cmyk_white_and_black_come_out_as_such(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "black.tif")
    assert values(tmp_path / "white.jpg")[4][4] == [255, 255, 255]
    assert values(tmp_path / "black.tif")[4][4] == [0, 0, 0]


def test_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for name in ("moving.gif", "moving.webp", "moving.tif", "moving.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
        assert values(tmp_path / name)[0][0] == [255, 0, 0], name


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not a picture")


def _cut_off(path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:5000])


def _cut_off_jpeg(path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def _floats(path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(path, "TIFF")


def _postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.png")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_empty, "the file is empty"),
        (_text, "not a PNG, JPEG, WebP"),
        (_cut_off, "(?i)truncated|broken"),
        (_cut_off_jpeg, "truncated"),
        (_floats, "no stated range"),
        (_postscript, "not a PNG, JPEG, WebP"),
        (_folder, "not a regular file"),
        (_dangling, "FileNotFoundError"),
    ],
)
def test_every_kind_of_broken_file_has_its_reason(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "broken.png")
    with pytest.raises(BrokenPicture, match=reason):
        read(tmp_path / "broken.png")


@pytest.mark.parametrize("side", [40, 60])
def test_decompression_bombs_are_refused_at_pillows_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    # 40x40 is above the limit (Pillow only warns), 60x60 above twice the limit (Pillow raises).
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(BrokenPicture, match=rf"{side * side} pixels.*decompression bomb"):
        read(tmp_path / "bomb.png")
