"""The data sets of torchvision's collection whose images are files: torchvision's classes list them, we read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfer.data.dataset import UNASSIGNED

Files = list[tuple[str, int]]  # absolute path and label


def as_path(path: Any) -> str:
    """Stands in for torchvision's loader: an item is then a path and a label, and nothing is decoded."""
    return str(path)


def _items(listed: Any) -> Files:
    return [(str(path), int(label)) for path, label in (listed[row] for row in range(len(listed)))]


@dataclass(frozen=True)
class FileSet:
    """`folder` is where it lies below the root and `holds` what must be in it; `splits` are our names and the arguments of
    torchvision's class; `files` lists what that class found; `variant` is its name for the option with `variants`."""

    folder: str
    holds: str
    splits: tuple[tuple[str, dict[str, Any]], ...] = ((UNASSIGNED, {}),)
    files: Callable[[Any], Files] = _items
    takes_loader: bool = True
    variant: str | None = None
    variants: tuple[str | int, ...] = ()
    folders: tuple[str, ...] = ()  # by variant, where they differ
    own: Callable[[Path, str], Files] | None = None  # lists a split below the root where torchvision's class is too strict

    def folder_of(self, variant: str) -> str:
        """The folder's name for a variant ('' for a data set without)."""
        return self.folders[[str(each) for each in self.variants].index(variant)] if self.folders else self.folder


def _splits(*same: str, **renamed: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((name, {"split": name}) for name in same) + tuple((ours, {"split": theirs}) for ours, theirs in renamed.items())


def _pets(listed: Any) -> Files:
    return [(str(path), int(label)) for path, label in zip(listed._images, listed._labels, strict=True)]


def _signs(listed: Any) -> Files:
    return [(str(path), int(label)) for path, label in listed._samples]


def _caltech(folder: str, file: str) -> Callable[[Any], Files]:
    def files(listed: Any) -> Files:
        return [
            (os.path.join(listed.root, folder, listed.categories[label], file.format(label=label + 1, number=number)), label)
            for label, number in zip(listed.y, listed.index, strict=True)
        ]

    return files


def _flowers(root: Path, split: str) -> Files:
    """By the two label files; torchvision's class refuses any that are not the published ones, byte for byte."""
    from scipy.io import loadmat

    folder = root / "flowers-102"
    rows = loadmat(folder / "setid.mat", squeeze_me=True)[{"train": "trnid", "val": "valid", "test": "tstid"}[split]]
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"]
    return [(str(folder / "jpg" / f"image_{number:05d}.jpg"), int(labels[number - 1]) - 1) for number in rows.reshape(-1).tolist()]


FILE_SETS: dict[str, FileSet] = {
    "Caltech101": FileSet(
        "caltech101", "101_ObjectCategories/", files=_caltech("101_ObjectCategories", "image_{number:04d}.jpg"), takes_loader=False
    ),
    "Caltech256": FileSet(
        "caltech256", "256_ObjectCategories/", files=_caltech("256_ObjectCategories", "{label:03d}_{number:04d}.jpg"), takes_loader=False
    ),
    "Country211": FileSet("country211", "train/, valid/ and test/", _splits("train", "test", val="valid")),
    "DTD": FileSet(
        "dtd", "dtd/images/ and dtd/labels/", _splits("train", "val", "test"), variant="partition", variants=tuple(range(1, 11))
    ),
    "EuroSAT": FileSet("eurosat", "2750/"),
    "FGVCAircraft": FileSet(
        "fgvc-aircraft-2013b",
        "data/",
        _splits("train", "val", "test"),
        variant="annotation_level",
        variants=("variant", "family", "manufacturer"),
    ),
    "Flowers102": FileSet("flowers-102", "jpg/, imagelabels.mat and setid.mat", _splits("train", "val", "test"), own=_flowers),
    "Food101": FileSet("food-101", "images/ and meta/", _splits("train", "test")),
    "GTSRB": FileSet(
        "gtsrb",
        "GTSRB/Training/, GTSRB/Final_Test/Images/ and GT-final_test.csv",
        _splits("train", "test"),
        _signs,
        takes_loader=False,
    ),
    "Imagenette": FileSet(
        "imagenette2",
        "train/ and val/",
        _splits("train", "val"),
        variant="size",
        variants=("full", "320px", "160px"),
        folders=("imagenette2", "imagenette2-320", "imagenette2-160"),
    ),
    "OxfordIIITPet": FileSet("oxford-iiit-pet", "images/ and annotations/", _splits("test", train="trainval"), _pets, takes_loader=False),
    "RenderedSST2": FileSet("rendered-sst2", "train/, valid/ and test/", _splits("train", "val", "test")),
    "StanfordCars": FileSet(
        "stanford_cars", "devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat", _splits("train", "test")
    ),
    "SUN397": FileSet("SUN397", "ClassName.txt and the folders a/ to z/"),
}
