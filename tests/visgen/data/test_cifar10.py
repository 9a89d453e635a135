import hashlib
import pickle
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visgen.data import Data, DataError, DataMissing, open_data
from visgen.data.cifar10 import ARCHIVE, TEST_FILES, TRAIN_FILES, open_cifar10, read_batch


def python2_pickle(pixels: np.ndarray, labels: Sequence[int]) -> bytes:
    """A batch as Python 2's cPickle wrote the published ones, opcode by opcode (protocol 2)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    rows, columns = pixels.shape
    data_type = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    data_type += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    content = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array += b"(K\x01" + number(rows) + number(columns) + b"\x86" + data_type + b"\x89" + content
    array += b"tb"
    fields = text(b"batch_label") + text(b"a batch") + text(b"labels")
    fields += b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    fields += text(b"data") + array + text(b"filenames") + b"](" + text(b"a.png") + b"e"
    return b"\x80\x02}(" + fields + b"u."


def write_set(root: Path, each: int = 3) -> dict[str, str]:
    """A whole set with `each` pictures a file; returns the MD5 of each file."""
    folder = root / ARCHIVE.folder
    folder.mkdir(parents=True)
    generator = np.random.RandomState(0)
    for name in (*TRAIN_FILES, *TEST_FILES):
        pixels = generator.randint(0, 256, (each, 3072), dtype=np.uint8)
        (folder / name).write_bytes(python2_pickle(pixels, generator.randint(0, 10, each).tolist()))
    return checksums(folder)


def checksums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture
def tiny(tmp_path: Path) -> Data:
    archive = replace(ARCHIVE, files=write_set(tmp_path))
    return open_cifar10(tmp_path, offline=True, archive=archive)


def test_tiny_set_equals_what_torchvision_reads(tiny: Data, tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    files = checksums(tmp_path / ARCHIVE.folder)

    class Tiny(CIFAR10):
        train_list = [[name, files[name]] for name in TRAIN_FILES]  # noqa: RUF012
        test_list = [[name, files[name]] for name in TEST_FILES]  # noqa: RUF012

        def _load_meta(self) -> None:
            pass

    for split, train in (("train", True), ("test", False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's new name for a module in the old pickles
            peer = Tiny(tmp_path, train=train)
        indices = tiny.split(split)
        labels = tiny.labels(indices)
        assert labels is not None
        assert labels.tolist() == peer.targets
        expected = torch.from_numpy(peer.data).permute(0, 3, 1, 2)
        assert torch.equal(tiny.images(indices), expected)


def test_published_names_and_checksums_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    published = {name: md5 for name, md5 in CIFAR10.train_list + CIFAR10.test_list}
    assert dict(ARCHIVE.files) == published
    assert (ARCHIVE.url, ARCHIVE.md5) == (CIFAR10.url, CIFAR10.tgz_md5)
    assert (ARCHIVE.filename, ARCHIVE.folder) == (CIFAR10.filename, CIFAR10.base_folder)


def test_facts_of_the_set(tiny: Data) -> None:
    assert (tiny.size, tiny.channels, tiny.levels, len(tiny)) == ((32, 32), 3, 256, 18)
    assert tiny.split("train").tolist() == list(range(15))
    assert tiny.split("test").tolist() == [15, 16, 17]
    assert tiny.images(torch.tensor([0]), size=(48, 48)).shape == (1, 3, 48, 48)


def test_wrong_checksum_is_refused_before_anything_is_unpickled(tmp_path: Path) -> None:
    archive = replace(ARCHIVE, files=write_set(tmp_path))
    (tmp_path / ARCHIVE.folder / "data_batch_3").write_bytes(_calls_system(tmp_path))
    with pytest.raises(DataError, match="data_batch_3 does not have its published MD5"):
        open_cifar10(tmp_path, offline=True, archive=archive)
    assert not (tmp_path / "executed").exists()


def _calls_system(folder: Path) -> bytes:
    return f"cposix\nsystem\n(S'touch {folder}/executed'\ntR.".encode()


def _calls_eval(folder: Path) -> bytes:
    return f'cbuiltins\neval\n(S\'open("{folder}/executed", "w")\'\ntR.'.encode()


def _calls_numpy(folder: Path) -> bytes:
    return f"cnumpy\nsave\n(S'{folder}/executed'\nltR.".encode()


def _stack_global(folder: Path) -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
            return open, (f"{folder}/executed", "w")

    return pickle.dumps({"data": Evil(), "labels": []}, protocol=4)


@pytest.mark.parametrize("make", [_calls_system, _calls_eval, _calls_numpy, _stack_global])
def test_pickle_with_code_is_refused_and_nothing_executed(
    tmp_path: Path, make: Callable[[Path], bytes]
) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(make(tmp_path))
    with pytest.raises(DataError, match="refused and nothing executed"):
        read_batch(path)
    assert [file.name for file in tmp_path.iterdir()] == ["data_batch_1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CIFAR-10 batch"),
        (pickle.dumps({"labels": [1]}), "is not a CIFAR-10 batch"),
        (pickle.dumps({"data": [1], "labels": [1]}), "is not a CIFAR-10 batch"),
        (b"Pelsewhere\n.", "outside itself"),
        (python2_pickle(np.zeros((2, 3071), np.uint8), [1, 2]), r"expected \(n, 3072\)"),
        (python2_pickle(np.zeros((2, 3072), np.uint8), [1]), r"labels \(1,\)"),
        (python2_pickle(np.zeros((1, 3072), np.uint8), [10]), r"expected 0\.\.9"),
        (python2_pickle(np.zeros((1, 3072), np.uint8), [1])[:-9], "is not a CIFAR-10 batch"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.int16), "labels": [1]}, protocol=3),
            "not of unsigned bytes",
        ),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_batch(path)


def test_missing_set_names_path_and_flag(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"cifar-10-batches-py lacks .*--data-root PATH.*170 MB"):
        open_data("cifar10", root=tmp_path, offline=True)
    with pytest.raises(DataMissing, match=r"stl10_binary lacks .*run without --offline"):
        open_data("stl10", root=tmp_path, offline=True)
    assert list(tmp_path.iterdir()) == []
