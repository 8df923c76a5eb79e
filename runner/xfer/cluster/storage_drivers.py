"""What reads and writes files at a place: a folder, or a filesystem of fsspec or pyarrow behind a URL. Files appear whole or not at all."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fsspec

from xfer.data.store_folder import UNLOCKED_LEFTOVER_SECONDS
from xfer.data.store_shard import TEMPORARY

FOLDER_SCHEMES = ("file", "local")
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


class Driver(Protocol):
    """Reads and writes files by their names below the place, parts separated by '/'."""

    def sizes(self, folder: str) -> dict[str, int]: ...
    def read(self, name: str, start: int) -> bytes: ...
    def get(self, name: str, file: Path) -> None: ...
    def put(self, name: str, content: Path | bytes) -> None: ...
    def delete(self, name: str) -> None: ...


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
    return ArrowDriver(ArrowFSWrapper(filesystem), root, scheme=scheme_of(location) or "")


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


class ArrowDriver(FilesystemDriver):
    """A filesystem of pyarrow. It copies files itself: where Python writes to its streams, a signal that ends the writing leaves the first
    part of the content as if it were all."""

    def _write(self, content: Path | bytes, path: str) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        if isinstance(content, bytes):
            with tempfile.NamedTemporaryFile(prefix="xfer-put-") as file:
                file.write(content)
                file.flush()
                self._write(Path(file.name), path)
        else:
            copy_files(str(content), path, source_filesystem=LocalFileSystem(), destination_filesystem=self.filesystem.fs)


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
