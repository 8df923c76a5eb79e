"""`arrays`: images and labels in numpy files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xfer.data.array_files import Loader, array_in, arrays_in
from xfer.data.array_pixels import pixel_rule
from xfer.data.class_names import indexed
from xfer.data.dataset import SPLITS, UNASSIGNED, ArrayReader, Dataset, check_usable, listed
from xfer.data.places import existing, no_name
from xfer.errors import DataError

# How people name the arrays, in any case: per split ('' where there is one array for all) the images and the labels.
NAMES = (
    {UNASSIGNED: ("images", "labels")},
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},
    {split: (f"{split}_images", f"{split}_labels") for split in SPLITS},
)
CLASSES = "classes"


def arrays(name: str | None, *, path: str, labels: str | None = None, classes: list[str] | None = None) -> Dataset:
    """Images and labels in numpy files; `path` is a .npz file, a folder of .npy files, or a .npy file of images with
    `labels` naming the one of labels.

    The arrays are called `images` and `labels` (and, if there, `splits`: 'train', 'val', 'test' or '' per image), or
    `x_train`, `y_train`, `x_test`, `y_test` and so on, or `train_images`, `train_labels` and so on; an array `classes`
    may name the classes. Images are uint8 [n, H, W], [n, H, W, 1] or [n, H, W, 3], or numbers in 0..1 or 0..255; labels
    whole numbers or text, [n] or [n, 1]. .npy files and uncompressed .npz files are memory-mapped. Raises DataError.
    """
    no_name("arrays", name)
    file = existing(path)
    if file.suffix.lower() == ".npy":
        if labels is None:
            raise DataError(
                f"path: {file} holds images only", path="target.path", hint="add `labels: <file>.npy`, or give the folder that holds both"
            )
        label_file = existing(labels, option="labels")
        parts = [(UNASSIGNED, (str(file), array_in(file)), (str(label_file), array_in(label_file)))]
        found: Mapping[str, Loader] = {}
    else:
        if labels is not None:
            raise DataError("labels: only beside a `path` that is a .npy file", path="target.labels")
        if not file.is_dir() and file.suffix.lower() != ".npz":
            raise DataError(f"path: {file} is neither a .npz file, a .npy file nor a folder of .npy files", path="target.path")
        found = {key.lower(): loader for key, loader in arrays_in(file).items()}
        parts = _parts(file, found)
    for _, (image_place, images), (label_place, values) in parts:
        if len(images.shape) == 0 or len(values.shape) == 0 or len(images) != len(values):
            counts = [array.shape[0] if array.shape else "no" for array in (images, values)]
            raise DataError(f"{image_place} has {counts[0]} rows and {label_place} has {counts[1]}", path="target.path")
    if classes is None and CLASSES in found:
        classes = [str(value) for value in np.asarray(found[CLASSES]()).reshape(-1).tolist()]
    convert = pixel_rule([image for _, image, _ in parts])
    names, index = indexed([label for *_, label in parts], classes, path="target.path")
    dataset = Dataset(
        classes=names,
        keys=tuple(f"{split}/{row}" if split else str(row) for split, (_, images), _ in parts for row in range(len(images))),
        labels=index,
        splits=_splits(file, parts, found),
        read=ArrayReader(tuple(images for _, (_, images), _ in parts), convert),
        notes=_notes(parts, found),
    )
    return check_usable(dataset, place=str(file))


_Part = tuple[str, tuple[str, np.ndarray], tuple[str, np.ndarray]]  # split, images with their place, labels with theirs


def _notes(parts: list[_Part], found: Mapping[str, Loader]) -> tuple[str, ...]:
    """The arrays that are not read: a test set among them would be missed."""
    read = {place.rpartition(": ")[2] for _, *both in parts for place, _ in both} | {CLASSES}
    left = [name for name in found if name not in (read if parts[0][0] != UNASSIGNED else read | {"splits"})]
    return (f"left out, because of their names: {listed(left)}",) if left else ()


def _parts(file: Path, found: Mapping[str, Loader]) -> list[_Part]:
    """The arrays that are there, by one of the namings."""
    for naming in NAMES:
        present = {split: pair for split, pair in naming.items() if pair[0] in found or pair[1] in found}
        if not present:
            continue
        for pair in present.values():
            for own, other in (pair, pair[::-1]):
                if own not in found:
                    raise DataError(
                        f"{file}: there is '{other}' but no '{own}'", path="target.path", hint=f"the arrays in it: {', '.join(found)}"
                    )
        if not {"train", UNASSIGNED} & set(present):
            raise DataError(f"{file}: there is no '{naming['train'][0]}'", path="target.path", hint=f"the arrays in it: {', '.join(found)}")
        return [
            (split, (f"{file}: {pair[0]}", found[pair[0]]()), (f"{file}: {pair[1]}", np.asarray(found[pair[1]]())))
            for split, pair in present.items()
        ]
    there = f"there are {listed(list(found))}" if found else "there is no array in it"
    raise DataError(
        f"{file}: no arrays called 'images' and 'labels', or 'x_train' and 'y_train'; {there}",
        path="target.path",
        hint="save them under those names: numpy.savez(file, images=…, labels=…)",
    )


def _splits(file: Path, parts: list[_Part], found: Mapping[str, Loader]) -> np.ndarray:
    if "splits" not in found or parts[0][0] != UNASSIGNED:
        return np.concatenate([np.full(len(images), split, "<U5") for split, (_, images), _ in parts])
    splits = np.asarray(found["splits"]()).reshape(-1)
    wrong = sorted({str(value) for value in np.unique(splits).tolist()} - {*SPLITS, UNASSIGNED})
    if wrong or len(splits) != len(parts[0][1][1]):
        what = f"holds {listed(wrong)}" if wrong else f"has {len(splits)} rows, and images {len(parts[0][1][1])}"
        raise DataError(f"{file}: splits {what}", path="target.path", hint="expected one of 'train', 'val', 'test' or '' for each image")
    return splits.astype("<U5")
