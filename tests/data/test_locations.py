"""Where a path in a recipe lies."""

from __future__ import annotations

import errno
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest

from xfer.data.locations import copy_in, local_path, locate
from xfer.errors import DiskFullError, UsageError


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("http_proxy", raising=False)
    return home


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported."""
    root = tmp_path / "site"
    (root / "boobytrap" / "weights").mkdir(parents=True)
    (root / "boobytrap" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (root / "boobytrap" / "weights" / "net.pth").write_bytes(b"x")
    (root / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(root))
    return root


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    root = tmp_path / "served"
    root.mkdir()
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            if "locked" in self.path and self.headers["Authorization"] != "Basic bWU6d29yZA==":
                self.send_error(401, "Unauthorized")
                return
            file = root / unquote(self.path.split("?")[0]).lstrip("/")
            if not file.is_file():
                self.send_error(404, "Not Found")
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5] if "cut" in self.path else content)

        def log_message(self, *arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_plain_paths_are_relative_to_the_working_directory(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (own_home / "mine.npz").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert local_path("data") == tmp_path / "data"
    assert local_path("./data/../data/") == tmp_path / "data"
    assert local_path("~/mine.npz") == own_home / "mine.npz"
    assert local_path(f"file://{own_home}/mine.npz") == own_home / "mine.npz"
    (tmp_path / "with space%20.pth").write_bytes(b"x")
    assert local_path("with space%20.pth") == tmp_path / "with space%20.pth"
    assert local_path(f"file://{tmp_path}/with%20space%2520.pth") == tmp_path / "with space%20.pth"


def test_a_missing_path_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        local_path("flower")
    assert error.value.message == f"no file or folder {tmp_path}/flower; did you mean 'flowers'?"
    with pytest.raises(UsageError) as error:
        local_path("zzz")
    assert error.value.message == f"no file or folder {tmp_path}/zzz"
    with pytest.raises(UsageError) as error:
        local_path("flowers/a/b/c.jpg")
    assert error.value.message == f"no file or folder {tmp_path}/flowers/a/b/c.jpg; the part of it that exists is {tmp_path}/flowers"


INSTALL = "installed here; install the one that holds it: pip install"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "the path is empty"),
        ("~nobody_of_that_name/x", "~nobody_of_that_name/x: there is no such home folder"),
        ("htps://host/x.pth", "htps://host/x.pth: nothing here reads 'htps://'; did you mean 'https://'?"),
        ("qqqqqqqq://me:word@host/x.pth", "qqqqqqqq://host/x.pth: nothing here reads 'qqqqqqqq://'"),
        ("pkg://nothere/x", f"pkg://nothere/x: no package 'nothere' is {INSTALL} nothere"),
        ("pkg://single/x.pth", "pkg://single/x.pth: 'single' is a single module, not a package with files in it"),
        ("pkg://__main__/x", f"pkg://__main__/x: no package '__main__' is {INSTALL} __main__"),
        ("pkg://", "pkg://: must be pkg://package/path/inside/it, with the name that one would import"),
        ("pkg://a.b/x", "pkg://a.b/x: must be pkg://package/path/inside/it, with the name that one would import"),
        ("pkg://boobytrap/../x", "pkg://boobytrap/../x: must be pkg://package/path/inside/it, with the name that one would import"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("package")
def test_what_names_no_place(location: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        locate(location)
    assert error.value.message == message


def test_a_package_is_found_and_not_imported(package: Path) -> None:
    assert local_path("pkg://boobytrap/weights/net.pth") == package / "boobytrap/weights/net.pth"
    assert local_path("pkg://boobytrap") == package / "boobytrap"
    assert "boobytrap" not in sys.modules
    with pytest.raises(UsageError) as error:
        local_path("pkg://boobytrap/weights/nett.pth")
    assert error.value.message == f"no file or folder {package}/boobytrap/weights/nett.pth; did you mean 'net.pth'?"


def test_a_namespace_package_has_several_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root, name in (("one", "a.txt"), ("two", "b.txt")):
        (tmp_path / root / "spacious").mkdir(parents=True)
        (tmp_path / root / "spacious" / name).write_text(name)
        monkeypatch.syspath_prepend(str(tmp_path / root))
    assert local_path("pkg://spacious/a.txt").read_text() == "a.txt"
    assert local_path("pkg://spacious/b.txt").read_text() == "b.txt"


def test_a_web_file_is_copied_once(web: tuple[str, Path, list[str]], own_home: Path) -> None:
    url, root, asked = web
    (root / "net v1.pth").write_bytes(b"first")
    first = local_path(f"{url}/net%20v1.pth?key=1")
    assert first.read_bytes() == b"first"
    assert first.name == "net v1.pth"
    assert first.is_relative_to(own_home / ".cache/xfer/downloads")
    (root / "net v1.pth").write_bytes(b"second")
    assert local_path(f"{url}/net%20v1.pth?key=1") == first
    assert first.read_bytes() == b"first"
    assert len(asked) == 1
    assert local_path(f"{url}/net%20v1.pth?key=2").read_bytes() == b"second"  # another URL, another place
    assert sorted(entry.name for entry in first.parent.iterdir()) == ["net v1.pth"]


def test_a_failed_web_copy_leaves_nothing(web: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, root, _ = web
    (root / "cut.pth").write_bytes(b"0123456789")
    for name, why in (("absent.pth", "the server answers 404 Not Found"), ("cut.pth", "the connection ended after 5 of 10 bytes")):
        with pytest.raises(UsageError) as error:
            local_path(f"{url}/{name}", cache=tmp_path / "cache")
        assert error.value.message == f"cannot copy {url}/{name}: {why}"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".partial")] == []


def test_an_account_in_a_url_is_used_and_not_shown(web: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, root, _ = web
    (root / "locked.pth").write_bytes(b"net")
    named = url.replace("http://", "http://me:word@")
    assert local_path(f"{named}/locked.pth", cache=tmp_path).read_bytes() == b"net"
    with pytest.raises(UsageError) as error:
        local_path(f"{named.replace('word', 'wrong')}/locked.pth", cache=tmp_path)
    assert error.value.message == f"cannot copy {url}/locked.pth: the server answers 401 Unauthorized"


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UsageError) as error:
        local_path(f"http://me:word@127.0.0.1:{port}/x.pth", cache=tmp_path)
    assert error.value.message == f"cannot copy http://127.0.0.1:{port}/x.pth: no connection (Connection refused)"


def test_other_filesystems(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/net.pth", b"net")
    memory.pipe("/bucket/flowers/rose/1.jpg", b"1")
    memory.pipe("/bucket/flowers/lily/2.jpg", b"2")
    try:
        assert local_path("memory://bucket/net.pth", cache=tmp_path).read_bytes() == b"net"
        folder = local_path("memory://bucket/flowers", cache=tmp_path)
        assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")) == ["lily/2.jpg", "rose/1.jpg"]
        with pytest.raises(UsageError) as error:
            local_path("memory://bucket/absent.pth", cache=tmp_path)
        assert error.value.message == "cannot copy memory://bucket/absent.pth: there is nothing"
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_protocol_whose_package_is_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        local_path("s3://bucket/net.pth", cache=tmp_path)
    assert error.value.message == "cannot copy s3://bucket/net.pth: Install s3fs to access S3"


def test_two_processes_copy_the_same_file(web: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, root, _ = web
    content = os.urandom(200_000)
    (root / "net.pth").write_bytes(content)
    code = f"from xfer.data.locations import local_path; from pathlib import Path; local_path('{url}/net.pth', cache=Path('{tmp_path}/c'))"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert local_path(f"{url}/net.pth", cache=tmp_path / "c").read_bytes() == content


def test_a_full_disk_is_told_apart(web: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, root, _ = web
    (root / "net.pth").write_bytes(b"net")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DiskFullError) as error:
        copy_in(f"{url}/net.pth", tmp_path / "c" / "net.pth")
    assert error.value.message == f"no room left in {tmp_path}/c for {url}/net.pth"
    assert list((tmp_path / "c").iterdir()) == []


def test_a_cache_that_cannot_be_written(web: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, root, _ = web
    (root / "net.pth").write_bytes(b"net")
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(UsageError) as error:
        copy_in(f"{url}/net.pth", tmp_path / "c" / "net.pth")
    assert error.value.message == f"cannot copy {url}/net.pth: {tmp_path}/c can't be written (File exists)"
