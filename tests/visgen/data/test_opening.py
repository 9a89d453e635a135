import subprocess
import sys

import pytest

from visgen.data import UnknownData, open_data


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("digits", "digits:8"),
        ("digits:9", "digits:8"),
        ("digit:16", "digits:16"),
        ("cifar-10", "cifar10"),
        ("folders:/tmp", "folder:PATH"),
        ("", "stl10"),
    ],
)
def test_unknown_data_names_the_nearest_and_all(given: str, nearest: str) -> None:
    everything = r"digits:8, digits:16, digits:32, folder:PATH, cifar10, stl10"
    with pytest.raises(UnknownData, match=rf'nearest: "{nearest}" \(there are {everything}\)'):
        open_data(given)


def test_opening_digits_imports_no_slow_package() -> None:
    code = (
        "import sys\nfrom visgen.data import open_data\nopen_data('digits:16')\n"
        "slow = {'sklearn', 'scipy', 'torchvision', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
