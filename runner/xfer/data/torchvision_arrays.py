"""The data sets of torchvision's collection whose files are arrays: our own readers, which ask for no checksum of old copies."""

from __future__ import annotations

import bz2
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.data.array_sets import DIGITS, FASHION, Arrays, check_labels
from xfer.data.cifar import CIFAR10, CIFAR100, Edition, find_cifar, read_cifar
from xfer.data.dataset import SplitName
from xfer.data.idx import find_idx, read_idx
from xfer.errors import DataError

_SPLITS: tuple[SplitName, SplitName] = ("train", "test")


@dataclass(frozen=True)
class ArraySet:
    """How one of them is read. `read(root, variant)` is None where a file is missing; `needs(variant)` says which are looked
    for; `download` holds the arguments of torchvision's class for each download."""

    read: Callable[[Path, str], Arrays | None]
    needs: Callable[[str], str]
    download: tuple[dict[str, str | bool], ...]
    variants: tuple[str, ...] = ()
    variant: str | None = None  # the constructor's name for it
    has_default: bool = True


def _cifar(edition: Edition) -> ArraySet:
    def read(root: Path, variant: str) -> Arrays | None:
        place = find_cifar(root, edition)
        if place is None:
            return None
        found = read_cifar(place, edition, variant=variant or "fine")
        return Arrays((("train", *found.train), ("test", *found.test)), found.classes)

    variants = tuple(edition.labels)
    return ArraySet(
        read, lambda variant: f"{edition.folder}/ or {edition.archive}", ({"train": True},), variants if len(variants) > 1 else ()
    )


def _idx(name: str, classes: dict[str, tuple[str, ...]]) -> ArraySet:
    """MNIST and its relatives. EMNIST's files carry the variant in their names."""

    def files(variant: str) -> list[tuple[SplitName, str, str]]:
        names = {"train": f"emnist-{variant}-train", "test": f"emnist-{variant}-test"} if variant else {"train": "train", "test": "t10k"}
        return [(split, f"{names[split]}-images-idx3-ubyte", f"{names[split]}-labels-idx1-ubyte") for split in _SPLITS]

    def read(root: Path, variant: str) -> Arrays | None:
        folders = (root, root / "raw", root / name / "raw", root / name, root / "gzip")
        parts: list[tuple[SplitName, np.ndarray, np.ndarray]] = []
        for split, image_name, label_name in files(variant):
            image_file, label_file = find_idx(folders, image_name), find_idx(folders, label_name)
            if image_file is None or label_file is None:
                return None
            images = read_idx(image_file, n_dimensions=3)
            labels = read_idx(label_file, n_dimensions=1).astype(np.int64) - (variant == "letters")  # letters count from 1
            check_labels(image_file, images, label_file, labels, len(classes[variant]))
            parts.append((split, images, labels))
        return Arrays(tuple(parts), classes[variant])

    def needs(variant: str) -> str:
        return f"{name}/raw/ with " + ", ".join(file for _, *pair in files(variant) for file in pair) + " (.gz or not)"

    variants = tuple(classes) if "" not in classes else ()
    return ArraySet(read, needs, ({"train": True},), variants, "split" if variants else None, has_default=not variants)


