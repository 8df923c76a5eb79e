"""What a dataset plugin returns: names, labels, splits it already has, and a way to read one image's raw content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from xfer.errors import DataError

RawImage = bytes | np.ndarray  # an encoded file, or uint8 pixels [H, W], [H, W, 1] or [H, W, 3]
Stamp = tuple[str, int, int]  # absolute path, size in bytes, modification time in ns

UNASSIGNED = ""
UNLABELLED = -1
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Rows in a fixed, machine-independent order.

    `keys` are unique and stable (a path relative to the dataset's root, or 'train/12'); `labels` int64 [n] index into
    `classes` (-1: unlabelled); `splits` is per row 'train', 'val', 'test' or '' (not assigned). `read(row)` gives the raw
    image and raises OSError where the file can't be read. `stamp(row)` allows content digests to be cached; without it
    the content is hashed each time. `notes` are sentences for people about what was left out.

    Raises DataError where these don't fit together, which is a mistake of the plugin.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    read: Callable[[int], RawImage] = field(repr=False)
    stamp: Callable[[int], Stamp] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.keys)
        if self.labels.shape != (n,) or self.splits.shape != (n,):
            raise DataError(
                f"the dataset plugin returned {n} keys, labels of shape {self.labels.shape} and splits of shape {self.splits.shape}",
                path="target.dataset",
            )
        if self.labels.dtype != np.int64 or (n and not UNLABELLED <= self.labels.min() <= self.labels.max() < len(self.classes)):
            raise DataError(
                f"the dataset plugin returned labels that are not int64 from -1 to {len(self.classes) - 1}", path="target.dataset"
            )
        wrong = set(np.unique(self.splits).tolist()) - {*SPLITS, UNASSIGNED}
        if wrong:
            raise DataError(f"the dataset plugin returned a split called '{min(wrong)}'", path="target.dataset")
        if len(set(self.keys)) < n:
            raise DataError("the dataset plugin returned the same key for two images", path="target.dataset")

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class FileReader:
    """Reads rows that are files: `read` and `stamp` of a Dataset in one picklable object. `paths` are absolute."""

    paths: tuple[str, ...] = field(repr=False)

    def __call__(self, row: int) -> bytes:
        with open(self.paths[row], "rb") as file:
            return file.read()

    def stamp(self, row: int) -> Stamp:
        """Raises OSError where the file is gone."""
        status = os.stat(self.paths[row])
        return self.paths[row], status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ArrayReader:
    """Reads rows of arrays laid end to end (the splits of a dataset), each [n, H, W], [n, H, W, 1] or [n, H, W, 3].

    `convert` makes uint8 of one image where the arrays hold something else; the arrays may be memory maps.
    """

    arrays: tuple[np.ndarray, ...] = field(repr=False)
    convert: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, row: int) -> np.ndarray:
        for array in self.arrays:
            if row < len(array):
                image = np.asarray(array[row])
                return image if self.convert is None else self.convert(image)
            row -= len(array)
        raise IndexError(row)


def check_usable(dataset: Dataset, *, place: str, path: str = "target.path") -> Dataset:
    """The dataset, if a classifier can be trained on it: at least two classes, each with an image.

    `place` is what the error names (an absolute path). Raises DataError.
    """
    counts = np.bincount(dataset.labels[dataset.labels >= 0], minlength=len(dataset.classes))
    if not len(dataset):
        raise DataError(f"{place}: there is no image in it", path=path)
    if len(dataset.classes) < 2:
        there = f"is only 1 class ('{dataset.classes[0]}')" if dataset.classes else "is no class"
        raise DataError(f"{place}: there {there}; a classifier needs at least two", path=path, hint="add images of another class")
    if len(dataset) < len(dataset.classes):
        raise DataError(
            f"{place}: {plural(len(dataset), 'image')} for {len(dataset.classes)} classes; every class needs at least one",
            path=path,
            hint="add images, or leave classes out",
        )
    if (dataset.labels >= 0).any() and not counts.all():
        empty = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
        raise DataError(
            f"{place}: no image is labelled {listed(empty)}",
            path=path,
            hint="add images of it, or leave the class out",
        )
    return dataset


def listed(names: list[str], *, limit: int = 8) -> str:
    """Names in quotes, for a message.

    >>> listed(["a", "b"]), listed(["a", "b", "c"], limit=2)
    ("'a', 'b'", "'a', 'b' and 1 more")
    """
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def plural(n: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "image"), plural(2, "class")
    ('1 image', '2 classes')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}{'es' if noun.endswith('s') else 's'}"
