import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from visgen_bench.extractors.weights import (
    WEIGHTS_DIR_VARIABLE,
    WeightFile,
    WeightsMismatch,
    WeightsMissing,
    WeightsOffline,
    WeightsUnreadable,
    fetch,
    known_weights,
    load_tensors,
    locate,
)

BODY = bytes(range(256)) * 20
FILE = WeightFile(
    name="net",
    files=("net-a.pth", "net-b.pth"),
    source="the release page of net",
    url="http://127.0.0.1:9/never",
    bytes=len(BODY),
    sha256=hashlib.sha256(BODY).hexdigest(),
)
HTML = b"<!DOCTYPE html><html>Please sign in</html>"


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        bodies = {"/right": BODY, "/cut": BODY, "/other": BODY[::-1], "/html": HTML}
        bodies["/long"] = BODY * 50
        if self.path not in bodies:
            self.send_error(404)
            return
        body = bodies[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_the_right_file_is_downloaded_once_and_whole(server: str, tmp_path: Path) -> None:
    url = f"{server}/right"
    path = fetch(FILE, folder=tmp_path / "cache", allow_download=True, url=url)
    assert path.read_bytes() == BODY
    assert files_in(tmp_path / "cache") == ["net-a.pth"]
    assert fetch(FILE, folder=tmp_path / "cache") == path  # offline from now on


@pytest.mark.parametrize(
    ("page", "error", "says"),
    [
        ("cut", WeightsMismatch, "truncated"),
        ("other", WeightsMismatch, "expected"),
        ("html", WeightsMismatch, "HTML page"),
        ("long", WeightsMismatch, "expected"),
        ("gone", WeightsMissing, "answered 404"),
    ],
)
def test_any_other_answer_is_an_error_and_leaves_no_file(
    server: str, tmp_path: Path, page: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        fetch(FILE, folder=tmp_path / "cache", allow_download=True, url=f"{server}/{page}")
    assert files_in(tmp_path) == []
    for fact in (FILE.files[0], FILE.sha256, FILE.source, WEIGHTS_DIR_VARIABLE):
        assert fact in str(caught.value)


def test_an_unreachable_server_is_offline_and_leaves_no_file(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/right"
        with pytest.raises(WeightsOffline, match="cannot be reached"):
            fetch(FILE, folder=tmp_path / "cache", allow_download=True, url=url)
    assert files_in(tmp_path) == []


def test_without_permission_nothing_is_downloaded(server: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsOffline, match="downloads are off"):
        fetch(FILE, folder=tmp_path / "cache", url=f"{server}/right")
    assert files_in(tmp_path) == []


def test_explicit_path_then_variable_then_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named, cached, own = tmp_path / "named", tmp_path / "cache", tmp_path / "own.pth"
    for folder in (named, cached):
        folder.mkdir()
        (folder / "net-b.pth").write_bytes(BODY)
    own.write_bytes(BODY)
    assert locate(FILE, folder=cached) == cached / "net-b.pth"
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(named))
    assert locate(FILE, folder=cached) == named / "net-b.pth"
    assert locate(FILE, path=own, folder=cached) == own


def test_an_explicit_path_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no weight file at"):
        fetch(FILE, path=tmp_path / "none.pth", allow_download=True)


def test_a_local_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net-a.pth").write_bytes(BODY[:-1])
    with pytest.raises(WeightsMismatch, match="truncated"):
        fetch(FILE, folder=tmp_path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (mark,)  # pyright: ignore[reportReturnType]

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsUnreadable, match="plain tensors"):
        load_tensors((tmp_path / "trap.pth").read_bytes(), "trap.pth")
    assert not mark.exists()


def test_anything_but_a_dict_of_tensors_is_unreadable(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsUnreadable, match="list"):
        load_tensors((tmp_path / "list.pth").read_bytes(), "list.pth")
    with pytest.raises(WeightsUnreadable):
        load_tensors(HTML, "page.pth")


def test_the_published_inception_is_pinned() -> None:
    file = known_weights()["inception-2015"]
    assert file.bytes == 95_628_359
    assert file.sha256.startswith("6726825d0af5f729")
    assert len(file.sha256) == 64
