"""A bundle's folder kept alike at a URL: what changed goes up after each checkpoint, and another node can go on from there.

The files stand at the URL under their own names. `.mirror.json`, put last, lists those that make a whole: whoever fetches takes only
them, so a push that was cut off leaves the folder as it was after the one before. Files that are gone here are removed there after the
new list is in its place.

One process after another goes on with a bundle, each in a folder of its node. The driver, which need not be on the node of the one that
writes, has three files of its own, which it adds at the end: they neither go up nor come here with the others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from xfer.cluster.storage import Storage
from xfer.engine.files import write_atomic
from xfer.errors import StoreError

LIST = ".mirror.json"
FORMAT = 1
WORDS, FIGURES, REPORT = "ray.log", "cluster.json", "report.html"
DRIVERS = (WORDS, FIGURES, REPORT)
CHECKPOINT = re.compile(r"checkpoints/(\d+)")

Seen = tuple[int, int, int]  # inode, bytes, modification time in ns


class Mirror:
    """`folder` as it is to stand in `storage`. One process writes; it may have fetched the folder from there."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self._there: dict[str, Seen] = {}  # what was put or fetched, as it was here then

    def push(self) -> int:
        """Puts what changed since the last time; how many files. Raises StoreError, DiskFullError; the older whole is there then."""
        here, folders = self._look()
        changed = [name for name in sorted(here) if self._there.get(name) != here[name]]
        for name in changed:
            try:
                self.storage.put(self.folder / name, name)
            except StoreError:
                if (self.folder / name).exists():
                    raise
                del here[name]  # removed while we were at it
        gone = set(self._there) - set(here)
        if changed or gone:
            sizes = {name: here[name][1] for name in sorted(here)}
            content = json.dumps({"format": FORMAT, "folders": folders, "files": sizes}, indent=1) + "\n"
            self.storage.write(LIST, content.encode())
        for name in sorted(gone):
            self.storage.delete(name)
        self._there = here
        return len(changed)

    def fetch(self) -> bool:
        """Brings the newest whole here, where it may replace files of the same names; False where there is none, or where what is here is
        later: a push that was cut off, which goes up as a whole next time."""
        found = self._read_list()
        if found is None or (self.folder.exists() and newest(self._look()[1]) > newest(found["folders"])):
            return False
        for name in ("", *found["folders"]):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        files = {name: n_bytes for name, n_bytes in found["files"].items() if name not in DRIVERS}
        for name, n_bytes in files.items():
            write_atomic(self.folder / name, partial(self._get, name, n_bytes))
        here, _ = self._look()
        self._there = {name: here[name] for name in files}
        return True

    def add_drivers(self) -> None:
        """The driver's own files, beside the newest whole; nothing where there is none."""
        found = self._read_list()
        if found is None:
            return
        sizes = {name: (self.folder / name).stat().st_size for name in DRIVERS if (self.folder / name).exists()}
        for name in sizes:
            self.storage.put(self.folder / name, name)
        if not sizes.items() <= found["files"].items():
            found["files"].update(sizes)
            self.storage.write(LIST, (json.dumps(found, indent=1) + "\n").encode())

    def _get(self, name: str, n_bytes: int, path: Path) -> None:
        whole = self.storage.get(name, path)
        # Files outside checkpoints grow or are replaced under their names: newer than the list is fine, shorter is not.
        if not whole or (path.stat().st_size < n_bytes and name.startswith("checkpoints/")):
            raise StoreError(
                f"{self.storage}: {name} is not whole: {path.stat().st_size} of {n_bytes} bytes",
                hint="was something removed there? start a new run with the recipe",
            )

    def _read_list(self) -> dict[str, Any] | None:
        content = self.storage.read(LIST)
        if content is None:
            return None
        try:
            found = json.loads(content)
            check_inside([*found["folders"], *found["files"]])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.storage}: {LIST} can't be understood", hint="it was written by another version of xfer, or damaged"
            ) from error
        return dict(found)

    def _look(self) -> tuple[dict[str, Seen], list[str]]:
        """Files as they are now, and folders, by their names below the folder; what starts with a dot is nobody's content."""
        files, folders = {}, []
        for parent, names, inside in os.walk(self.folder):
            names[:] = sorted(name for name in names if not name.startswith("."))
            place = Path(parent).relative_to(self.folder)
            folders += [(place / name).as_posix() for name in names]
            for name in inside:
                if not name.startswith(".") and (place / name).as_posix() not in DRIVERS:
                    status = (Path(parent) / name).stat()
                    files[(place / name).as_posix()] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return files, folders


def newest(folders: Iterable[str]) -> int:
    """The number of the newest checkpoint; 0 where there is none.

    >>> newest(["model", "checkpoints", "checkpoints/000002", "checkpoints/000011"])
    11
    """
    return max((int(found[1]) for found in map(CHECKPOINT.fullmatch, folders) if found), default=0)


def check_inside(names: list[str]) -> None:
    """Raises ValueError for a name that leads out of the folder."""
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"{name!r} is not inside")
