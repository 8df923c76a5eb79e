"""Where a path in a recipe lies: plain paths, files inside installed packages, and files behind a URL.

data/flowers                relative to the working directory; ~ is the home folder
pkg://package/inside/it     inside an installed package, which is found but never imported
file:///data/flowers        a plain path, written as a URL
https://…, s3://…, gs://…   anything that fsspec reads; copied once into a cache folder named after the URL
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import http.client
import importlib.util
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec

from xfer.errors import DiskFullError, UsageError

CACHE = "~/.cache/xfer/downloads"
PACKAGE = "pkg://"
TIMEOUT_SECONDS = 30.0  # without an answer; a slow download that goes on is not cut off
BLOCK_BYTES = 1 << 20
DISK_FULL = (28, 122)  # ENOSPC, EDQUOT


@dataclass(frozen=True)
class Located:
    """`file` is the absolute path that a location means; `url` is where it is copied from when it is not there yet."""

    file: Path
    url: str | None = None


def local_path(location: str, *, cache: Path | None = None) -> Path:
    """The absolute path of a file or folder that exists; what lies behind a URL is copied into the cache first.

    Raises UsageError with the absolute path (or URL) that was tried, and the nearest names there.
    """
    located = locate(location, cache=cache)
    if located.url is not None and not located.file.exists():
        copy_in(located.url, located.file)
    if not located.file.exists():
        raise UsageError(missing(located.file))
    return located.file


def locate(location: str, *, cache: Path | None = None) -> Located:
    """The place that a location means, without reading anything behind a URL and without asking whether it exists.

    Raises UsageError where that can't be known: a package that is not installed, a protocol that nothing reads.
    """
    if not location:
        raise UsageError("the path is empty")
    if location.startswith(PACKAGE):
        return Located(_in_package(location))
    scheme = _scheme(location)
    if scheme is None:
        return Located(_absolute(location))
    if scheme in ("file", "local"):
        return Located(_absolute(unquote(urlsplit(location).path)))
    known = {"http", "https", *fsspec.available_protocols()}
    if scheme.split("::")[0] not in known:
        near = difflib.get_close_matches(scheme, known, n=1)
        raise UsageError(f"{shown(location)}: nothing here reads '{scheme}://'" + (f"; did you mean '{near[0]}://'?" if near else ""))
    folder = (cache or _absolute(CACHE)) / hashlib.blake2b(location.encode(), digest_size=12).hexdigest()
    return Located(folder / (Path(unquote(urlsplit(location).path)).name or "download"), location)


def missing(path: Path) -> str:
    """What is said of a path that is not there: the absolute path, and the nearest name or the nearest folder that exists."""
    parent = path.parent
    if parent.is_dir():
        near = difflib.get_close_matches(path.name, [entry.name for entry in _entries(parent)], n=1)
        return f"no file or folder {path}" + (f"; did you mean '{near[0]}'?" if near else "")
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return f"no file or folder {path}; the part of it that exists is {parent}"


def shown(url: str) -> str:
    """A URL for messages: without user name, password and query, which may hold a secret.

    >>> shown("https://me:word@host:8000/a/b.pth?token=1")
    'https://host:8000/a/b.pth?…'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + ("?…" if parts.query else "")


def copy_in(url: str, file: Path, *, check: Callable[[Path], None] | None = None) -> None:
    """Copy what lies behind a URL to `file`: to a temporary name first, so that a half copy never takes its name.

    `check` may look at the copy before it takes the name, and raise what is wrong with it. Raises UsageError with the reason when it
    can't be had, DiskFullError when there is no room.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=file.parent))
    except OSError as error:
        raise UsageError(f"cannot copy {shown(url)}: {file.parent} can't be written ({error.strerror or error})") from None
    try:
        copied = folder / file.name
        if urlsplit(url).scheme in ("http", "https"):
            _copy_web(url, copied)
        else:
            _copy_filesystem(url, copied)
        if check is not None:
            check(copied)
        if not (copied.is_dir() and file.is_dir()):  # a folder that another process put there meanwhile stays
            os.replace(copied, file)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError(f"no room left in {file.parent} for {shown(url)}") from None
        raise UsageError(f"cannot copy {shown(url)}: {_reason(error)}") from None
    except (http.client.HTTPException, ImportError, ValueError) as error:
        raise UsageError(f"cannot copy {shown(url)}: {_reason(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_web(url: str, file: Path) -> None:
    parts, headers = urlsplit(url), {"User-Agent": "xfer"}
    account, _, host = parts.netloc.rpartition("@")
    if account:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(account).encode()).decode()
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer, file.open("wb") as out:
        promised = answer.headers.get("Content-Length")
        shutil.copyfileobj(answer, out, BLOCK_BYTES)
        if promised is not None and out.tell() != int(promised):
            raise ConnectionError(f"the connection ended after {out.tell()} of {promised} bytes")


def _copy_filesystem(url: str, file: Path) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.isdir(path):
        filesystem.get(path.rstrip("/") + "/", str(file) + "/", recursive=True)
    else:
        filesystem.get_file(path, str(file))


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        inner = error.reason
        return f"no connection ({inner.strerror or inner if isinstance(inner, OSError) else inner})"
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _scheme(location: str) -> str | None:
    scheme, separator, _ = location.partition("://")
    return scheme.lower() if separator and scheme.replace("+", "").replace("-", "").replace(":", "").isalnum() else None


def _absolute(path: str) -> Path:
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError:  # ~someone who has no account
        raise UsageError(f"{path}: there is no such home folder") from None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _in_package(location: str) -> Path:
    package, _, inside = location.removeprefix(PACKAGE).partition("/")
    parts = [part for part in inside.split("/") if part]
    if not package.isidentifier() or ".." in parts:
        raise UsageError(f"{location}: must be pkg://package/path/inside/it, with the name that one would import")
    try:
        found = importlib.util.find_spec(package)  # of a top package: imports nothing
    except ValueError:  # a module of this process that has no spec, such as __main__
        found = None
    if found is None or found.name != package:  # __main__ bears the name of what `python -m` ran
        raise UsageError(f"{location}: no package '{package}' is installed here; install the one that holds it: pip install {package}")
    if not found.submodule_search_locations:
        raise UsageError(f"{location}: '{package}' is a single module, not a package with files in it")
    roots = [Path(root).absolute() for root in found.submodule_search_locations]
    tried = [root.joinpath(*parts) for root in roots]  # a namespace package has several roots
    return next((path for path in tried if path.exists()), max(tried, key=lambda path: path.parent.exists()))
