import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visgen.data import Data, DataError
from visgen.data.resize import resize
from visgen.data.stl10 import ARCHIVE, open_stl10, open_stl10_48

COUNTS = {"train": 2, "unlabeled": 3, "test": 4}


def write_set(root: Path) -> dict[str, str]:
    folder = root / ARCHIVE.folder
    folder.mkdir()
    generator = np.random.RandomState(0)
    for part, count in COUNTS.items():
        generator.randint(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(
            folder / f"{part}_X.bin"
        )
        if part != "unlabeled":
            generator.randint(1, 11, count).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    return _hashes(root)


@pytest.fixture
def tiny(tmp_path: Path) -> Data:
    archive = replace(ARCHIVE, files=write_set(tmp_path))
    return open_stl10(tmp_path, offline=True, archive=archive)


@pytest.mark.parametrize("split", ["train", "train+unlabeled", "unlabeled", "test"])
def test_tiny_set_equals_what_torchvision_reads(tiny: Data, tmp_path: Path, split: str) -> None:
    from torchvision.datasets import STL10

    class Tiny(STL10):
        def _check_integrity(self) -> bool:
            return True

    peer = Tiny(tmp_path, split=split)
    labels = tiny.labels(tiny.split(split))
    assert labels is not None
    assert peer.labels is not None
    assert labels.tolist() == peer.labels.astype(int).tolist()
    assert torch.equal(tiny.images(tiny.split(split)), torch.from_numpy(peer.data.copy()))


def test_published_names_and_checksums_are_torchvisions() -> None:
    from torchvision.datasets import STL10

    published = {name: md5 for name, md5 in STL10.train_list + STL10.test_list}
    assert dict(ARCHIVE.files) == published
    assert (ARCHIVE.url, ARCHIVE.md5) == (STL10.url, STL10.tgz_md5)
    assert (ARCHIVE.filename, ARCHIVE.folder) == (STL10.filename, STL10.base_folder)


def test_48_pixels_are_torchvisions_resize_of_pil_images(tiny: Data) -> None:
    from PIL import Image
    from torchvision.transforms import Resize

    indices = torch.tensor([8, 0])
    images = tiny.images(indices, size=(48, 48))
    for image, stored in zip(images, tiny.images(indices), strict=True):
        peer = Resize((48, 48))(Image.fromarray(stored.permute(1, 2, 0).numpy()))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(peer))
    assert torch.equal(resize(tiny.images(indices), (96, 96)), tiny.images(indices))


def test_the_set_of_48_pixels_is_the_whole_set_resized(tiny: Data, tmp_path: Path) -> None:
    archive = replace(ARCHIVE, files=_hashes(tmp_path))
    half = open_stl10_48(tmp_path, offline=True, archive=archive)
    indices = half.split("train+unlabeled")
    assert (half.size, len(indices)) == ((48, 48), 5)
    assert torch.equal(half.images(indices), tiny.images(indices, size=(48, 48)))
    assert half.fingerprint != tiny.fingerprint


def _hashes(root: Path) -> dict[str, str]:
    folder = root / ARCHIVE.folder
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_splits_and_facts(tiny: Data) -> None:
    assert {name: len(indices) for name, indices in tiny.splits.items()} == {
        "train": 2,
        "unlabeled": 3,
        "train+unlabeled": 5,
        "test": 4,
    }
    assert (tiny.size, tiny.channels, tiny.levels, len(tiny)) == ((96, 96), 3, 256, 9)
    assert set(tiny.split("train+unlabeled").tolist()).isdisjoint(tiny.split("test").tolist())


def test_files_of_the_wrong_length_are_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    folder = tmp_path / ARCHIVE.folder
    np.zeros(5, dtype=np.uint8).tofile(folder / "train_y.bin")
    np.zeros(100, dtype=np.uint8).tofile(folder / "test_X.bin")
    archive = replace(
        ARCHIVE,
        files={file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()},
    )
    with pytest.raises(DataError, match="has 100 bytes, which is no multiple of 27648"):
        open_stl10(tmp_path, offline=True, archive=archive)
    np.zeros(4 * 27648, dtype=np.uint8).tofile(folder / "test_X.bin")
    archive = replace(
        archive,
        files={file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()},
    )
    with pytest.raises(DataError, match=r"does not hold 2 labels in 1\.\.10"):
        open_stl10(tmp_path, offline=True, archive=archive)
