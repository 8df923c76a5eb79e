"""The place that all nodes see: whole files or none, clear words, no credentials in them."""

from __future__ import annotations

import errno
import os
import pickle
import secrets
import shutil
import signal
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from xfer.cluster import storage as module
from xfer.cluster import storage_drivers as drivers
from xfer.cluster.storage import Storage, require_shared
from xfer.errors import DiskFullError, StoreError, UsageError

EVERYWHERE = "it must be a folder that every node sees and may write to, or a URL whose credentials every node has"


@pytest.fixture(params=["path", "file://", "memory://", "s3://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder, the same as a URL, and object stores: in memory, and over a network."""
    if request.param == "s3://":
        return Storage.of(request.getfixturevalue("s3").bucket("/xfer"))
    if request.param == "path":
        return Storage.of(str(tmp_path / "shared"))
    if request.param == "file://":
        return Storage.of(f"file://{tmp_path}/shared")
    return Storage.of(f"memory://bucket-{uuid.uuid4().hex}/xfer")


def test_files_come_back(storage, tmp_path):
    storage.probe()
    place = storage.inside("store", "ab")
    assert place.sizes() == {}
    assert place.read("x") is None
    assert not place.get("x", tmp_path / "copy")
    place.write("x", b"0123456789")
    (tmp_path / "local").write_bytes(b"abc")
    place.put(tmp_path / "local", "y")
    assert place.sizes() == {"x": 10, "y": 3}
    assert (place.read("x"), place.read("x", start=7)) == (b"0123456789", b"789")
    place.write("x", b"new")
    assert place.read("x") == b"new"
    assert place.get("y", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"abc"
    assert storage.inside("store").sizes() == {}  # what lies deeper is not listed
    place.delete("x")
    place.delete("x")
    assert place.sizes() == {"y": 3}
    again = pickle.loads(pickle.dumps(place))
    assert (again, again.sizes()) == (place, {"y": 3})


def test_names_with_a_folder_and_names_with_a_dot(storage):
    storage.write("checkpoints/1/state", b"s")
    storage.write(".list", b"l")
    assert storage.sizes() == {}
    assert storage.inside("checkpoints", "1").sizes() == {"state": 1}
    assert storage.read(".list") == b"l"


def test_a_reader_sees_whole_files_only(tmp_path):
    """While one thread replaces a file again and again, what another reads is always one of the two contents."""
    storage, contents = Storage.of(str(tmp_path)), {b"a" * 300_000, b"b" * 500_000}
    storage.write("x", b"a" * 300_000)
    done = threading.Event()

    def replace() -> None:
        for _ in range(60):
            for content in contents:
                storage.write("x", content)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        assert storage.read("x") in contents
        assert set(storage.sizes()) == {"x"}
    writer.join()
    assert os.listdir(tmp_path) == ["x"]


def test_leftovers_of_killed_writers_go(tmp_path):
    old, new = tmp_path / ".x.aa.tmp", tmp_path / ".x.bb.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    Storage.of(f"file://{tmp_path}").write("y", b"y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.bb.tmp", "y"]


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage.of("shared") == Storage(str(tmp_path / "shared"))
    assert Storage.of("~/shared") == Storage(str(Path.home() / "shared"))
    assert not Storage.of("shared").is_url
    assert Storage.of("shared").inside("runs").path == tmp_path / "shared" / "runs"
    assert Storage.of("s3://bucket/xfer/") == Storage("s3://bucket/xfer")
    assert Storage.of("s3://bucket/xfer").is_url
    assert Storage.of(f"file://{tmp_path}").is_url
    assert str(Storage.of("s3://bucket/x?endpoint_override=h:9").inside("store")) == "s3://bucket/x/store?…"


@pytest.mark.parametrize(
    ("location", "message", "hint"),
    [
        ("", "cluster.storage: the location is empty", EVERYWHERE),
        ("https://host/x", "cluster.storage: https://host/x: nothing here writes to 'https://'", EVERYWHERE),
        ("s4://bucket", "cluster.storage: s4://bucket: nothing here writes to 's4://'", EVERYWHERE),
        (
            "s3://key:hush@bucket/x",
            "cluster.storage: s3://bucket/x is written with a password, and a bundle keeps what it was made with",
            "leave it out: storage libraries find credentials in the environment or in their own settings",
        ),
        (
            "s3://bucket/x?secret_key=hush",
            "cluster.storage: s3://bucket/x?… is written with a signed query, and a bundle keeps what it was made with",
            "leave it out: storage libraries find credentials in the environment or in their own settings",
        ),
    ],
)
def test_places_that_are_refused(location, message, hint):
    with pytest.raises(UsageError) as caught:
        Storage.of(location)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    storage = Storage.of(str(tmp_path / "file" / "shared"))
    with pytest.raises(UsageError) as caught:
        storage.probe()
    name = caught.value.message.split()[2]
    assert name.startswith(".mark-")
    assert caught.value.message == f"cluster.storage: {tmp_path}/file/shared: {name} can't be written: Not a directory"
    assert caught.value.hint == EVERYWHERE


def test_a_driver_that_is_not_installed():
    """pyarrow speaks s3 and gs by itself; for others fsspec says which package is missing."""
    with pytest.raises(UsageError, match=r"^cluster.storage: oss://bucket/x: \.mark-\w+ can't be written: Install ossfs") as caught:
        Storage.of("oss://bucket/x").probe()
    assert caught.value.hint == "install it on every node"


def test_the_libraries_words_without_secrets(monkeypatch):
    """botocore's errors are no OSErrors, and gcsfs' neither; an address in them is cut."""
    fake = types.ModuleType("botocore.exceptions")
    fake.ClientError = type("ClientError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "botocore.exceptions", fake)
    location = "memory://bucket/x?account=hush"

    def refuse(*arguments: object) -> None:
        raise fake.ClientError(f"Forbidden: PUT {location}\nTraceback …")  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "driver", lambda location: types.SimpleNamespace(put=refuse))
    with pytest.raises(StoreError) as caught:
        Storage(location).write("y", b"")
    assert caught.value.message == "cluster.storage: memory://bucket/x?…: y can't be written: Forbidden: PUT memory://bucket/x?…"
    assert "hush" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_no_room(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = Storage.of(str(tmp_path))
    storage.write("x", b"x")
    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError) as caught:
        storage.write("x", b"xx")
    assert (caught.value.message, caught.value.hint) == (
        f"cluster.storage: {tmp_path}: x can't be written: no room left",
        "make room, then start it again",
    )
    with pytest.raises(DiskFullError, match=r"x can't be copied to .*: no room left, .* are free on the disk of"):
        storage.get("x", tmp_path / "copy")
    assert storage.read("x") == b"x"
    assert os.listdir(tmp_path) == ["x"]


def test_another_place_under_the_same_name(tmp_path):
    """What a node does that has a folder of its own where the head has a shared one."""
    mark = Storage.of(str(tmp_path / "a")).leave_mark()
    assert Storage.of(str(tmp_path / "a")).sees(mark)
    assert not Storage.of(str(tmp_path / "b")).sees(mark)
    Storage.of(str(tmp_path / "a")).remove_mark(mark)
    assert os.listdir(tmp_path / "a") == []


class Unsteady:
    """A driver that fails so many times, in a way of its own, before each answer."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.left, self.n_calls = failures, error, failures, 0

    def read(self, name: str, start: int) -> bytes:
        self.n_calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self.error
        self.left = self.failures
        return name.encode()

    def put(self, name: str, content: Path | bytes) -> None:
        self.read(name, 0)


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Storage, Unsteady]]:
    def make(failures: int, error: Exception, *, patience: float) -> tuple[Storage, Unsteady]:
        made = Unsteady(failures, error)
        monkeypatch.setattr(module, "driver", lambda location: made)
        return Storage.of("s3://bucket/xfer").patient(patience), made

    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    return make


def test_a_place_that_is_out_of_reach_for_a_while_is_tried_again(unsteady, caplog):
    storage, driver = unsteady(3, ConnectionResetError(104, "Connection reset by peer"), patience=60)
    storage.write("a", b"")
    assert (storage.inside("b").read("c"), driver.n_calls) == (b"b/c", 8)
    assert [record.getMessage() for record in caplog.records] == [
        "cluster.storage: s3://bucket/xfer: a can't be written: Connection reset by peer; it is tried again for 60 s",
        "cluster.storage: s3://bucket/xfer can be reached again",
        "cluster.storage: s3://bucket/xfer/b: c can't be read: Connection reset by peer; it is tried again for 60 s",
        "cluster.storage: s3://bucket/xfer/b can be reached again",
    ]


def test_a_server_that_is_gone_for_a_while(s3, tmp_path):
    storage = Storage.of(s3.bucket("/xfer"))
    storage.probe()
    content = secrets.token_bytes(12_000_000)  # goes up in parts
    (tmp_path / "content").write_bytes(content)
    s3.stop()
    back = threading.Timer(1, s3.start)
    back.start()
    storage.patient(60).put(tmp_path / "content", "a/b")
    back.join()
    assert (storage.inside("a").sizes(), storage.read("a/b")) == ({"b": len(content)}, content)


def test_a_bucket_that_is_not_there(s3):
    location = s3.bucket("/xfer").replace("s3://", "s3://no-")
    with pytest.raises(UsageError, match="The specified bucket does not exist"):
        Storage.of(location).probe()


def test_a_signal_amid_a_put_leaves_no_part_of_an_object(s3, tmp_path):
    storage = Storage.of(s3.bucket("/xfer"))
    (tmp_path / "content").write_bytes(secrets.token_bytes(24_000_000))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for number, seconds in enumerate(np.linspace(0.02, 0.2, 5)):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                storage.put(tmp_path / "content", str(number))
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(storage.sizes().values()) <= {24_000_000}


@pytest.mark.parametrize("patience", [0, 0.2])
def test_patience_comes_to_an_end(unsteady, caplog, patience):
    storage, driver = unsteady(1_000_000, ConnectionResetError(104, "Connection reset by peer"), patience=patience)
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        storage.write("a", b"")
    assert caught.value.message == "cluster.storage: s3://bucket/xfer: a can't be written: Connection reset by peer"
    assert (time.monotonic() - began >= patience, driver.n_calls > 2) == (True, patience > 0)
    assert len(caplog.records) == (patience > 0)


@pytest.mark.parametrize(("error", "expected"), [
    (FileNotFoundError(2, "The specified bucket does not exist"), StoreError),
    (OSError(errno.ENOSPC, "No space left"), DiskFullError),
    (ImportError("install s3fs"), StoreError),
], ids=["absent", "full", "no library"])  # fmt: skip
def test_what_no_patience_mends_is_told_at_once(unsteady, error, expected):
    storage, driver = unsteady(5, error, patience=60)
    with pytest.raises(expected):
        storage.write("a", b"")
    assert driver.n_calls == 1
    if isinstance(error, FileNotFoundError):
        assert storage.read("a") is None


def test_what_cannot_be_read_back(monkeypatch):
    storage = Storage.of(f"memory://bucket-{uuid.uuid4().hex}")
    monkeypatch.setattr(drivers.FilesystemDriver, "read", lambda self, name, start: b"something else")
    with pytest.raises(UsageError) as caught:
        storage.probe()
    assert caught.value.message == f"cluster.storage: {storage}: what was written there can't be read back"


def test_several_nodes_need_one_place(tmp_path):
    require_shared(None, 1)
    require_shared(Storage.of(str(tmp_path)), 5)
    with pytest.raises(UsageError) as caught:
        require_shared(None, 3)
    assert caught.value.message == (
        "cluster.storage: it is not set, and the 3 nodes that this run would be spread over need one place for features and bundle"
    )
    assert caught.value.hint == (
        "set it, or --storage, to a folder that every node sees, such as /mnt/shared/xfer, or to a URL such as s3://bucket/xfer"
    )


def test_pyarrow_where_fsspec_has_no_driver(tmp_path):
    """The wrapper of pyarrow's filesystems, over its local one, does all that is asked of a driver."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import LocalFileSystem

    driver = drivers.ArrowDriver(ArrowFSWrapper(LocalFileSystem()), str(tmp_path / "x"), scheme="hdfs")
    assert driver.sizes("store") == {}
    driver.put("store/a", b"0123")
    driver.put("store/b", Path(__file__))
    assert driver.sizes("store") == {"a": 4, "b": Path(__file__).stat().st_size}
    assert driver.read("store/a", 2) == b"23"
    driver.get("store/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == Path(__file__).read_bytes()
    driver.delete("store/a")
    with pytest.raises(FileNotFoundError):
        driver.read("store/a", 0)
    assert set(drivers.ARROW_SCHEMES) <= {*fsspec.available_protocols(), "abfss"}


class Hesitant(LocalFileSystem):
    """Writes in two parts, and shows the folder between them; renames over nothing, as HDFS does. Full, or lost, where asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[str]] = []
        self.full = False
        self.renames_left = 100

    def put_file(self, path1: str, path2: str, **options: Any) -> None:
        content = Path(path1).read_bytes()
        Path(path2).write_bytes(content[:2])
        self.seen.append(os.listdir(Path(path2).parent))
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        Path(path2).write_bytes(content)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if Path(path2).exists():
            raise FileExistsError(path2)
        self.renames_left -= 1
        if self.renames_left == 0:
            raise ConnectionResetError("lost")
        super().mv(path1, path2, **options)


def test_files_of_a_remote_filesystem_appear_whole(tmp_path):
    filesystem = Hesitant()
    driver = drivers.FilesystemDriver(filesystem, str(tmp_path / "place"), scheme="sftp")
    (tmp_path / "content").write_bytes(b"012345")
    driver.put("store/a", tmp_path / "content")
    assert len(filesystem.seen) == 1
    assert [name[:3] for name in filesystem.seen[0]] == [".a."]
    (tmp_path / "content").write_bytes(b"543210")
    driver.put("store/a", tmp_path / "content")
    assert driver.read("store/a", 0) == b"543210"
    (tmp_path / "content").write_bytes(b"newer")
    for filesystem.renames_left in (1, 2):  # the old one is aside already, at the second
        with pytest.raises(ConnectionResetError):
            driver.put("store/a", tmp_path / "content")
        assert driver.read("store/a", 0) == b"543210"
    filesystem.full = True
    with pytest.raises(OSError, match="no room"):
        driver.put("store/a", tmp_path / "content")
    assert driver.sizes("store") == {"a": 6}
    assert driver.read("store/a", 0) == b"543210"


def test_files_of_the_store_in_memory_appear_whole(tmp_path):
    """fsspec shows a file as soon as it is opened, and gives all readers one position in it."""
    storage = Storage.of(f"memory://bucket-{uuid.uuid4().hex}")
    content = secrets.token_bytes(4_000_000)
    (tmp_path / "content").write_bytes(content)
    found: set[int] = set()
    wrong: list[Path] = []
    is_done = threading.Event()

    def look(copy: Path) -> None:
        while not is_done.is_set():
            found.update(storage.sizes().values())
            if storage.get("x", copy) and copy.read_bytes() != content:
                wrong.append(copy)

    threads = [threading.Thread(target=look, args=(tmp_path / f"copy-{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        storage.put(tmp_path / "content", "x")
    is_done.set()
    for thread in threads:
        thread.join()
    assert found <= {len(content)}
    assert not wrong
