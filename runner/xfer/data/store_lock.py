"""Advisory locks on files.

A lock belongs to the open file, so the kernel releases it when its owner ends, however it ends. Locks only keep processes
from doing the same work twice and from deleting what another one reads: that no file is ever half-written rests on renames.
On a network filesystem that knows no locks (`supported` is False) everything therefore still works; work may be done twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
BUSY = (errno.EWOULDBLOCK, errno.EACCES)


class FileLock:
    """A held lock; closing releases it. `supported` is False where the filesystem has no locks."""

    def __init__(self, descriptor: int, *, supported: bool) -> None:
        self._descriptor: int | None = descriptor
        self.supported = supported

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def lock(path: Path, *, shared: bool = False) -> FileLock:
    """Locks the file, which is made where it is absent; waits while another process holds it.

    Raises OSError where the file can't be made. A file that may only be read can still be locked `shared`.
    """
    held = None
    while held is None:
        held = _lock(path, shared=shared, wait=True)
    return held


def try_lock(path: Path) -> FileLock | None:
    """As `lock`, but None where another process holds it."""
    return _lock(path, shared=False, wait=False)


def _lock(path: Path, *, shared: bool, wait: bool) -> FileLock | None:
    while True:
        descriptor = _open(path, shared=shared)
        try:
            supported = _flock(descriptor, shared=shared, wait=wait)
            # Whoever cleared the cache may have deleted the file while we waited: such a lock guards nothing.
            is_current = _inode(path) == os.fstat(descriptor).st_ino
        except BaseException:
            os.close(descriptor)
            raise
        if supported is not None and is_current:
            return FileLock(descriptor, supported=supported)
        os.close(descriptor)
        if supported is None:
            return None


def _open(path: Path, *, shared: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if shared and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise


def _flock(descriptor: int, *, shared: bool, wait: bool) -> bool | None:
    """True: locked; False: there are no locks here; None: held by another."""
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno in BUSY:
            return None
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None
