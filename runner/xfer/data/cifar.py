"""CIFAR-10 and CIFAR-100 from the standard python archive, packed or unpacked, wherever it lies."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from xfer.errors import DataError

Contents = Callable[[str], bytes]

ADDRESS = "https://www.cs.toronto.edu/~kriz/"  # where the archives come from


@dataclass(frozen=True)
class Edition:
    """What the archive of CIFAR-10 or CIFAR-100 is made of. `labels` are the keys of labels and of class names, by variant."""

    name: str
    folder: str
    archive: str
    archive_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: dict[str, tuple[str, str]]


CIFAR10 = Edition(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_bytes=170_498_071,
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels={"fine": ("labels", "label_names")},
)
CIFAR100 = Edition(
    name="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_bytes=169_001_437,
    train=("train",),
    test=("test",),
    meta="meta",
    labels={"fine": ("fine_labels", "fine_label_names"), "coarse": ("coarse_labels", "coarse_label_names")},
)


@dataclass(frozen=True)
class Cifar:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n] of the two splits, and the class names."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]


def find_cifar(path: Path, edition: Edition) -> Path | None:
    """The folder of batches or the archive: `path` itself, or what lies in it; None if there is neither."""
    if path.is_file():
        return path
    candidates = (path, path / edition.folder, path / edition.archive)
    return next((place for place in candidates if place.is_file() or (place / edition.meta).is_file()), None)


def read_cifar(place: Path, edition: Edition, *, variant: str = "fine") -> Cifar:
    """The whole data set from what `find_cifar` found. Raises DataError naming the file that is missing, damaged or unsafe."""
    label_key, name_key = edition.labels[variant]
    contents = _from_folder(place) if place.is_dir() else _from_archive(place, {*edition.train, *edition.test, edition.meta})
    names = _unpickled(place, edition.meta, contents).get(name_key)
    if not isinstance(names, list | tuple):
        raise DataError(f"{place}: {edition.meta} has no '{name_key}'", path="target.path")
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    splits = []
    for files in (edition.train, edition.test):
        batches = [_batch(place, file, _unpickled(place, file, contents), label_key, len(classes)) for file in files]
        splits.append((np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])))
    return Cifar(splits[0], splits[1], classes)


def _batch(place: Path, file: str, content: dict[str, Any], label_key: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    data, labels = content.get("data"), content.get(label_key)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != 3072
        or not isinstance(labels, list)
    ):
        raise DataError(f"{place}: {file} does not hold 'data' of [n, 3072] bytes and '{label_key}'", path="target.path")
    if len(labels) != len(data) or not all(isinstance(label, int) and 0 <= label < n_classes for label in labels):
        raise DataError(f"{place}: {file} has {len(data)} images, but not as many labels from 0 to {n_classes - 1}", path="target.path")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)


def _from_folder(folder: Path) -> Contents:
    def content(file: str) -> bytes:
        try:
            return (folder / file).read_bytes()
        except OSError as error:
            raise DataError(
                f"{folder}: {file} can't be read: {(error.strerror or str(error)).lower()}",
                path="target.path",
                hint="unpack the archive again",
            ) from error

    return content


def _from_archive(archive: Path, wanted: set[str]) -> Contents:
    """Members by file name, in whatever folder they lie; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = PurePosixPath(member.name).name
                stream = members.extractfile(member) if member.isfile() and name in wanted else None
                if stream is not None:
                    found[name] = stream.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{archive}: the archive is damaged or not a tar file: {error}",
            path="target.path",
            hint="get it again; half a download looks like this",
        ) from error

    def content(file: str) -> bytes:
        if file not in found:
            raise DataError(f"{archive}: there is no {file} in it", path="target.path", hint="is it the 'python version' archive?")
        return found[file]

    return content


def _unpickled(place: Path, file: str, contents: Contents) -> dict[str, Any]:
    try:
        value = _TensorsOnly(io.BytesIO(contents(file)), encoding="latin1").load()
    except _ForbiddenError as error:
        raise DataError(f"{place}: {file} asks for {error}, which no CIFAR archive needs: refused", path="target.path") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(f"{place}: {file} is damaged: {error}", path="target.path", hint="unpack the archive again") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: {file} does not hold a table of names and values", path="target.path")
    return {key.decode() if isinstance(key, bytes) else str(key): item for key, item in value.items()}


class _ForbiddenError(Exception):
    """A pickle named something outside the list below."""


def _array(kind: type, shape: Any, code: Any) -> np.ndarray:
    """An empty array to be filled: what the pickle says of shape and type comes with the content, and is checked there."""
    return np.ndarray((0,), np.uint8)


def _array_from(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


class _TensorsOnly(pickle.Unpickler):
    """Arrays, numbers, text, lists and tables; every other name is refused before anything is called."""

    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _bytes,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _array_from for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None