def _read_svhn(root: Path, variant: str) -> Arrays | None:
    files = [_first(root, "svhn", f"{split}_32x32.mat") for split in _SPLITS]
    if None in files:
        return None
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    parts: list[tuple[SplitName, np.ndarray, np.ndarray]] = []
    for split, file in zip(_SPLITS, files, strict=True):
        assert file is not None
        try:
            content = loadmat(file, variable_names=["X", "y"])
            images, labels = (
                content["X"].transpose(3, 0, 1, 2),
                content["y"].reshape(-1).astype(np.int64) % 10,
            )  # the digit 0 is labelled 10
        except (MatReadError, OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise DataError(
                f"{file}: it can't be read: {error}", path="target.path", hint="get it again; half a download looks like this"
            ) from error
        check_labels(file, images, file, labels, 10)
        parts.append((split, images, labels))
    return Arrays(tuple(parts), DIGITS)


def _read_stl10(root: Path, variant: str) -> Arrays | None:
    folder = root if (root / "train_X.bin").is_file() else root / "stl10_binary"
    if not all((folder / f"{split}_{kind}.bin").is_file() for split in _SPLITS for kind in "Xy"):
        return None
    names = folder / "class_names.txt"
    classes = tuple(names.read_text().split()) if names.is_file() else tuple(str(number) for number in range(10))
    parts: list[tuple[SplitName, np.ndarray, np.ndarray]] = []
    for split in _SPLITS:
        image_file, label_file = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
        labels = np.fromfile(label_file, np.uint8).astype(np.int64) - 1
        if image_file.stat().st_size != len(labels) * 3 * 96 * 96:
            raise DataError(
                f"{image_file}: it does not hold as many images of 96 x 96 px as {label_file} holds labels",
                path="target.path",
                hint="unpack the archive again",
            )
        images = np.memmap(image_file, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # stored column by column
        check_labels(image_file, images, label_file, labels, len(classes))
        parts.append((split, images, labels))
    return Arrays(tuple(parts), classes)


def _read_usps(root: Path, variant: str) -> Arrays | None:
    files = [_first(root, "usps", name) for name in ("usps.bz2", "usps.t.bz2")]
    if None in files:
        return None
    parts: list[tuple[SplitName, np.ndarray, np.ndarray]] = []
    for split, file in zip(_SPLITS, files, strict=True):
        assert file is not None
        try:
            rows = [line.split() for line in bz2.decompress(file.read_bytes()).decode("ascii").splitlines()]
            values = np.array([[cell.split(":")[1] for cell in row[1:]] for row in rows], dtype=np.float32).reshape(-1, 16, 16)
            labels = np.array([int(row[0]) - 1 for row in rows], dtype=np.int64)
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise DataError(
                f"{file}: it can't be read: {error}", path="target.path", hint="get it again; half a download looks like this"
            ) from error
        images = np.rint((values + 1) * 127.5).clip(0, 255).astype(np.uint8)
        check_labels(file, images, file, labels, 10)
        parts.append((split, images, labels))
    return Arrays(tuple(parts), DIGITS)


def _first(root: Path, folder: str, file: str) -> Path | None:
    return next((place for place in (root / file, root / folder / file) if place.is_file()), None)


# Letters whose capital and small forms share a class in two of EMNIST's variants.
_APART = tuple(sorted(set(string.ascii_lowercase) - set("cijklmopsuvwxyz")))
EMNIST_CLASSES = {
    "byclass": (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": (*DIGITS, *string.ascii_uppercase, *_APART),
    "balanced": (*DIGITS, *string.ascii_uppercase, *_APART),
    "letters": tuple(string.ascii_lowercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

ARRAY_SETS: dict[str, ArraySet] = {
    "CIFAR10": _cifar(CIFAR10),
    "CIFAR100": _cifar(CIFAR100),
    "EMNIST": _idx("EMNIST", EMNIST_CLASSES),
    "FashionMNIST": _idx("FashionMNIST", {"": FASHION}),
    "KMNIST": _idx("KMNIST", {"": KUZUSHIJI}),
    "MNIST": _idx("MNIST", {"": DIGITS}),
    "STL10": ArraySet(
        _read_stl10, lambda variant: "stl10_binary/ with train_X.bin, train_y.bin, test_X.bin and test_y.bin", ({"split": "train"},)
    ),
    "SVHN": ArraySet(_read_svhn, lambda variant: "train_32x32.mat and test_32x32.mat", ({"split": "train"}, {"split": "test"})),
    "USPS": ArraySet(_read_usps, lambda variant: "usps.bz2 and usps.t.bz2", ({"train": True}, {"train": False})),
}
