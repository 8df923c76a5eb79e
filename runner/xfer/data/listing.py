"""Images below a folder: which endings count, what is hidden, how links are followed."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from xfer.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Image files all the same: someone will miss them, so they are counted. Other endings (text, sidecars) are passed over.
OTHER_IMAGES = frozenset(
    f".{ending}"
    for group in ("gif heic heif avif jp2 j2k jxl jfif jpe", "tga psd ico svg pbm exr hdr dcm", "dng cr2 nef arw")
    for ending in group.split()
)
JUNK = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})


@dataclass(frozen=True)
class Listing:
    """Paths of images relative to the folder, '/' between parts, sorted bytewise; `others` counts images we don't read, by ending."""

    images: tuple[str, ...]
    others: Counter[str]


def is_hidden(name: str) -> bool:
    """Whether an entry is passed over: a leading dot, or what operating systems leave behind."""
    return name.startswith(".") or name in JUNK


def is_image(name: str) -> bool:
    """Whether a file name has one of our endings, in any case.

    >>> is_image("A.JPG"), is_image("a.txt")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in ENDINGS


def is_folder(entry: os.DirEntry[str], *, top: bool = False) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads to itself is none. Raises DataError for a link that leads where we
    may not look, and at the `top`, where classes and splits are, for one without an ending that leads nowhere: to a disk that is not
    mounted, say."""
    try:
        if top and entry.is_symlink() and not os.path.splitext(entry.name)[1]:
            os.stat(entry.path)
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP or is_image(entry.name):  # an image is quarantined when it is read
            return False
        raise DataError(
            f"{entry.path}: the link can't be followed: {(error.strerror or str(error)).lower()}", path="target.path"
        ) from error


def images_under(folder: Path) -> Listing:
    """All images below a folder.

    Symbolic links are followed; a link to a folder that it lies in is not. A link that leads nowhere counts as an image
    if its name says so: it will be quarantined rather than silently missed. Raises DataError where a folder can't be read.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(folder), "", _above(folder))]
    while stack:
        path, prefix, above = stack.pop()
        here = _identity(path)
        if here in above:
            continue
        for entry in entries(path):
            if is_folder(entry):
                stack.append((entry.path, f"{prefix}{entry.name}/", above | {here}))
            elif is_image(entry.name) and (_leads_nowhere(entry) or entry.is_file()):
                images.append(prefix + entry.name)
            elif (ending := os.path.splitext(entry.name)[1].lower()) in OTHER_IMAGES:
                others[ending] += 1
    return Listing(tuple(sorted(images, key=os.fsencode)), others)


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, sorted by name. Raises DataError where it can't be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: the folder can't be read: {(error.strerror or str(error)).lower()}", path="target.path") from error


def printable(name: str) -> str:
    """A file name as text that can be written anywhere: bytes that are not UTF-8 become escapes.

    >>> printable(os.fsdecode(b"caf\\xe9.jpg"))
    'caf\\\\xe9.jpg'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _above(folder: Path) -> frozenset[tuple[int, int]]:
    """The folders that a folder lies in, by its path and by where it really lies: what leads back to one of them brings the
    images of its neighbours, which are other classes."""
    return frozenset(_identity(parent) for place in (Path(os.path.abspath(folder)), folder.resolve()) for parent in place.parents)


def _identity(folder: str | Path) -> tuple[int, int]:
    """What a folder is on this machine, whatever path leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
