"""The dataset and its splits, as the compiler sees them: which classes, how many images in each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from xfer import plugins
from xfer.data.announced import Announced
from xfer.data.dataset import Dataset
from xfer.data.digests import listing_digest
from xfer.data.splits import assign
from xfer.errors import AbsentDataError
from xfer.plan.model_map import Frozen
from xfer.plan.plan import DownloadPlan
from xfer.recipe.schema import Target


class DataFacts(Frozen):
    """What a plan says of the data. Where its files are not there yet, `listing` is None and `downloads` says which."""

    classes: tuple[str, ...]
    images: int
    counts: dict[str, dict[str, int]]
    listing: str | None
    notes: tuple[str, ...] = ()
    downloads: tuple[DownloadPlan, ...] = ()


def open_dataset(target: str, name: str, options: Mapping[str, Any]) -> Dataset:
    """The dataset behind a plugin's `module:attribute`; `name` is the recipe's `dataset`, e.g. 'torchvision/CIFAR10'."""
    dataset: Dataset = plugins.load(target)(name.partition("/")[2] or None, **options)
    return dataset


def split(dataset: Dataset, *, val: float, test: float, seed: int) -> np.ndarray:
    """Per row 'train', 'val' or 'test'; raises DataError."""
    return assign(dataset.labels, dataset.splits, dataset.keys, classes=dataset.classes, val=val, test=test, seed=seed)


def look(plugin: str, target: Target, options: Mapping[str, Any]) -> DataFacts:
    """The facts of a dataset, or, where it would have to be downloaded, what its provider says of it; raises DataError."""
    try:
        return facts(open_dataset(plugin, target.dataset, options), target)
    except AbsentDataError as absent:
        announced: Announced = absent.announced
        missing = tuple(
            DownloadPlan(what=f"the images of {target.dataset}", url=each.url, file=each.file, bytes=each.bytes)
            for each in announced.downloads
        )
        return facts(announced.rows(), target).model_copy(update={"listing": None, "downloads": missing})


def facts(dataset: Dataset, target: Target) -> DataFacts:
    """Counts by split and class; raises DataError."""
    splits = split(dataset, val=target.splits.val, test=target.splits.test, seed=target.splits.seed)
    counts: dict[str, dict[str, int]] = {}
    for name in ("train", "val", "test"):
        found = Counter(dataset.labels[splits == name].tolist())
        if found:
            counts[name] = {dataset.classes[label]: found.get(label, 0) for label in range(len(dataset.classes))}
    return DataFacts(classes=dataset.classes, images=len(dataset), counts=counts, listing=listing_digest(dataset), notes=dataset.notes)
