"""A place that every node sees: a folder of a shared filesystem, or what lies behind a URL (s3://, gs://, …).

Whatever is put there appears whole or not at all: where there are folders it gets a temporary name first and is then renamed, and
object stores put in one step. Names that start with a dot are nobody's content. Libraries that read URLs find credentials by
themselves, in the environment or by the node's role; none stands in a message.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fsspec

from xfer.compile.secrets import secret_of
from xfer.data.locations import shown
from xfer.data.store_faults import NO_ROOM, free_bytes, size_text
from xfer.data.store_folder import UNLOCKED_LEFTOVER_SECONDS
from xfer.data.store_shard import TEMPORARY
from xfer.errors import DiskFullError, StoreError, UsageError

SETTING = "cluster.storage"
FOLDER_SCHEMES = ("file", "local")
READ_ONLY_SCHEMES = ("http", "https", "github", "git", "data", "zip", "tar", "pkg")
ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")  # pyarrow reads and writes these by itself
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory")  # no folders to make; a put is one step
LIBRARY_FAULTS = {  # what storage libraries raise beside OSError
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "pyarrow": ("ArrowException",),
}
EVERYWHERE = "it must be a folder that every node sees and may write to, or a URL whose credentials every node has"


class Driver(Protocol):
    """Reads and writes files by their names below the place, parts separated by '/'."""

    def sizes(self, folder: str) -> dict[str, int]: ...
    def read(self, name: str, start: int) -> bytes: ...
    def get(self, name: str, file: Path) -> None: ...
    def put(self, name: str, content: Path | bytes) -> None: ...
    def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class Storage:
    """`location` is an absolute path or a URL, `folder` a place within it. Plain data: workers get it as it is."""

    location: str
    folder: str = ""

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

    # files

    def sizes(self) -> dict[str, int]:
        """Files that lie directly here, with their bytes; none where the folder is not there."""
        with self._reached("can't be listed"):
            found = self._driver.sizes(self.folder)
        return {name: n_bytes for name, n_bytes in found.items() if not name.startswith(".")}

    def read(self, name: str, *, start: int = 0) -> bytes | None:
        """The content of a file from byte `start` on, or None where it is not there."""
        with self._reached(f"{name} can't be read"):
            with suppress(FileNotFoundError):
                return self._driver.read(self._within(name), start)
            return None

    def get(self, name: str, file: Path) -> bool:
        """Copies a file to the path `file`; False where it is not there."""
        with self._reached(f"{name} can't be copied to {file}", file=file):
            with suppress(FileNotFoundError):
                self._driver.get(self._within(name), file)
                return True
            return False

    def put(self, file: Path, name: str) -> None:
        """A copy of the path `file`, in the place of an older one."""
        with self._reached(f"{name} can't be written"):
            self._driver.put(self._within(name), file)

    def write(self, name: str, content: bytes) -> None:
        with self._reached(f"{name} can't be written"):
            self._driver.put(self._within(name), content)

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self._reached(f"{name} can't be removed"), suppress(FileNotFoundError):
            self._driver.delete(self._within(name))

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

    @property
    def _driver(self) -> Driver:
        return driver(self.location)

    @contextmanager
    def _reached(self, what: str, *, file: Path | None = None) -> Iterator[None]:
        """Says `what` for faults of the place, and who is full where there is no room (`file`: this machine's disk, perhaps)."""
        try:
            yield
        except faults() as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                room = f", {size_text(free_bytes(file))} are free on the disk of {file.parent}" if file else ""
                raise DiskFullError(f"{SETTING}: {self}: {what}: no room left{room}", hint="make room, then start it again") from None
            hint = "install it on every node" if isinstance(error, ImportError) else EVERYWHERE
            # Not `from error`: a library's own words may hold an address with a secret in it.
            raise StoreError(f"{SETTING}: {self}: {what}: {self._reason(error)}", hint=hint) from None

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


@functools.lru_cache(maxsize=16)
def driver(location: str) -> Driver:
    """What reads and writes there; raises UsageError, and whatever a library raises while it connects."""
    if (folder := folder_of(location)) is not None:
        return FolderDriver(folder)
    scheme = scheme_of(location) or ""
    query = urlsplit(location).query
    try:
        if query and scheme in ARROW_SCHEMES:  # options such as endpoint_override are pyarrow's
            return _arrow(location)
        return FilesystemDriver(*fsspec.core.url_to_fs(location), scheme=scheme)
    except ImportError:
        if scheme in ARROW_SCHEMES:
            return _arrow(location)
        raise


def _arrow(location: str) -> FilesystemDriver:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    filesystem, root = FileSystem.from_uri(location)
    return FilesystemDriver(ArrowFSWrapper(filesystem), root, scheme=scheme_of(location) or "")


class FolderDriver:
    """A folder of this machine or of a filesystem that is mounted here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._swept: set[Path] = set()

    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # replaced while we look
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def read(self, name: str, start: int) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read()

    def get(self, name: str, file: Path) -> None:
        shutil.copyfile(self.root / name, file)

    def put(self, name: str, content: Path | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sweep(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.root / name).unlink()

    def _sweep(self, folder: Path) -> None:
        """Removes what killed writers left, once for each folder."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        for path in folder.glob(f".*{TEMPORARY}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > UNLOCKED_LEFTOVER_SECONDS:
                    path.unlink()


class FilesystemDriver:
    """An fsspec filesystem, of its own library or of pyarrow."""

    def __init__(self, filesystem: Any, root: str, *, scheme: str) -> None:
        self.filesystem, self.root = filesystem, root.rstrip("/")
        self.has_folders = scheme not in OBJECT_STORES
        self.is_memory = scheme == "memory"  # shows a file that is being copied, and its readers share one position: whole contents only

    def sizes(self, folder: str) -> dict[str, int]:
        path = self._path(folder)
        self.filesystem.invalidate_cache(path)  # other nodes write there
        try:
            entries = self.filesystem.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = [entry for entry in entries if entry["type"] == "file" and entry["name"].strip("/") != path.strip("/")]
        return {entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"]) for entry in files}

    def read(self, name: str, start: int) -> bytes:
        self.filesystem.invalidate_cache(self.filesystem._parent(self._path(name)))
        return bytes(self.filesystem.cat_file(self._path(name), start=start or None))

    def get(self, name: str, file: Path) -> None:
        if self.is_memory:
            file.write_bytes(self.filesystem.cat_file(self._path(name)))
        else:
            self.filesystem.get_file(self._path(name), str(file))

    def put(self, name: str, content: Path | bytes) -> None:
        path = self._path(name)
        if not self.has_folders:
            self._write(content, path)
            return
        parent = self.filesystem._parent(path)
        temporary = f"{parent}/.{path.rpartition('/')[2]}.{secrets.token_hex(6)}{TEMPORARY}"
        self.filesystem.makedirs(parent, exist_ok=True)
        try:
            self._write(content, temporary)
            self._rename(temporary, path)
        except BaseException:
            with suppress(*faults()):  # the first fault is the one to tell
                self.filesystem.rm_file(temporary)
            raise

    def _write(self, content: Path | bytes, path: str) -> None:
        if self.is_memory and isinstance(content, Path):
            content = content.read_bytes()
        if isinstance(content, bytes):
            self.filesystem.pipe_file(path, content)
        else:
            self.filesystem.put_file(str(content), path)

    def _rename(self, old: str, new: str) -> None:
        try:
            self.filesystem.mv(old, new)
        except OSError:
            if not self.filesystem.exists(new):
                raise
            self._replace(old, new)

    def _replace(self, old: str, new: str) -> None:
        """Where nothing is renamed over a file, as on HDFS and SMB: a reader finds none for a moment, which is safe."""
        aside = f"{old}.old"
        self.filesystem.mv(new, aside)
        try:
            self.filesystem.mv(old, new)
        except BaseException:
            self.filesystem.mv(aside, new)
            raise
        self.filesystem.rm_file(aside)

    def delete(self, name: str) -> None:
        self.filesystem.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def scheme_of(location: str) -> str | None:
    """The part before '://' in small letters, or None for a path.

    >>> scheme_of("S3://bucket/xfer"), scheme_of("/mnt/xfer")
    ('s3', None)
    """
    scheme, separator, _ = location.partition("://")
    return scheme.lower() if separator and scheme else None


def folder_of(location: str) -> Path | None:
    """The folder that a location means, be it written as a URL; None for an object store.

    >>> folder_of("file:///mnt/my%20xfer"), folder_of("s3://bucket/xfer")
    (PosixPath('/mnt/my xfer'), None)
    """
    scheme = scheme_of(location)
    if scheme is None:
        return Path(location)
    return Path(unquote(urlsplit(location).path)) if scheme in FOLDER_SCHEMES else None


def faults() -> tuple[type[BaseException], ...]:
    """What reading and writing may raise: the operating system's errors, and those of the storage libraries that are loaded."""
    found: list[type[BaseException]] = [OSError, ValueError, ImportError]
    for module, names in LIBRARY_FAULTS.items():
        loaded = sys.modules.get(module)
        found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return tuple(found)


def hidden(text: str, location: str) -> str:
    """A library's words without what an address says beside its place.

    >>> hidden("no such bucket: s3://b/x?endpoint_override=host", "s3://b/x?endpoint_override=host")
    'no such bucket: s3://b/x?…'
    """
    parts = urlsplit(location)
    for secret in (parts.query, parts.netloc.rpartition("@")[0]):
        text = text.replace(secret, "…") if secret else text
    return text
