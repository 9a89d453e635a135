import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from visgen.data.dataset import DataError, DataMissing, UnknownData
from visgen.data.video_opening import check_video_name, open_videos, video_names
from visgen.data.videos import Clip

Writer = Callable[..., Path]
CLIP = Clip(frames=4, size=(16, 16))
PLUGIN = """
from visgen.data.video_opening import open_videos

def open_shifted(spec, clip, *, root=None, offline=False):
    return open_videos("videos:" + spec.partition(":")[2], clip)

def open_broken(spec, clip, *, root=None, offline=False):
    raise KeyError("no index")

def open_other(spec, clip, *, root=None, offline=False):
    return 3
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with four entry points, as an installer would leave it."""
    (tmp_path / "shifted_videos.py").write_text(PLUGIN)
    info = tmp_path / "shifted_videos-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shifted_videos\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[visgen.videos]\nshifted = shifted_videos:open_shifted\n"
        "broken = shifted_videos:open_broken\nother = shifted_videos:open_other\n"
        "absent = not_there_at_all:open\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("shifted_videos", None)


def save_array(path: Path, videos: int = 3) -> Path:
    values = np.random.RandomState(0).randint(0, 256, (videos, 5, 8, 8, 3), dtype=np.uint8)
    np.save(path, values)
    return path


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_opens_its_sets_and_is_listed(tmp_path: Path) -> None:
    path = save_array(tmp_path / "a.npy")
    ours, theirs = open_videos(f"videos:{path}", CLIP), open_videos(f"shifted:{path}", CLIP)
    assert theirs.fingerprint == ours.fingerprint
    assert {"shifted", "broken", "absent", "moving-digits"} < set(video_names())
    with pytest.raises(UnknownData, match='nearest: "shifted"'):
        check_video_name("shited")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("broken:1", "plug-in broken .* KeyError: 'no index'"),
        ("other", "plug-in other .* gave int"),
        ("absent", "plug-in absent .*not_there_at_all"),
    ],
)
def test_a_broken_plug_in_is_named_to_whoever_asks_for_it(spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_videos(spec, CLIP)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("movingdigits", "moving-digits"),
        ("moving-digits:3", "moving-digits"),
        ("ucf-101", "ucf101"),
        ("ucf101:4", "ucf101"),
        ("vidoes:PATH", "videos:PATH"),
        ("camera", "camera-moves"),
        ("bair:64", "bair"),
    ],
)
def test_unknown_sets_name_the_nearest_and_all(given: str, nearest: str) -> None:
    everything = "videos:PATH, bair, ucf101, ucf101:1, .* moving-shapes, grid-agent, camera-moves"
    with pytest.raises(UnknownData, match=rf'nearest: "{nearest}".* \(there are {everything}'):
        open_videos(given, CLIP)


def test_a_path_without_its_kind_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(UnknownData, match=f'nearest: "videos:{tmp_path}"'):
        open_videos(str(tmp_path), CLIP)


def test_a_path_is_a_folder_an_array_or_hdf5(tmp_path: Path, write_video: Writer) -> None:
    write_video(tmp_path / "folder" / "a.avi")
    path = save_array(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.HDF5", "w") as file:
        file["train_data"], file["train_idx"] = np.zeros((9, 8, 8, 3), np.uint8), [0, 5]
    sets = [open_videos(f"videos:{tmp_path / n}", CLIP) for n in ("folder", "a.npy", "a.HDF5")]
    assert [len(data) for data in sets] == [1, 3, 2]
    assert sets[1].name == f"videos:{path}"
    with pytest.raises(DataError, match="names no folder or file; write videos:PATH"):
        open_videos("videos:", CLIP)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        open_videos(f"videos:{tmp_path / 'nowhere'}", CLIP)


def test_published_sets_lie_below_the_root(tmp_path: Path, write_video: Writer) -> None:
    with pytest.raises(DataMissing, match=r"no .*bair\.hdf5; convert .*--data-root"):
        open_videos("bair", CLIP, root=tmp_path)
    with pytest.raises(DataMissing, match=r"classInd\.txt; unpack .*--data-root"):
        open_videos("ucf101", CLIP, root=tmp_path)
    with h5py.File(tmp_path / "bair.hdf5", "w") as file:
        file["test_data"], file["test_idx"] = np.zeros((9, 8, 8, 3), np.uint8), [0, 5]
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Surf\n")
    (lists / "trainlist02.txt").write_text("Surf/v_a.avi 1\n")
    (lists / "testlist02.txt").write_text("Surf/v_b.avi\n")
    for name in "ab":
        write_video(tmp_path / "UCF-101" / "Surf" / f"v_{name}.avi")
    assert len(open_videos("bair", CLIP, root=tmp_path).split("test")) == 2
    data = open_videos("ucf101:2", CLIP, root=tmp_path)
    assert (data.name, len(data.split("train")), len(data.split("test"))) == ("ucf101:2", 1, 1)


@pytest.mark.parametrize(
    "spec", ["moving-digits", "moving-digits:1", "moving-shapes", "grid-agent", "camera-moves"]
)
def test_drawn_sets_open_by_name(spec: str) -> None:
    clip = Clip(frames=4, size=(32, 32))
    data = open_videos(spec, clip, offline=True)
    assert data.name == spec
    clips = data.videos(data.split("test")[:2])
    assert clips.shape == (2, 4, 3, 32, 32)


def test_opening_digits_imports_no_decoder() -> None:
    code = (
        "import sys\nfrom visgen.data.video_opening import open_videos\n"
        "from visgen.data.videos import Clip\n"
        "open_videos('moving-digits', Clip(frames=2, size=(32, 32)))\n"
        "slow = {'av', 'h5py', 'PIL.WebPImagePlugin'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
