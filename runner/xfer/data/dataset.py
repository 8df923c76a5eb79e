"""What a dataset plugin returns: names, labels, splits it already has, and a way to read one image's raw content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

RawImage = bytes | np.ndarray  # an encoded file, or uint8 pixels [H, W] or [H, W, 3]
Stamp = tuple[str, int, int]  # absolute path, size in bytes, modification time in ns

UNASSIGNED = ""


@dataclass(frozen=True)
class Dataset:
    """Rows in a fixed, machine-independent order.

    `keys` are unique and stable (a path relative to the dataset's root, or 'train/12'); `labels` int64 [n] index into
    `classes` (-1: unlabelled); `splits` is per row 'train', 'val', 'test' or '' (not assigned). `read(row)` gives the raw
    image and raises OSError where the file can't be read. `stamp(row)` allows content digests to be cached; without it
    the content is hashed each time.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    read: Callable[[int], RawImage] = field(repr=False)
    stamp: Callable[[int], Stamp] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.keys)


SplitName = Literal["train", "val", "test"]
