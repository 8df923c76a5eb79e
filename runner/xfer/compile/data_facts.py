"""The dataset and its splits, as the compiler sees them: which classes, how many images in each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from xfer import plugins
from xfer.data.dataset import Dataset
from xfer.data.digests import listing_digest
from xfer.data.splits import assign
from xfer.plan.model_map import Frozen
from xfer.recipe.schema import Target


class DataFacts(Frozen):
    """What a plan says of the data."""

    classes: tuple[str, ...]
    images: int
    counts: dict[str, dict[str, int]]
    listing: str


def open_dataset(target: str, name: str, options: Mapping[str, Any]) -> Dataset:
    """The dataset behind a plugin's `module:attribute`; `name` is the recipe's `dataset`, e.g. 'torchvision/CIFAR10'."""
    dataset: Dataset = plugins.load(target)(name.partition("/")[2] or None, **options)
    return dataset


def split(dataset: Dataset, *, val: float, test: float, seed: int) -> np.ndarray:
    """Per row 'train', 'val' or 'test'; raises DataError."""
    return assign(dataset.labels, dataset.splits, dataset.keys, classes=dataset.classes, val=val, test=test, seed=seed)


def facts(dataset: Dataset, target: Target) -> DataFacts:
    """Counts by split and class; raises DataError."""
    splits = split(dataset, val=target.splits.val, test=target.splits.test, seed=target.splits.seed)
    counts: dict[str, dict[str, int]] = {}
    for name in ("train", "val", "test"):
        found = Counter(dataset.labels[splits == name].tolist())
        if found:
            counts[name] = {dataset.classes[label]: found.get(label, 0) for label in range(len(dataset.classes))}
    return DataFacts(classes=dataset.classes, images=len(dataset), counts=counts, listing=listing_digest(dataset))
