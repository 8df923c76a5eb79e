"""What the operating system says about the cache, in words a person can act on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from xfer.errors import DiskFullError, StoreError, XferError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
ELSEWHERE = "choose another folder with `runtime.cache` in the recipe"


def size_text(n_bytes: int) -> str:
    """Bytes for people, in decimal units.

    >>> size_text(999), size_text(77_084_000), size_text(50_000_000_000)
    ('999 B', '77.1 MB', '50.0 GB')
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def store_fault(error: OSError, path: Path, *, needed: int = 0) -> XferError:
    """The error to raise for one of the operating system's while `path` was written; `needed` is in bytes."""
    if error.errno in NO_ROOM:
        what = "the disk quota is used up" if error.errno == errno.EDQUOT else f"{size_text(free_bytes(path))} are free"
        return DiskFullError(
            f"no room left in the cache: {path} needs {size_text(needed)}, {what}",
            hint="make room with `xfer cache prune --max-size 10GB`, or choose another folder with `runtime.cache`; "
            "what was complete is kept, and the next run goes on from there",
        )
    if error.errno in READ_ONLY:
        return StoreError(f"the cache can't be written: {path}: {error.strerror}", hint=ELSEWHERE)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(f"the cache needs a folder where a file is: {blocking_file(path)}", hint=ELSEWHERE)
    if error.errno == errno.EFBIG:
        return StoreError(
            f"a file of {size_text(needed)} is larger than this disk or `ulimit -f` allows: {path}", hint=f"raise the limit, or {ELSEWHERE}"
        )
    return StoreError(f"the cache can't be used: {path}: {error.strerror or error}", hint=ELSEWHERE)


def read_fault(error: OSError, path: Path) -> StoreError:
    """The error to raise for one of the operating system's while `path` was read."""
    return StoreError(f"the cache can't be read: {path}: {error.strerror or error}", hint=ELSEWHERE)


def free_bytes(path: Path) -> int:
    """Room on the disk of `path` or of its nearest existing parent."""
    for folder in (path, *path.parents):
        if folder.exists():
            return shutil.disk_usage(folder).free
    return 0


def blocking_file(path: Path) -> Path:
    """The nearest part of `path` that exists and is no folder."""
    for folder in (path, *path.parents):
        if os.path.lexists(folder):
            return folder
    return path
