from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from visgen.data.clip_frames import fit_frames
from visgen.data.dataset import DataError
from visgen.data.video_hdf5 import open_video_hdf5
from visgen.data.videos import Clip, VideoData

CLIP = Clip(frames=3, size=(4, 4))
Values = Mapping[str, np.ndarray]


def frames(count: int) -> np.ndarray:
    """Frames whose every pixel is their number: uint8 (count, 4, 5, 3)."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)


def clean() -> dict[str, np.ndarray]:
    """Three videos of 4, 3 and 5 frames for training, and one of 3 and one of 2 for testing."""
    return {
        "train_data": frames(12),
        "train_idx": np.array([0, 4, 7]),
        "test_data": frames(5),
        "test_idx": np.array([0, 3]),
    }


def write(path: Path, values: Values) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in values.items():
            file[key] = value
    return path


def open_file(path: Path, clip: Clip = CLIP) -> VideoData:
    return open_video_hdf5(path, clip, name="h5")


def first_values(
    data: VideoData, indices: torch.Tensor, seeds: torch.Tensor | None = None
) -> list[list[int]]:
    return data.videos(indices, seeds)[:, :, 0, 0, 0].tolist()


def test_clips_of_both_splits_are_those_of_the_file(tmp_path: Path) -> None:
    data = open_file(write(tmp_path / "a.h5", clean()))
    assert {name: split.tolist() for name, split in data.splits.items()} == {
        "all": [0, 1, 2, 3],
        "train": [0, 1, 2],
        "test": [3],
    }
    assert data.videos(torch.arange(4)).shape == (4, 3, 3, 4, 4)
    assert first_values(data, torch.tensor([2, 1, 3])) == [[7, 8, 9], [4, 5, 6], [0, 1, 2]]
    assert data.short == (("test[1]", "2 frames; a clip spans 3"),)
    assert data.labels(torch.tensor([0])) is None
    assert data.captions(torch.tensor([0])) is None
    assert data.actions(torch.tensor([0])) is None


def test_every_start_is_reached_and_a_video_as_long_as_a_clip_has_one(tmp_path: Path) -> None:
    data = open_file(
        write(tmp_path / "a.h5", clean()), Clip(frames=3, size=(4, 4), policy="random")
    )
    seeds = torch.arange(40)
    for video, starts in ((0, {0, 1}), (1, {4}), (2, {7, 8, 9})):
        taken = first_values(data, torch.full((40,), video), seeds)
        assert {clip[0] for clip in taken} == starts
        assert all(clip == list(range(clip[0], clip[0] + 3)) for clip in taken)


def test_stride_and_uniform_starts(tmp_path: Path) -> None:
    clip = Clip(frames=2, size=(4, 4), stride=2, policy="uniform-2")
    data = open_file(write(tmp_path / "a.h5", clean()), clip)
    taken = first_values(data, data.split("train"))
    assert taken == [[0, 2], [1, 3], [4, 6], [4, 6], [7, 9], [9, 11]]


def test_labels_captions_and_actions_are_those_of_the_clip(tmp_path: Path) -> None:
    values = clean()
    values["train_labels"], values["test_labels"] = np.array([2, -1, 0]), np.array([1, 2])
    values["train_captions"] = np.array([b"eins", "zwölf".encode(), b"drei"], dtype=object)
    values["test_captions"] = np.array([b"vier", b""], dtype=object)
    for split, count in (("train", 12), ("test", 5)):
        values[f"{split}_actions"] = np.stack((np.arange(count), -np.arange(count)), axis=1)
    clip = Clip(frames=2, size=(4, 4), stride=2, policy="uniform-2")
    data = open_file(write(tmp_path / "a.h5", values), clip)
    labels, actions = data.labels(torch.arange(8)), data.actions(torch.tensor([5, 0]))
    assert data.classes == ("0", "1", "2")
    assert labels is not None
    assert labels.tolist() == [2, 2, -1, -1, 0, 0, 1, 1]
    assert data.captions(torch.tensor([3, 4, 6])) == ["zwölf", "drei", "vier"]
    assert actions is not None
    assert actions.dtype == torch.float32
    assert actions.tolist() == [[9, -9, 11, -11], [0, 0, 2, -2]]


def test_the_paper_repositorys_layout_is_one_split_named_by_the_file(tmp_path: Path) -> None:
    stored = np.random.RandomState(0).randint(0, 256, (2, 3, 6, 4, 5), dtype=np.uint8)
    data = open_file(write(tmp_path / "bair_test.hdf5", {"frames": stored}))
    expected = fit_frames(torch.from_numpy(stored[1, :, :3]).transpose(0, 1), (4, 4))
    assert torch.equal(data.videos(torch.tensor([1]))[0], expected)
    assert data.split("test").tolist() == data.split("all").tolist() == [0, 1]
    other = open_file(write(tmp_path / "bair.hdf5", {"frames": stored}))
    assert list(other.splits) == ["all"]


def without(*keys: str) -> Values:
    return {key: value for key, value in clean().items() if key not in keys}


def with_values(**values: np.ndarray) -> Values:
    return {**clean(), **values}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (without("test_idx"), r"test_idx is missing: it holds \['test_data', 'train_data'"),
        ({"clips": frames(3)}, r"it holds \['clips'\]; expected \{split\}_data uint8"),
        (with_values(train_data=np.zeros((12, 4, 5, 3))), r"train_data is float64 \(12, 4, 5, 3\)"),
        (with_values(train_data=frames(12)[..., :1]), r"train_data is uint8 \(12, 4, 5, 1\)"),
        (with_values(train_idx=np.array([0, 4, 4])), "train_idx must increase"),
        (with_values(train_idx=np.array([0, 12])), "less than the 12 frames of train_data"),
        (with_values(train_idx=np.array([-1, 4])), "train_idx must increase"),
        (with_values(train_idx=np.array([0.0, 4.0])), "train_idx is float64"),
        (with_values(train_labels=np.arange(3)), "has train_labels, but not test_labels"),
        (
            with_values(train_labels=np.arange(2), test_labels=np.arange(2)),
            r"train_labels has the shape \(2,\); it must have 3 rows \(\[clips\]\)",
        ),
        (
            with_values(train_actions=np.zeros((3, 2)), test_actions=np.zeros((2, 2))),
            r"train_actions has the shape \(3, 2\); it must have 12 rows \(\[frames, a\]\)",
        ),
        (
            with_values(train_captions=np.arange(3), test_captions=np.arange(2)),
            "train_captions is int64; it must be text",
        ),
        (
            with_values(train_labels=np.array([0, 1, -2]), test_labels=np.arange(2)),
            "labels reach from -2 to 1",
        ),
        (
            with_values(train_labels=np.array([0, 1, 2**40]), test_labels=np.arange(2)),
            "of at most 100000 classes",
        ),
        ({"frames": np.zeros((2, 6, 4, 5, 3), np.uint8)}, r"frames in .* is uint8 \(2, 6, 4, 5, 3"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path: Path, values: Values, says: str) -> None:
    write(tmp_path / "a.h5", values)
    with pytest.raises(DataError, match=says):
        open_file(tmp_path / "a.h5")


def test_missing_foreign_and_short_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match=r"nowhere\.h5 cannot be read: FileNotFoundError"):
        open_file(tmp_path / "nowhere.h5")
    with pytest.raises(DataError, match=r"text\.h5 cannot be read as HDF5 .*; expected \{split\}"):
        open_file(tmp_path / "text.h5")
    write(tmp_path / "a.h5", clean())
    with pytest.raises(DataError, match=r"no video in .* has the 61 frames that Clip\(frames=7"):
        open_file(tmp_path / "a.h5", Clip(frames=7, size=(4, 4), stride=10))


def _by_external_link(file: h5py.File, secret: Path) -> None:
    file["train_data"] = h5py.ExternalLink(str(secret), "train_data")


def _by_soft_link(file: h5py.File, secret: Path) -> None:
    file["inner"] = h5py.ExternalLink(str(secret), "train_data")
    file["train_data"] = h5py.SoftLink("/inner")


def _by_external_storage(file: h5py.File, secret: Path) -> None:
    shape, dtype = (2, 4, 5, 3), np.uint8
    file.create_dataset("train_data", shape, dtype, external=[(str(secret), 0, 120)])


def _by_virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(12, 4, 5, 3), dtype=np.uint8)
    layout[:] = h5py.VirtualSource(str(secret), "train_data", shape=(12, 4, 5, 3))
    file.create_virtual_dataset("train_data", layout)


@pytest.mark.parametrize(
    "link", [_by_external_link, _by_soft_link, _by_external_storage, _by_virtual_dataset]
)
def test_values_that_lie_in_other_files_are_not_read(
    tmp_path: Path, link: Callable[[h5py.File, Path], None]
) -> None:
    secret = write(tmp_path / "secret.h5", clean())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        link(file, secret)
        file["train_idx"] = np.array([0])
    with pytest.raises(DataError, match="train_data is not stored in the file itself"):
        open_file(tmp_path / "a.h5")


def test_a_declared_clip_or_frame_that_is_too_large_is_refused(tmp_path: Path) -> None:
    for name, shape in (("wide", (8, 4, 9000, 3)), ("long", (4000, 4000, 4000, 3))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("all_data", shape, np.uint8, chunks=(1, 1, 1, 3))  # holds nothing
            file["all_idx"] = np.array([0])
    with pytest.raises(DataError, match=r"all_data .*its frames are 9000x4"):
        open_file(tmp_path / "wide.h5")
    with pytest.raises(DataError, match=r"a clip of 100 frames of all_data takes 4800000000 bytes"):
        open_file(tmp_path / "long.h5", Clip(frames=100, size=(4, 4)))


def test_a_file_that_changed_since_opening_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", clean())
    data = open_file(path)
    with h5py.File(path, "r+") as file:
        del file["train_idx"]
        file["train_idx"] = np.array([0, 5, 7])
    with pytest.raises(DataError, match=r"a\.h5 changed since the set was opened"):
        data.videos(torch.tensor([0]))


def test_the_fingerprint_follows_the_file_and_the_kind_of_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", clean())
    marks = [open_file(path).fingerprint, open_file(path, Clip(frames=2, size=(4, 4))).fingerprint]
    write(path, with_values(test_data=frames(5) + 1))
    marks.append(open_file(path).fingerprint)
    assert len(set(marks)) == 3


def test_damaged_bytes_are_a_reason_and_nothing_worse(tmp_path: Path) -> None:
    content = write(tmp_path / "a.h5", clean()).read_bytes()
    random, refused = np.random.RandomState(0), 0
    for number in range(60):
        damaged = bytearray(content)
        at = random.randint(len(damaged) // 2)
        damaged[at : at + 8] = random.bytes(8)
        path = tmp_path / f"{number}.h5"
        path.write_bytes(damaged)
        try:
            data = open_file(path)
            data.videos(data.split("all")[:2])
        except DataError:
            refused += 1
    assert refused > 0
