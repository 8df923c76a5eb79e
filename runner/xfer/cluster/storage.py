"""A place that every node sees: a folder of a shared filesystem, or what lies behind a URL (s3://, gs://, …).

Whatever is put there appears whole or not at all: where there are folders it gets a temporary name first and is then renamed, and
object stores put in one step. Names that start with a dot are nobody's content. Libraries that read URLs find credentials by
themselves, in the environment or by the node's role; none stands in a message.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import fsspec

from xfer.cluster.storage_drivers import ARROW_SCHEMES, FOLDER_SCHEMES, Driver, driver, faults, hidden, scheme_of
from xfer.compile.secrets import secret_of
from xfer.data.locations import shown
from xfer.data.store_faults import NO_ROOM, free_bytes, size_text
from xfer.errors import DiskFullError, StoreError, UsageError

SETTING = "cluster.storage"
READ_ONLY_SCHEMES = ("http", "https", "github", "git", "data", "zip", "tar", "pkg")
EVERYWHERE = "it must be a folder that every node sees and may write to, or a URL whose credentials every node has"
PATIENCE_SECONDS = 300.0  # that a place which was reached before may be out of reach while a run waits
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
LOGGER = logging.getLogger("xfer.cluster.storage")
T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """`location` is an absolute path or a URL, `folder` a place within it. Plain data: workers get it as it is.

    What fails is tried again for `patience` seconds: networks and services have bad minutes. None before a place was seen to be the right
    one, where a fault is to be told at once."""

    location: str
    folder: str = ""
    patience: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, location: str) -> Storage:
        """The place that the recipe's `cluster.storage` means, whether it is there or not; raises UsageError where nothing writes to it."""
        scheme = scheme_of(location)
        if not location:
            raise UsageError(f"{SETTING}: the location is empty", hint=EVERYWHERE)
        if scheme is None:
            return cls(os.path.abspath(os.path.expanduser(location)))
        if (kind := secret_of(location)) is not None:
            raise UsageError(
                f"{SETTING}: {shown(location)} is written with a {kind}, and a bundle keeps what it was made with",
                hint="leave it out: storage libraries find credentials in the environment or in their own settings",
            )
        if scheme in READ_ONLY_SCHEMES or (scheme not in (*FOLDER_SCHEMES, *ARROW_SCHEMES) and scheme not in fsspec.available_protocols()):
            raise UsageError(f"{SETTING}: {shown(location)}: nothing here writes to '{scheme}://'", hint=EVERYWHERE)
        return cls(location.rstrip("/") if "?" not in location else location)

    @property
    def is_url(self) -> bool:
        """Bundles are worked on elsewhere and mirrored to a URL; they lie in a folder themselves."""
        return scheme_of(self.location) is not None

    @property
    def path(self) -> Path:
        """Where a place that is no URL lies."""
        return Path(self.location, self.folder)

    def inside(self, *names: str) -> Storage:
        return replace(self, folder="/".join(filter(None, [self.folder, *names])))

    def __str__(self) -> str:
        place, mark, options = (shown(self.location) if self.is_url else self.location).partition("?")
        return (f"{place}/{self.folder}" if self.folder else place) + mark + options

    def patient(self, seconds: float = PATIENCE_SECONDS) -> Storage:
        return replace(self, patience=seconds)

    # files

    def sizes(self) -> dict[str, int]:
        """Files that lie directly here, with their bytes; none where the folder is not there."""
        found = self._tried("can't be listed", lambda driver: driver.sizes(self.folder)) or {}
        return {name: n_bytes for name, n_bytes in found.items() if not name.startswith(".")}

    def read(self, name: str, *, start: int = 0) -> bytes | None:
        """The content of a file from byte `start` on, or None where it is not there."""
        return self._tried(f"{name} can't be read", lambda driver: driver.read(self._within(name), start))

    def get(self, name: str, file: Path) -> bool:
        """Copies a file to the path `file`; False where it is not there."""

        def copy(driver: Driver) -> bool:
            driver.get(self._within(name), file)
            return True

        return self._tried(f"{name} can't be copied to {file}", copy, file=file) or False

    def put(self, file: Path, name: str) -> None:
        """A copy of the path `file`, in the place of an older one."""
        self._tried(f"{name} can't be written", lambda driver: driver.put(self._within(name), file), needs_it=True)

    def write(self, name: str, content: bytes) -> None:
        self._tried(f"{name} can't be written", lambda driver: driver.put(self._within(name), content), needs_it=True)

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""
        self._tried(f"{name} can't be removed", lambda driver: driver.delete(self._within(name)))

    # before work begins

    def probe(self) -> None:
        """Writes a small file, reads it back and removes it; raises UsageError."""
        mark = self.leave_mark()
        try:
            if not self.sees(mark):
                raise UsageError(f"{SETTING}: {self}: what was written there can't be read back", hint=EVERYWHERE)
        finally:
            self.remove_mark(mark)

    def leave_mark(self) -> str:
        """Writes a file of a new name, which it returns: a node that doesn't see it looks at another place. Raises UsageError."""
        mark = f".mark-{secrets.token_hex(8)}"
        try:
            self.write(mark, mark.encode())
        except (StoreError, DiskFullError) as error:
            raise UsageError(error.message, hint=error.hint) from None
        return mark

    def sees(self, mark: str) -> bool:
        """Whether `leave_mark`'s file is here; raises UsageError."""
        try:
            return self.read(mark) == mark.encode()
        except StoreError as error:
            raise UsageError(error.message, hint=error.hint) from None

    def remove_mark(self, mark: str) -> None:
        with suppress(StoreError):  # what went wrong was said already
            self.delete(mark)

    def _within(self, name: str) -> str:
        return self.inside(name).folder

    def _tried(self, what: str, call: Callable[[Driver], T], *, needs_it: bool = False, file: Path | None = None) -> T | None:
        """What `call` gives, or None where a file is not there, unless it `needs_it`. Raises StoreError once patience is over, and
        DiskFullError at once."""
        until, pause, was_told = time.monotonic() + self.patience, FIRST_PAUSE_SECONDS, False
        while True:
            try:
                found = call(driver(self.location))
            except faults() as error:
                is_absent = isinstance(error, FileNotFoundError)
                if is_absent and not needs_it:
                    return None
                told, left = self._told(what, error, file), until - time.monotonic()
                if isinstance(told, DiskFullError) or is_absent or isinstance(error, ImportError) or left <= 0:
                    # Not `from error`: a library's own words may hold an address with a secret in it.
                    raise told from None
                if not was_told:
                    LOGGER.warning("%s; it is tried again for %g s", told.message, self.patience)
                was_told = True
            else:
                if was_told:
                    LOGGER.warning("%s: %s can be reached again", SETTING, self)
                return found
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _told(self, what: str, error: BaseException, file: Path | None) -> StoreError | DiskFullError:
        """Says `what` failed, and who is full where there is no room (`file`: this machine's disk, perhaps)."""
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            room = f", {size_text(free_bytes(file))} are free on the disk of {file.parent}" if file else ""
            return DiskFullError(f"{SETTING}: {self}: {what}: no room left{room}", hint="make room, then start it again")
        hint = "install it on every node" if isinstance(error, ImportError) else EVERYWHERE
        return StoreError(f"{SETTING}: {self}: {what}: {self._reason(error)}", hint=hint)

    def _reason(self, error: BaseException) -> str:
        text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return hidden(text, self.location).splitlines()[0]


def require_shared(storage: Storage | None, n_nodes: int) -> None:
    """Raises UsageError where several nodes have no place in common; one node needs none."""
    if storage is None and n_nodes > 1:
        raise UsageError(
            f"{SETTING}: it is not set, and the {n_nodes} nodes that this run would be spread over need one place for features and bundle",
            hint="set it, or --storage, to a folder that every node sees, such as /mnt/shared/xfer, or to a URL such as s3://bucket/xfer",
        )


