"""Locks between processes: real processes hold them and die with them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xfer.data.store_lock import lock, try_lock

HOLD = """
import sys, time
from pathlib import Path
from xfer.data.store_lock import lock
held = lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Starts processes that hold the lock."""
    started: list[subprocess.Popen] = []

    def start(kind: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock"), kind], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_owner_gives_its_lock_back(tmp_path, holder):
    owner = holder("exclusive")
    assert try_lock(tmp_path / "lock") is None
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    held = try_lock(tmp_path / "lock")
    assert held.supported
    held.close()


def test_shared_locks_go_together_and_keep_an_exclusive_one_out(tmp_path, holder):
    holder("shared")
    with lock(tmp_path / "lock", shared=True):
        assert try_lock(tmp_path / "lock") is None


def test_waiting_ends_when_the_owner_dies(tmp_path, holder):
    owner = holder("exclusive")
    threading.Timer(0.3, owner.kill).start()
    with lock(tmp_path / "lock") as held:
        assert held.supported
        assert owner.poll() is not None or owner.wait(60) is not None


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, holder):
    """Who waits for a file that is deleted must end up with the lock of the file that is there now."""
    owner = holder("exclusive")
    got = []
    waiter = threading.Thread(target=lambda: got.append(lock(tmp_path / "lock")))
    waiter.start()
    waiter.join(0.2)
    assert waiter.is_alive()
    (tmp_path / "lock").unlink()
    owner.kill()
    waiter.join(60)
    assert len(got) == 1
    assert (tmp_path / "lock").exists()
    assert try_lock(tmp_path / "lock") is None
    got[0].close()
    try_lock(tmp_path / "lock").close()


def test_a_lock_in_a_folder_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "gone" / "lock")
