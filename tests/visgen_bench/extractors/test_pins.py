import hashlib
from pathlib import Path

import pytest

from visgen_bench.extractors.pins import pin, read_pinned
from visgen_bench.extractors.weights import WEIGHTS_DIR_VARIABLE, WeightsMismatch, known_weights

FILE = known_weights()["i3d-kinetics-400"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def weights(tmp_path: Path, content: bytes = b"first") -> Path:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    return path


def test_reading_pins_nothing(tmp_path: Path) -> None:
    path = weights(tmp_path)
    data, sha256 = read_pinned(path, FILE)
    assert (data, sha256) == (b"first", hashlib.sha256(b"first").hexdigest())
    assert list(tmp_path.iterdir()) == [path]


def test_a_pinned_file_may_not_change(tmp_path: Path) -> None:
    path = weights(tmp_path)
    place = pin(path, read_pinned(path, FILE)[1])
    assert place == tmp_path / "net.pt.sha256"
    assert pin(path, read_pinned(path, FILE)[1]) == place
    weights(tmp_path, b"second")
    with pytest.raises(WeightsMismatch, match=r"net.pt.sha256 holds") as caught:
        read_pinned(path, FILE)
    assert FILE.source in str(caught.value)


def test_where_the_folder_cannot_be_written_to_the_cache_takes_the_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path)
    # A folder in the pin's place cannot be replaced by a file, whoever runs the test.
    (tmp_path / "net.pt.sha256").mkdir()
    with pytest.raises(IsADirectoryError):
        read_pinned(path, FILE)
    (tmp_path / "net.pt.sha256").rmdir()
    write = Path.write_text

    def refuse(place: Path, *args: object, **kwargs: object) -> int:
        if place.parent == tmp_path:
            raise PermissionError("read-only folder")
        return write(place, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Path, "write_text", refuse)
    place = pin(path, read_pinned(path, FILE)[1])
    assert tmp_path / "home" in place.parents
    weights(tmp_path, b"second")
    with pytest.raises(WeightsMismatch, match="home"):
        read_pinned(path, FILE)
