"""One face of local files and objects: whole or not there, once, and read to the byte."""

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mgpt.errors import MachineError
from mgpt.files import local_copies, storage
from mgpt.files.remote import ATTEMPTS, RemotePath
from mgpt.files.storage import (
    WholeFile,
    create,
    digest,
    locate,
    open_stream,
    read_all,
    read_at,
    relative,
)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> storage.Location:
    if request.param == "local":
        return tmp_path / "folder"
    request.getfixturevalue("s3")
    return locate("s3://corpus/folder/")


def put(
    path: storage.Location, data: bytes, before_replace: Callable[[], None] | None = None
) -> None:
    with WholeFile(path) as file:
        file.write(data[:3])
        file.write(data[3:])
        file.publish(before_replace)


def test_a_file_comes_back_by_every_way_of_reading(folder):
    data = os.urandom(10_000)
    put(folder / "a.tar", data)
    assert (folder / "a.tar").read_bytes() == data
    assert (folder / "a.tar").stat().st_size == len(data)
    with open_stream(folder / "a.tar") as stream:
        assert stream.read(17) == data[:17] and stream.read() == data[17:]
    reader = read_at(folder / "a.tar")
    assert reader.read(100, 512) == data[512:612] and reader.read(100, 9_990) == data[9_990:]
    assert digest(folder / "a.tar") == digest(local_copies.local_copy(folder / "a.tar"))
    assert read_all([folder / "a.tar", folder / "none", folder / "a.tar"]) == [data, None, data]


def test_listings_see_what_is_there(folder):
    for name in ("b.json", "a.tar", "deep/c.tar"):
        put(folder / name, b"12345")
    assert sorted(path.name for path in folder.glob("*.tar")) == ["a.tar"]
    assert sorted(str(relative(path, folder)) for path in folder.rglob("*.tar")) == [
        "a.tar",
        "deep/c.tar",
    ]
    assert set(storage.modified_times(folder)) >= {"a.tar", "b.json"}
    assert folder.is_dir() and not folder.is_file() and (folder / "a.tar").is_file()
    found = storage.find_glob(f"{folder}/?.tar")
    assert [(path.name, path.stat().st_size) for path in found] == [("a.tar", 5)]
    storage.remove_tree(folder)
    assert not folder.is_dir() and list(folder.glob("*")) == []
    assert storage.modified_times(folder / "none") == {}


def test_nothing_appears_without_publish(folder):
    with WholeFile(folder / "a") as file:
        file.write(b"half")
    assert not (folder / "a").exists()


def test_only_the_first_creates(folder):
    if isinstance(folder, Path):
        folder.mkdir()
    assert create(folder / "claim", b"first") and not create(folder / "claim", b"second")
    assert (folder / "claim").read_bytes() == b"first"
    won = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        if create(folder / "race", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and (folder / "race").read_bytes() == b"%d" % won[0]


def test_requests_that_fail_in_passing_are_sent_again(s3):
    folder = locate("s3://corpus/folder")
    s3.spoil("PUT", "/a", "unavailable", ATTEMPTS - 1)
    put(folder / "a", b"content")
    s3.spoil("GET", "/a", "unavailable", ATTEMPTS - 1)
    assert (folder / "a").read_bytes() == b"content"


def test_attempts_have_an_end_and_a_message(s3):
    put(locate("s3://corpus/a"), b"content")
    s3.spoil("GET", "/a", "unavailable", 1000)
    with pytest.raises(MachineError, match=rf"s3://corpus/a: reading it failed {ATTEMPTS} times"):
        locate("s3://corpus/a").read_bytes()
    assert sum(method == "GET" for method, _ in s3.seen) == ATTEMPTS


def test_a_put_whose_answer_is_lost_is_known_as_our_own(s3):
    path = locate("s3://corpus/a")
    s3.spoil("PUT", "/a", "lost")
    put(path, b"content")
    assert path.read_bytes() == b"content"
    s3.spoil("PUT", "/claim", "lost")
    assert create(locate("s3://corpus/claim"), b"ours")


def test_the_same_bytes_twice_are_one_object(s3):
    path = locate("s3://corpus/a")
    put(path, b"content")
    put(path, b"content", before_replace=lambda: pytest.fail("nothing is replaced"))
    assert path.read_bytes() == b"content"


def test_other_bytes_are_replaced_by_the_holder_of_the_claim_alone(s3):
    path = locate("s3://corpus/a")
    put(path, b"of a dead worker")

    def lost() -> None:
        raise MachineError("the claim was lost")

    with pytest.raises(MachineError, match="claim was lost"):
        put(path, b"of a late worker", before_replace=lost)
    assert path.read_bytes() == b"of a dead worker"
    checks = []
    put(path, b"of the holder", before_replace=lambda: checks.append(1))
    assert path.read_bytes() == b"of the holder" and checks == [1]


def test_a_request_that_is_cut_leaves_nothing(s3):
    host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"PUT /corpus/torn.tar HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nhalf"
        )
    path = locate("s3://corpus/torn.tar")
    put(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(MachineError, match=r"gs:// needs .* pip install 'mgpt\[gs\]'"):
        locate("gs://bucket/a").read_bytes()


# ------------------------------------------------------------------ http


@pytest.fixture(params=["ranges", "no ranges"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server of tmp_path/web, with and without answers to ranged requests."""
    (tmp_path / "web").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            path = tmp_path / "web" / self.path.strip("/")
            if request.param == "no ranges" or not wanted or not path.is_file():
                super().do_GET()
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            data = path.read_bytes()
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def end_headers(self) -> None:
            if request.param == "ranges":
                self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

    handler = partial(Handler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_http_is_read_and_never_written(web, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="pip install -e .[test]")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data = os.urandom(100_000)
    (tmp_path / "web" / "0.tar").write_bytes(data)
    path = locate(f"{web}/0.tar")
    assert isinstance(path, RemotePath) and path.stat().st_size == len(data)
    with open_stream(path) as stream:
        assert stream.read() == data
    assert not path.with_name("1.tar").exists()
    assert storage.find_glob(f"{web}/{{0..2}}.tar")[2].name == "2.tar"
    with pytest.raises(MachineError, match="http is read only"):
        put(path, b"x")
