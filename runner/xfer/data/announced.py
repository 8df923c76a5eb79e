"""A dataset whose files are not there yet: what is known of it without them, and how they are had.

A dataset plugin raises AbsentDataError with an Announced where it would have to download. Nothing is downloaded before
`Announced.fetch` is called, which only `xfer run` and `xfer fetch` do.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from xfer.data.dataset import Dataset, RawImage
from xfer.data.locations import copy_in, shown
from xfer.errors import DataError, UsageError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Download:
    """One file that is not there: where it comes from, the absolute path where it is looked for, and its size where that is known.

    `sha256` is asked of what was downloaded, never of a file that lay there already; without it a file packed with gzip is
    unpacked once, which shows damage too.
    """

    url: str
    file: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Announced:
    """What a provider says of a dataset. `counts` is, per split that it has ('train', 'val', 'test', or '' where it has none), the
    number of images of each class; where only totals are known, they are spread evenly. `fetch` downloads what is missing and
    tells its argument so before it begins; it raises DataError, naming what to fetch by hand and where to put it."""

    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    downloads: tuple[Download, ...]
    fetch: Callable[[Say], None]

    def rows(self) -> Dataset:
        """Rows as many as there will be, with labels and splits, to be counted; their images can't be read."""
        splits, labels = [], []
        for split, numbers in self.counts.items():
            labels.append(np.repeat(np.arange(len(numbers), dtype=np.int64), numbers))
            splits.append(np.full(len(labels[-1]), split, "<U5"))
        joined = np.concatenate(labels)
        return Dataset(self.classes, tuple(map(str, range(len(joined)))), joined, np.concatenate(splits), _unreadable)


def spread(n: int, n_classes: int) -> tuple[int, ...]:
    """A total as evenly over classes as it goes.

    >>> spread(50, 4)
    (13, 13, 12, 12)
    """
    return tuple(n // n_classes + (label < n % n_classes) for label in range(n_classes))


@dataclass(frozen=True)
class Fetch:
    """Downloads files one after the other: an `Announced.fetch` for a plugin that needs no library for it. `what` is for messages:
    'the images of keras/cifar10'."""

    what: str
    downloads: tuple[Download, ...]

    def __call__(self, say: Say) -> None:
        """Raises DataError, or DiskFullError when there is no room; files that were complete are kept."""
        for number, download in enumerate(self.downloads):
            say(f"downloading {shown(download.url)} to {download.file}")
            try:
                copy_in(download.url, Path(download.file), check=partial(_verify, download=download))
            except DataError:
                raise
            except UsageError as error:
                raise DataError(
                    f"{self.what} are not on this machine and can't be downloaded: {error.message}",
                    path="target.dataset",
                    hint=by_hand(self.downloads[number:]),
                ) from None


def by_hand(downloads: tuple[Download, ...]) -> str:
    """What a person has to fetch, and where it belongs, a line for each file."""
    return "\n  ".join(f"fetch {shown(download.url)} elsewhere and put it at {download.file}" for download in downloads)


def _verify(copied: Path, *, download: Download) -> None:
    """Looks at what was downloaded before it takes its name; raises DataError."""
    if download.sha256 is not None:
        with copied.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != download.sha256:
            raise _wrong(download, f"its SHA-256 begins with {found[:8]}, not {download.sha256[:8]}")
    elif copied.suffix == ".gz":
        try:
            _unpack(copied)
        except (OSError, EOFError, zlib.error) as error:
            raise _wrong(download, f"it can't be unpacked ({error})") from None


def _wrong(download: Download, why: str) -> DataError:
    return DataError(
        f"what was downloaded from {shown(download.url)} is not the file of that name: {why}; it was not kept",
        path="target.dataset",
        hint=f"something between here and the server changed it; fetch it another way and put it at {download.file}",
    )


def _unpack(file: Path) -> None:
    with gzip.open(file) as stream:
        while stream.read(1 << 20):
            pass


def _unreadable(row: int) -> RawImage:
    raise OSError(f"row {row} is announced only: its file is not there yet")
