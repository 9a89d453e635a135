import os
from pathlib import Path

import pytest

from visgen.data import stored_file
from visgen.data.clip_frames import BrokenVideo
from visgen.data.dataset import DataError
from visgen.data.stored_file import store
from visgen.data.tree import printable


def test_an_unchanged_or_touched_file_opens_at_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some bytes")
    file = store(path)
    os.utime(path, (5, 5))
    for _ in range(2):
        with file.open() as opened:
            assert opened.read() == b"some bytes"


def test_a_settled_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some bytes")
    monkeypatch.setattr(stored_file, "_TICK", -(10**18))  # every stamp counts as old
    file = store(path)
    file.digest = b"another"  # would be missed if it were compared
    with file.open() as opened:
        assert opened.read() == b"some bytes"


def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some bytes")
    file = store(path)
    times = path.stat()
    path.write_bytes(b"same bytes")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"a\.bin changed since the set was opened"), file.open():
        pass


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some bytes")
    file = store(path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.bin could be read when .*No such file"), file.open():
        pass


def test_what_is_no_file_with_content_is_broken(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BrokenVideo, match="the file is empty"):
        store(tmp_path / "empty")
    for name in ("pipe", "."):
        with pytest.raises(BrokenVideo, match="not a regular file"):
            store(tmp_path / name)
    with pytest.raises(BrokenVideo, match="FileNotFoundError"):
        store(tmp_path / "dangling")


def test_names_that_are_not_utf8_can_be_shown() -> None:
    assert printable(os.fsdecode(b"b\xe9.mp4")) == r"b\xe9.mp4"
