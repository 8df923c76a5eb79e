"""Full, read-only and misplaced cache folders: real ones, made with mounts of our own and resource limits."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xfer.data.store import FeatureStore, StoreSpec
from xfer.data.store_faults import read_fault, store_fault
from xfer.errors import DiskFullError, StoreError

SPEC = StoreSpec({"model": "m", "cut": "c"}, 40, (4096,), "float32", 16)  # 262 kB a shard, 640 kB in all

PRELUDE = """
import os, sys, shutil, subprocess, resource
from pathlib import Path
import numpy as np
from xfer.data.store import FeatureStore, StoreSpec
from xfer.errors import XferError
folder = Path(sys.argv[1])
SPEC = StoreSpec({"model": "m", "cut": "c"}, 40, (4096,), "float32", 16)
VALUES = np.arange(40 * 4096, dtype=np.float32).reshape(40, 4096)
def fill(store, rows=np.arange(40)):
    try:
        for shard, some in store.missing(rows):
            store.write(shard, some, VALUES[some])
    except XferError as error:
        print(type(error).__name__, error.message, error.hint, sep="\\n")
def temporary(store):
    return sorted(path.name for path in store.folder.rglob("*.tmp"))
"""


def run_script(script: str, folder: Path, *, own_mounts: bool = False) -> list[str]:
    command = [sys.executable, "-c", PRELUDE + script, str(folder)]
    done = subprocess.run((["unshare", "-rm"] if own_mounts else []) + command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    """A folder on which a script in a mount namespace of its own may mount something."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"this system allows no mounts of one's own: {probe.stderr.strip()}")
    return folder


FULL = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(folder)], check=True)
store = FeatureStore(folder, SPEC)
fill(store)
free = shutil.disk_usage(folder).free
print(free, temporary(store))
again = FeatureStore(folder, SPEC)
print([(shard, len(rows)) for shard, rows in again.missing(np.arange(40))])
assert (again.take(np.arange(32)) == VALUES[:32]).all()
fill(store)
subprocess.run(["mount", "-o", "remount,size=900k", str(folder)], check=True)
fill(store)
print(store.missing(np.arange(40)), (store.take(np.arange(40)) == VALUES).all())
"""


def test_a_full_disk_says_what_was_needed_and_works_again_with_room(mount_point):
    lines = run_script(FULL, mount_point, own_mounts=True)
    kind, message, hint, left, missing, *again, end = lines
    free = int(left.split()[0])
    folder = mount_point / "features" / SPEC.digest
    assert kind == "DiskFullError"
    assert message == f"no room left in the cache: {folder}/00002.npy needs 131.2 kB, {free / 1000:.1f} kB are free"
    assert hint == (
        "make room with `xfer cache prune --max-size 10GB`, or choose another folder with `runtime.cache`; "
        "what was complete is kept, and the next run goes on from there"
    )
    assert left.split(maxsplit=1)[1] == "[]"
    assert missing == "[(2, 8)]"
    assert again == [kind, message, hint]
    assert end == "[] True"


NO_ROOM_AT_ALL = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=3", "none", str(folder)], check=True)
fill(FeatureStore(folder, SPEC))
"""


def test_a_disk_without_room_for_the_folder(mount_point):
    kind, message, hint = run_script(NO_ROOM_AT_ALL, mount_point, own_mounts=True)
    assert kind == "DiskFullError"
    assert message.startswith(f"no room left in the cache: {mount_point}/features/{SPEC.digest} needs ")


READ_ONLY = """
subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
store = FeatureStore(folder, SPEC)
fill(store, np.arange(20))
store.mark_bad({1: "unreadable"})
store.close()
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
store = FeatureStore(folder, SPEC)
print(store.missing(np.arange(20)), (store.take(np.arange(20)) == VALUES[:20]).all(), store.bad())
fill(store)
fill(FeatureStore(folder, StoreSpec({"other": 1}, 40, (4096,), "float32", 16)))
"""


