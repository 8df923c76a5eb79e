"""Published data sets whose splits are whole arrays, whichever library they come through: their form, and what is known of them."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.data.dataset import ArrayReader, Dataset, SplitName
from xfer.errors import DataError

DIGITS = tuple(string.digits)
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Images of each digit; the other data sets of this kind have the same number in each class.
MNIST_COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}


@dataclass(frozen=True)
class Arrays:
    """What was found: per split its name, images uint8 [n, H, W] or [n, H, W, 3], and labels [n] into `classes`."""

    parts: tuple[tuple[SplitName, np.ndarray, np.ndarray], ...]
    classes: tuple[str, ...]

    def dataset(self) -> Dataset:
        """Its rows, the splits laid end to end: 'train/0', …, 'test/0', …"""
        return Dataset(
            classes=self.classes,
            keys=tuple(f"{split}/{row}" for split, images, _ in self.parts for row in range(len(images))),
            labels=np.concatenate([labels for *_, labels in self.parts]).astype(np.int64),
            splits=np.concatenate([np.full(len(images), split, "<U5") for split, images, _ in self.parts]),
            read=ArrayReader(tuple(images for _, images, _ in self.parts)),
        )


def check_labels(image_file: Path, images: np.ndarray, label_file: Path, labels: np.ndarray, n_classes: int) -> None:
    """Raises DataError where labels don't belong to these images, or to `n_classes` classes."""
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images and {label_file} {len(labels)} labels", path="target.path")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise DataError(
            f"{label_file}: labels from {labels.min()} to {labels.max()}, but there are {n_classes} classes", path="target.path"
        )
