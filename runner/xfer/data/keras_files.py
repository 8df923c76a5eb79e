"""The image data sets of keras.datasets: where every release of Keras keeps their files, and our own readers of them.

Names, addresses and digests are those of keras 3.15 (`keras/src/datasets`). Older releases put CIFAR elsewhere:
`cifar-10-batches-py.tar.gz`, unpacked beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.data.announced import Download
from xfer.data.array_files import arrays_in
from xfer.data.array_sets import DIGITS, FASHION, MNIST_COUNTS, OBJECTS, Arrays, check_labels
from xfer.data.cifar import ADDRESS, CIFAR10, CIFAR100, Edition, read_cifar
from xfer.data.dataset import SplitName
from xfer.data.torchvision_arrays import ARRAY_SETS
from xfer.errors import DataError

HOME = "KERAS_HOME"
GOOGLE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
MNIST_FILE = "mnist.npz"
FASHION_FOLDER = "fashion-mnist"


@dataclass(frozen=True)
class KerasSet:
    """One of them. `read(place, variant)` looks in a folder (Keras's own, or the user's), or takes the file itself, and is None where a
    file is missing; `looks_for` says which; `downloads` are its files, relative to Keras's folder, and those that are there are not
    downloaded again. `classes` and `counts` (per split, images of each class) are by variant ('' where there is but one)."""

    read: Callable[[Path, str], Arrays | None]
    looks_for: str
    downloads: tuple[Download, ...]
    classes: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.classes)


def keras_home() -> Path:
    """Keras's own folder, as Keras finds it: `$KERAS_HOME`, else `~/.keras`, or below /tmp where the home can't be written to."""
    told = os.environ.get(HOME)
    if told is None:
        home = os.path.expanduser("~")
        told = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(os.path.abspath(os.path.expanduser(told)))


def datasets_folder() -> Path:
    """Where Keras keeps data sets."""
    return keras_home() / "datasets"


def _cifar(edition: Edition, classes: Mapping[str, tuple[str, ...]], *, sha256: str) -> KerasSet:
    unpacked = f"{edition.folder}-target"

    def read(place: Path, variant: str) -> Arrays | None:
        found = _cifar_in(place, edition)
        if found is None:
            return None
        content = read_cifar(found, edition, variant=variant or "fine")
        return Arrays((("train", *content.train), ("test", *content.test)), content.classes)

    counts = {
        variant: {"train": (50_000 // len(names),) * len(names), "test": (10_000 // len(names),) * len(names)}
        for variant, names in classes.items()
    }
    archive = Download(ADDRESS + edition.archive, f"{unpacked}_archive", edition.archive_bytes, sha256)
    looks_for = f"{unpacked}/{edition.folder}/, {unpacked}_archive, {edition.folder}/ or {edition.archive}"
    return KerasSet(read, looks_for, (archive,), classes, counts)


def _cifar_in(place: Path, edition: Edition) -> Path | None:
    """The unpacked folder if nothing is missing from it (Keras unpacks in place, and may be killed), else the archive, else what there
    is of the folder."""
    if place.is_file():
        return place
    names = [edition.folder, f"{edition.folder}-target"]
    folders = [place, *(place / name for name in names)]
    folders += [folder / edition.folder for folder in folders[1:]]
    endings = ("_archive", ".tar.gz")
    archives = [place / edition.archive, *(place / f"{name}{ending}" for name in names for ending in endings)]
    wanted = (edition.meta, *edition.train, *edition.test)
    whole = (folder for folder in folders if all((folder / name).is_file() for name in wanted))
    packed = (archive for archive in archives if archive.is_file())
    partial = (folder for folder in folders if (folder / edition.meta).is_file())
    return next(whole, None) or next(packed, None) or next(partial, None)


def _read_mnist(place: Path, variant: str) -> Arrays | None:
    file = place if place.is_file() else place / MNIST_FILE
    if not file.is_file():
        return None
    content = arrays_in(file)
    parts: list[tuple[SplitName, np.ndarray, np.ndarray]] = []
    splits: tuple[SplitName, SplitName] = ("train", "test")
    for split in splits:
        for name in (f"x_{split}", f"y_{split}"):
            if name not in content:
                there = f"the arrays in it: {', '.join(content) or 'none'}"
                raise DataError(f"{file}: there is no '{name}'", path="target.path", hint=there)
        images, labels = content[f"x_{split}"](), np.asarray(content[f"y_{split}"]())
        if images.dtype != np.uint8 or images.ndim != 3 or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{file}: x_{split} is {images.dtype} {list(images.shape)} and y_{split} is {labels.dtype} {list(labels.shape)}; "
                "bytes [n, height, width] and whole numbers [n] are expected",
                path="target.path",
            )
        check_labels(file, images, file, labels.astype(np.int64), len(DIGITS))
        parts.append((split, images, labels.astype(np.int64)))
    return Arrays(tuple(parts), DIGITS)


def _read_fashion(place: Path, variant: str) -> Arrays | None:
    """The four idx files, packed or not; `place` is never a file of its own."""
    read = ARRAY_SETS["FashionMNIST"].read
    return read(place / FASHION_FOLDER, variant) or read(place, variant)


_FASHION_FILES = {  # and their sizes
    "train-labels-idx1-ubyte.gz": 29_515,
    "train-images-idx3-ubyte.gz": 26_421_880,
    "t10k-labels-idx1-ubyte.gz": 5_148,
    "t10k-images-idx3-ubyte.gz": 4_422_102,
}
_HUNDRED = {"fine": tuple(map(str, range(100))), "coarse": tuple(map(str, range(20)))}  # named in the files

KERAS_SETS: dict[str, KerasSet] = {
    "cifar10": _cifar(CIFAR10, {"": OBJECTS}, sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "cifar100": _cifar(CIFAR100, _HUNDRED, sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    "fashion_mnist": KerasSet(
        _read_fashion,
        f"{FASHION_FOLDER}/ with {', '.join(_FASHION_FILES)}",
        tuple(Download(GOOGLE + name, f"{FASHION_FOLDER}/{name}", size) for name, size in _FASHION_FILES.items()),
        {"": FASHION},
        {"": {"train": (6000,) * 10, "test": (1000,) * 10}},
    ),
    "mnist": KerasSet(
        _read_mnist,
        MNIST_FILE,
        (Download(GOOGLE + MNIST_FILE, MNIST_FILE, 11_490_434, "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"),),
        {"": DIGITS},
        {"": MNIST_COUNTS},
    ),
}