def test_a_read_only_cache_is_read_and_not_written(mount_point):
    read, *written = run_script(READ_ONLY, mount_point, own_mounts=True)
    assert read == "[] True {1: 'unreadable'}"
    folder = mount_point / "features" / SPEC.digest
    hint = "choose another folder with `runtime.cache` in the recipe"
    assert written[:3] == ["StoreError", f"the cache can't be written: {folder}: Read-only file system", hint]
    assert written[3] == "StoreError"
    assert written[4].startswith(f"the cache can't be written: {mount_point}/features/")
    assert written[4].endswith(": Read-only file system")


COPIED_READ_ONLY = """
subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
store = FeatureStore(folder, SPEC)
fill(store)
store.close()
shutil.rmtree(store.folder / "locks")
(store.folder / "used").unlink()
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
store = FeatureStore(folder, SPEC)
print(store.missing(np.arange(40)), (store.take(np.arange(40)) == VALUES).all())
"""


def test_a_read_only_copy_without_lock_files_is_read(mount_point):
    assert run_script(COPIED_READ_ONLY, mount_point, own_mounts=True) == ["[] True"]


TOO_LARGE = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = FeatureStore(folder, SPEC)
fill(store)
print(temporary(store))
"""


def test_a_file_size_limit_is_named(tmp_path):
    path = tmp_path / "features" / SPEC.digest / "00000.npy"
    assert run_script(TOO_LARGE, tmp_path) == [
        "StoreError",
        f"a file of 262.3 kB is larger than this disk or `ulimit -f` allows: {path}",
        "raise the limit, or choose another folder with `runtime.cache` in the recipe",
        "[]",
    ]


NOBODY = """
os.setgroups([]); os.setgid(65534); os.setuid(65534)
fill(FeatureStore(folder, SPEC))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="changes the user, which needs root")
def test_a_folder_of_somebody_else(tmp_path):
    # Python itself must stay reachable for the other user, so the folder lies where everybody may look.
    folder = Path("/dev/shm") / f"xfer-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        kind, message, _ = run_script(NOBODY, folder)
    finally:
        folder.rmdir()
    assert kind == "StoreError"
    assert message == f"the cache can't be written: {folder}/features/{SPEC.digest}: Permission denied"


@pytest.mark.parametrize("where", ["cache", "cache/features", f"cache/features/{SPEC.digest}"])
def test_a_file_where_the_folder_should_be(tmp_path, where):
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    store = FeatureStore(tmp_path / "cache", SPEC)
    assert [shard for shard, _ in store.missing(np.arange(40))] == [0, 1, 2]
    with pytest.raises(StoreError) as caught:
        store.write(0, np.array([0]), np.zeros((1, 4096), np.float32))
    assert caught.value.message == f"the cache needs a folder where a file is: {file}"


def test_a_cache_behind_a_link_to_another_disk(tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem")
    target = elsewhere / f"xfer-test-{os.getpid()}"
    target.mkdir()
    try:
        (tmp_path / "cache").symlink_to(target)
        store = FeatureStore(tmp_path / "cache", SPEC)
        store.write(0, np.array([3]), np.full((1, 4096), 3, np.float32))
        assert store.take(np.array([3]))[0, 0] == 3
        store.close()
    finally:
        shutil.rmtree(target)


def test_every_message_of_the_operating_system(tmp_path):
    path = tmp_path / "cache" / "x.npy"
    quota = store_fault(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), path, needed=77_084_000)
    assert type(quota) is DiskFullError
    assert quota.message == f"no room left in the cache: {path} needs 77.1 MB, the disk quota is used up"
    denied = store_fault(OSError(errno.EACCES, "Permission denied"), path)
    assert type(denied) is StoreError
    assert denied.message == f"the cache can't be written: {path}: Permission denied"
    other = store_fault(OSError(errno.EIO, "Input/output error"), path)
    assert other.message == f"the cache can't be used: {path}: Input/output error"
    assert read_fault(OSError(errno.EIO, "Input/output error"), path).message == f"the cache can't be read: {path}: Input/output error"
