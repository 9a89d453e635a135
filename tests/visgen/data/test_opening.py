import subprocess
import sys
from pathlib import Path

import pytest

from visgen.data import DataError, UnknownData, open_data
from visgen.data.opening import data_names

SHIFTED = """
from visgen.data import open_data

def open_shifted(spec, *, root=None, offline=False):
    return open_data("digits:" + spec.partition(":")[2])

def open_broken(spec, *, root=None, offline=False):
    raise KeyError("no index")

def open_other(spec, *, root=None, offline=False):
    return 3
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution with four entry points, as an installer would leave it."""
    (tmp_path / "shifted_sets.py").write_text(SHIFTED)
    info = tmp_path / "shifted_sets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shifted_sets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[visgen.data]\nshifted = shifted_sets:open_shifted\nbroken = shifted_sets:open_broken\n"
        "other = shifted_sets:open_other\nabsent = not_there_at_all:open\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("shifted_sets", None)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_opens_its_sets_and_is_listed() -> None:
    assert open_data("shifted:16").fingerprint == open_data("digits:16").fingerprint
    assert {"shifted", "broken", "absent", "digits:8"} < set(data_names())
    with pytest.raises(UnknownData, match='nearest: "shifted"'):
        open_data("shited")


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
        open_data(spec)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("digits", "digits:8"),
        ("digits:9", "digits:8"),
        ("digit:16", "digits:16"),
        ("cifar-10", "cifar10"),
        ("folders:/tmp", "folder:PATH"),
        ("stl", "stl10"),
    ],
)
def test_unknown_data_names_the_nearest_and_all(given: str, nearest: str) -> None:
    everything = r"digits:8, digits:16, digits:32, folder:PATH, cifar10, stl10, stl10:48"
    with pytest.raises(UnknownData, match=rf'nearest: "{nearest}".* \(there are {everything}\)'):
        open_data(given)


def test_opening_digits_imports_no_slow_package() -> None:
    code = (
        "import sys\nfrom visgen.data import open_data\nopen_data('digits:16')\n"
        "slow = {'sklearn', 'scipy', 'torchvision', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
