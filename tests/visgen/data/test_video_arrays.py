import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from visgen.data import video_arrays
from visgen.data.clip_frames import BrokenVideo
from visgen.data.video_arrays import ArrayTable, inspect_array, read_array

SHAPE = (3, 5, 4, 6, 3)  # videos, frames, rows, columns, colours


def values(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


def inspect(path: Path) -> tuple[ArrayTable, list[bytes]]:
    with path.open("rb") as file:
        return inspect_array(file, packed=path.suffix == ".npz")


def read(path: Path, table: ArrayTable, number: int, wanted: range) -> np.ndarray:
    with path.open("rb") as file:
        frames = list(read_array(file, table, number, wanted))
    return np.stack([frame.numpy() for frame in frames])


def _npy(path: Path, array: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def _npz(path: Path, array: np.ndarray) -> Path:
    np.savez(path.with_suffix(".npz"), videos=array, labels=np.arange(3))
    return path.with_suffix(".npz")


def _packed(path: Path, array: np.ndarray) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), array)
    return path.with_suffix(".npz")


@pytest.mark.parametrize("save", [_npy, _npz, _packed])
def test_frames_are_those_of_the_array(
    tmp_path: Path, save: Callable[[Path, np.ndarray], Path]
) -> None:
    array = values()
    path = save(tmp_path / "a", array)
    table, digests = inspect(path)
    assert (table.videos, table.shape, len(set(digests))) == (3, (5, 4, 6), 3)
    taken = read(path, table, 1, range(1, 5, 2))
    assert np.array_equal(taken, array[1, 1:5:2].transpose(0, 3, 1, 2))


def test_one_video_needs_no_axis_and_copies_have_one_hash(tmp_path: Path) -> None:
    path = _npy(tmp_path / "one", values(SHAPE[1:]))
    table, digests = inspect(path)
    assert (table.videos, len(digests)) == (None, 1)
    twice = _npz(tmp_path / "twice", np.stack([values(SHAPE[1:])] * 3))
    assert inspect(twice)[1] == digests * 3


class _Planted:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['PLANTED']}",)


def test_pickled_objects_are_refused_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    array = np.array([_Planted()], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(BrokenVideo, match=r"it holds object \(1,\); videos are uint8"):
            inspect(tmp_path / name)
    assert not (tmp_path / "planted").exists()


def _floats(path: Path) -> None:
    np.save(path, values().astype(np.float32))


def _grey(path: Path) -> None:
    np.save(path, values((5, 4, 6)))


def _columns(path: Path) -> None:
    np.save(path, np.asfortranarray(values()))


def _cut_off(path: Path) -> None:
    np.save(path, values())
    path.write_bytes(path.read_bytes()[:-1])


def _declared(shape: tuple[int, ...]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = io.BytesIO()
        npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        path.write_bytes(header.getvalue())

    return write


def _text(path: Path) -> None:
    path.write_text("not an array")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_floats, r"holds float32 \(3, 5, 4, 6, 3\); videos are uint8"),
        (_grey, r"holds uint8 \(5, 4, 6\); videos are uint8"),
        (_columns, "stored by columns; write it with numpy.ascontiguousarray"),
        (_cut_off, "ends before the frames"),
        (_declared((1000, 1000, 1000, 1000, 3)), "ends before the frames"),
        (_declared((10**6, 10**6, 1, 1, 3)), "frames can be read"),
        (_declared((0, 5, 4, 6, 3)), "frames can be read"),
        (_declared((5, 4, 9000, 3)), "its frames are 9000x4; sides of 1 to 8192"),
        (_text, "ValueError"),
    ],
)
def test_every_kind_of_broken_array_has_its_reason(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "a.npy")
    with pytest.raises(BrokenVideo, match=reason):
        inspect(tmp_path / "a.npy")


def test_archives_with_no_array_or_two_say_what_they_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", left=values(), right=values())
    np.savez(tmp_path / "none.npz", labels=np.arange(3))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(BrokenVideo, match=r"one array .* has 2 \(left\.npy, right\.npy\)"):
        inspect(tmp_path / "two.npz")
    with pytest.raises(BrokenVideo, match=r"has 0 \(labels\.npy: it holds int64"):
        inspect(tmp_path / "none.npz")
    with pytest.raises(BrokenVideo, match="BadZipFile"):
        inspect(tmp_path / "text.npz")


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_arrays, "MOST_UNPACKED", 1000)
    path = _packed(tmp_path / "bomb", np.zeros((3, 5, 40, 60, 3), dtype=np.uint8))
    with pytest.raises(BrokenVideo, match=r"declares 108128 bytes unpacked.* store it as \.npy"):
        inspect(path)


def test_damage_inside_an_archive_is_found_when_it_is_opened(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a", values())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("videos.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + info.compress_size - 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenVideo, match="Bad CRC-32"):
        inspect(path)
