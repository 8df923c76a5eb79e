"""`folder`: images in class folders, with `train/`, `val/` and `test/` above them if they are there."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.data.dataset import UNASSIGNED, Dataset, FileReader, check_usable, listed, plural
from xfer.data.listing import ENDINGS, Listing, entries, images_under, is_folder, is_image, printable
from xfer.data.places import existing, no_name
from xfer.errors import DataError

# Names of split folders, in any case. The first of each is ours; the others are what people call them.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class _Part:
    """One split's folder ('' where there are none above the classes) and what lies in its class folders."""

    split: str
    folder: str
    classes: dict[str, Listing]


def folder(name: str | None, *, path: str) -> Dataset:
    """Images in class folders below `path`, searched recursively; the classes are the folders' names, sorted.

    Hidden entries are ignored, links followed without loops. Where the folders at the top are `train/`, `val/` (also
    `valid/`, `validation/`) and `test/`, they hold the class folders and are kept as splits; missing ones are cut from train.
    Rows are sorted by their path relative to `path`, byte by byte. Raises DataError.
    """
    no_name("folder", name)
    root = existing(path)
    if not root.is_dir():
        raise DataError(f"path: {root} is a file, not a folder", path="target.path", hint=_unpack(root))
    parts = _parts(root)
    classes = tuple(sorted({printable(cls) for part in parts for cls in part.classes}))
    rows = sorted(
        (
            (f"{part.folder}{cls}/{image}", part.split, printable(cls))
            for part in parts
            for cls in part.classes
            for image in part.classes[cls].images
        ),
        key=lambda row: os.fsencode(row[0]),
    )
    _check(root, parts, n_images=len(rows), classes=classes)
    index = {cls: number for number, cls in enumerate(classes)}
    reader = FileReader(tuple(os.path.join(root, row[0]) for row in rows))
    dataset = Dataset(
        classes=classes,
        keys=tuple(printable(row[0]) for row in rows),
        labels=np.array([index[row[2]] for row in rows], dtype=np.int64),
        splits=np.array([row[1] for row in rows], dtype="<U5"),
        read=reader,
        stamp=reader.stamp,
        notes=_notes(parts),
    )
    return check_usable(dataset, place=str(root))


def _parts(root: Path) -> list[_Part]:
    """The root itself, or the split folders in it."""
    folders = [entry.name for entry in entries(root) if is_folder(entry, top=True)]
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS}
    training = [name for name, split in splits.items() if split == "train"]
    if not any(_holds_classes(root / name) for name in training):
        if splits and len(splits) == len(folders):
            _refuse_flat(root, splits)
        return [_part(root, "", UNASSIGNED)]
    beside = [name for name in folders if name not in splits and images_under(root / name).images]
    if beside:
        raise DataError(
            f"{root}: beside {training[0]}/, which holds class folders, there is {listed(beside)}: is {training[0]}/ a split or a class?",
            path="target.path",
            hint="move what is no split elsewhere, or the images of each class directly into its folder",
        )
    doubled = [split for split, count in Counter(splits.values()).items() if count > 1]
    if doubled:
        names = sorted(name for name, split in splits.items() if split == doubled[0])
        raise DataError(f"{root}: {listed(names)} are the same split", path="target.path", hint="merge them into one folder")
    return [_part(root, f"{name}/", split) for name, split in splits.items()]


def _holds_classes(folder: Path) -> bool:
    """Whether a folder looks like a split: folders with images in it and none directly (a class called 'train' has them directly)."""
    inside = entries(folder)
    if any(is_image(entry.name) and not is_folder(entry) for entry in inside):
        return False
    return any(images_under(Path(entry.path)).images for entry in inside if is_folder(entry))


def _refuse_flat(root: Path, splits: dict[str, str]) -> None:
    """Only split folders, but no class folders in train/."""
    training = [name for name, split in splits.items() if split == "train"]
    if not training:
        raise DataError(
            f"{root}: there is {listed(sorted(splits))} but no train folder",
            path="target.path",
            hint=f"put the training images into {root / 'train'}/<class>/",
        )
    where = root / training[0]
    if images_under(where).images:
        raise DataError(
            f"{where}: the images lie directly in it, not in class folders",
            path="target.path",
            hint="put each class into a folder of its own, or use `dataset: table` with a file that lists image and label",
        )
    raise DataError(f"{where}: there is no image in it; endings read are {' '.join(ENDINGS)}", path="target.path")


def _part(root: Path, folder: str, split: str) -> _Part:
    """The class folders of a split, each with its listing. Raises DataError where images lie beside them."""
    where = root / folder
    inside = entries(where)
    direct = [entry.name for entry in inside if is_image(entry.name) and not is_folder(entry)]
    classes = [entry.name for entry in inside if is_folder(entry, top=True)]
    if direct and not classes:
        raise DataError(
            f"{where}: {plural(len(direct), 'image')} directly in it (first '{printable(direct[0])}'), and no class folders",
            path="target.path",
            hint="put each class into a folder of its own, or use `dataset: table` with a file that lists image and label",
        )
    if direct:
        raise DataError(
            f"{where}: {plural(len(direct), 'image')} beside the class folders (first '{printable(direct[0])}'): of which class?",
            path="target.path",
            hint="move them into a class folder, or elsewhere",
        )
    if not classes:
        raise DataError(
            f"{where}: there are no class folders in it", path="target.path", hint="expected one folder per class, with its images in it"
        )
    return _Part(split, folder, {cls: images_under(where / cls) for cls in classes})


def _check(root: Path, parts: list[_Part], *, n_images: int, classes: tuple[str, ...]) -> None:
    """Raises DataError where a class has no image, in the whole or in a split."""
    if not n_images:
        raise DataError(
            f"{root}: there is no image in its {plural(len(classes), 'class folder')}; endings read are {' '.join(ENDINGS)}{_seen(parts)}",
            path="target.path",
        )
    if n_images < len(classes):
        raise DataError(
            f"{root}: {plural(n_images, 'image')} in {len(classes)} class folders; every class needs at least one",
            path="target.path",
            hint="add images, or remove the folders that are no classes",
        )
    for part in parts:
        empty = [printable(cls) for cls, listing in part.classes.items() if not listing.images]
        if empty:
            raise DataError(
                f"{root / part.folder}: no image in class folder {listed(empty)}; endings read are {' '.join(ENDINGS)}{_seen([part])}",
                path="target.path",
                hint="add images to it, or remove the folder",
            )
    for part in parts:
        missing = [cls for cls in classes if cls not in {printable(own) for own in part.classes}]
        if missing:
            other = next(other for other in parts if missing[0] in {printable(own) for own in other.classes})
            raise DataError(
                f"{root / part.folder}: no folder for class {listed(missing)}, which {other.folder} has",
                path="target.path",
                hint=f"add images of it to {part.folder}, or take it out of {other.folder}",
            )


def _seen(parts: list[_Part]) -> str:
    """', but …' for images that we don't read."""
    others = sum((listing.others for part in parts for listing in part.classes.values()), Counter())
    return f" (there are {_counted(others)})" if others else ""


def _notes(parts: list[_Part]) -> tuple[str, ...]:
    others = sum((listing.others for part in parts for listing in part.classes.values()), Counter())
    return (f"left out, because of their endings: {_counted(others)}",) if others else ()


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))


def _unpack(path: Path) -> str:
    return (
        "unpack it and give the folder"
        if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".7z"}
        else "give the folder that holds the class folders"
    )
