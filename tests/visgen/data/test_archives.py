import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from visgen.data import DataError, DataMissing
from visgen.data.archives import Archive, checked_folder, default_root


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An archive of one file on a loopback server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shelf = tmp_path / "shelf"
    (shelf / "things").mkdir(parents=True)
    (shelf / "things" / "a.bin").write_bytes(b"content")
    with tarfile.open(shelf / "things.tar.gz", "w:gz") as packed:
        packed.add(shelf / "things", "things")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shelf)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Archive(
        name="things",
        url=f"http://127.0.0.1:{server.server_port}/things.tar.gz",
        filename="things.tar.gz",
        md5=hashlib.md5((shelf / "things.tar.gz").read_bytes()).hexdigest(),
        megabytes=1,
        folder="things",
        files={"a.bin": hashlib.md5(b"content").hexdigest()},
    )
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_is_checked_unpacked_and_then_used_offline(
    served: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "root"
    folder = checked_folder(served, root, offline=False)
    assert (folder / "a.bin").read_bytes() == b"content"
    assert capsys.readouterr().out == ""
    assert checked_folder(served, root, offline=True) == folder


def test_damaged_file_is_replaced_from_the_archive(served: Archive, tmp_path: Path) -> None:
    folder = checked_folder(served, tmp_path, offline=False)
    (folder / "a.bin").write_bytes(b"c0ntent")
    with pytest.raises(DataError, match=r"a\.bin does not have its published MD5.*--offline"):
        checked_folder(served, tmp_path, offline=True)
    checked_folder(served, tmp_path, offline=False)
    assert (folder / "a.bin").read_bytes() == b"content"


def test_archive_with_another_checksum_is_not_unpacked(served: Archive, tmp_path: Path) -> None:
    wrong = replace(served, md5="0" * 32)
    with pytest.raises(DataMissing, match=r"could not be brought there.*--data-root PATH"):
        checked_folder(wrong, tmp_path / "root", offline=False)
    assert not (tmp_path / "root" / "things").exists()


def test_archive_without_the_published_files_is_named(served: Archive, tmp_path: Path) -> None:
    other = replace(served, files={**served.files, "b.bin": "0" * 32})
    with pytest.raises(DataError, match=r"b\.bin is missing; delete .*things\.tar\.gz"):
        checked_folder(other, tmp_path / "root", offline=False)


def test_unreachable_server_names_the_way_out(served: Archive, tmp_path: Path) -> None:
    nowhere = replace(served, url=served.url + ".not-there")
    with pytest.raises(DataMissing, match=r"HTTPError.*holds things/ with --data-root PATH"):
        checked_folder(nowhere, tmp_path / "root", offline=False)


def test_default_root_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_root() == Path("/somewhere/visgen/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path("~/.cache/visgen/data").expanduser()
