"""`torchvision/NAME`: the image classification data sets that torchvision knows, read from where they lie.

A row is a file's bytes or an array, so that decoding is the same as everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xfer.data.announced import Announced, Say
from xfer.data.dataset import Dataset, FileReader, check_usable
from xfer.data.listing import printable
from xfer.data.locations import shown
from xfer.data.places import wanted
from xfer.data.torchvision_arrays import ARRAY_SETS, ArraySet
from xfer.data.torchvision_files import FILE_SETS, Files, FileSet, as_path
from xfer.data.torchvision_known import known
from xfer.errors import AbsentDataError, DataError, MissingExtraError, UsageError
from xfer.plugins import nearest

ROOT = "data"  # where torchvision's own examples keep data sets
NAMES = tuple(sorted({*FILE_SETS, *ARRAY_SETS}))
# What torchvision has but another plugin reads better, or what is no data.
ELSEWHERE = {
    "ImageFolder": "use `dataset: folder` with its path",
    "DatasetFolder": "use `dataset: folder` with its path",
    "FakeData": "it is noise; use `dataset: sklearn/digits` to try something out",
    "ImageNet": "use `dataset: folder` with the folder that holds train/ and val/",
}
# torchvision's classes say in many ways that a file is absent or damaged.
_FAULTS = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def torchvision(name: str | None, *, path: str = ROOT, download: bool = False, variant: str | int | None = None) -> Dataset:
    """A data set by torchvision's name for it, from `path`: torchvision's root, or the data set's own folder or archive.

    `variant` picks among those that have several: EMNIST (`letters`, …), CIFAR100 (`fine`, `coarse`), DTD (partition 1 to
    10), FGVCAircraft (`variant`, `family`, `manufacturer`), Imagenette (`full`, `320px`, `160px`). Splits of its own are
    kept. Where it is not there, the DataError says which files to put where; with `download`, AbsentDataError says from where
    `xfer run` and `xfer fetch` will download it to `path`. Raises MissingExtraError where torchvision is needed and not installed.
    """
    chosen = _checked_name(name)
    root = wanted(path)
    kind = _checked_variant(chosen, variant)
    if chosen in FILE_SETS:
        dataset = _of_files(chosen, FILE_SETS[chosen], root, kind, download=download)
    else:
        dataset = _of_arrays(chosen, ARRAY_SETS[chosen], root, kind, download=download)
    return check_usable(dataset, place=f"torchvision/{chosen} in {root}")


def _checked_name(name: str | None) -> str:
    if name is not None and name in NAMES:
        return name
    if name is None:
        raise DataError(
            "'torchvision': which data set?", path="target.dataset", hint=f"write torchvision/NAME; there are {', '.join(NAMES)}"
        )
    if name in ELSEWHERE:
        raise DataError(f"'torchvision/{name}': it is not read from torchvision", path="target.dataset", hint=ELSEWHERE[name])
    folded = {each.lower(): each for each in NAMES}
    guess = nearest(name.lower(), folded)
    raise DataError(
        f"'torchvision/{name}': no image classification data set that we read has that name; there are {', '.join(NAMES)}",
        path="target.dataset",
        hint=f"did you mean 'torchvision/{folded[guess]}'?" if guess else None,
    )


def _checked_variant(name: str, variant: str | int | None) -> str:
    """The variant, by default the first; '' for a data set without."""
    choices = [str(each) for each in (FILE_SETS[name].variants if name in FILE_SETS else ARRAY_SETS[name].variants)]
    if variant is None:
        if name in ARRAY_SETS and not ARRAY_SETS[name].has_default:
            raise DataError(
                f"torchvision/{name}: which variant?", path="target.dataset", hint=f"add `variant:` and one of {', '.join(choices)}"
            )
        return choices[0] if choices else ""
    if str(variant) not in choices:
        there = f"there are {', '.join(choices)}" if choices else "it has no variants"
        raise DataError(f"torchvision/{name}: no variant is called '{variant}'; {there}", path="target.variant")
    return str(variant)


def _of_arrays(name: str, kept: ArraySet, root: Path, variant: str, *, download: bool) -> Dataset:
    found = kept.read(root, variant)
    if found is None:
        extra = {kept.variant: variant} if kept.variant else {}
        calls = tuple({**arguments, **extra} for arguments in kept.download)
        raise _absent(_Fetch(name, root, kept.needs(variant), calls), variant, download=download)
    return found.dataset()


def _of_files(name: str, kept: FileSet, root: Path, variant: str, *, download: bool) -> Dataset:
    folder = kept.folder_of(variant)
    if root.name == folder and not (root / folder).is_dir():
        root = root.parent
    needs = f"{folder}/ with {kept.holds}"
    extra = {kept.variant: int(variant) if variant.isdigit() else variant} if kept.variant is not None else {}
    if not (root / folder).is_dir():
        loader = {"loader": as_path} if kept.takes_loader else {}
        calls = tuple({**arguments, **extra, **loader} for _, arguments in kept.splits)
        raise _absent(_Fetch(name, root, needs, calls), variant, download=download)
    rows: list[tuple[str, str, int, str]] = []
    classes: tuple[str, ...] = ()
    for split, arguments in kept.splits:
        names, files = _listed(name, kept, root, {**arguments, **extra}, needs=needs)
        classes = classes or names
        rows += [(os.path.relpath(file, root).replace(os.sep, "/"), file, label, split) for file, label in files]
    rows.sort(key=lambda row: os.fsencode(row[0]))
    labels = np.array([row[2] for row in rows], dtype=np.int64)
    reader = FileReader(tuple(os.path.abspath(row[1]) for row in rows))
    return Dataset(
        classes=classes or tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1)),
        keys=tuple(printable(row[0]) for row in rows),
        labels=labels,
        splits=np.array([row[3] for row in rows], dtype="<U5"),
        read=reader,
        stamp=reader.stamp,
    )


def _listed(name: str, kept: FileSet, root: Path, arguments: dict[str, Any], *, needs: str) -> tuple[tuple[str, ...], Files]:
    """Class names and the files of one split."""
    if kept.own is None:
        loader = {"loader": as_path} if kept.takes_loader else {}
        try:
            listed = _build(name, root, {**arguments, **loader})
        except _FAULTS as error:
            raise _unfit(name, root, needs, error) from error
        return _classes(listed), kept.files(listed)
    try:
        return _classes(getattr(_theirs(name, "list"), name)), kept.own(root, arguments["split"])
    except _FAULTS as error:
        raise _unfit(name, root, needs, error) from error


def _classes(listed: Any) -> tuple[str, ...]:
    """Class names where torchvision knows them; of several for one class the first."""
    names = getattr(listed, "classes", None) or getattr(listed, "categories", None) or ()
    return tuple(name if isinstance(name, str) else str(name[0]) for name in names)


def _build(name: str, root: Path, arguments: Mapping[str, Any], *, download: bool = False) -> Any:
    """torchvision's own object, which lists files or downloads them; raises any of _FAULTS."""
    datasets = _theirs(name, "download" if download else "list")
    with contextlib.redirect_stdout(sys.stderr):  # some say on stdout that files are there already
        return getattr(datasets, name)(str(root), **arguments, **({"download": True} if download else {}))


@dataclass(frozen=True)
class _Fetch:
    """Downloads a data set through torchvision's class, called once for each of `calls`: an `Announced.fetch`."""

    name: str
    root: Path
    needs: str
    calls: tuple[Mapping[str, Any], ...]
    urls: tuple[str, ...] = ()

    def __call__(self, say: Say) -> None:
        """Raises DataError; torchvision compares the published digests."""
        for url in self.urls:
            say(f"downloading {shown(url)} to {self.root}")
        for arguments in self.calls:
            try:
                _build(self.name, self.root, arguments, download=True)
            except _FAULTS as error:
                raise DataError(
                    f"the images of torchvision/{self.name} are not on this machine and can't be downloaded: {_told(error)}",
                    path="target.path",
                    hint=f"fetch {' and '.join(map(shown, self.urls))} elsewhere, so that there is in {self.root}: {self.needs}",
                ) from error


def _theirs(name: str, purpose: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise _needed(name, purpose) from error
    return datasets


def _needed(name: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(
        f"torchvision/{name}: torchvision is needed to {purpose} it, and it is not installed", hint="pip install 'xfer-runner[torch]'"
    )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _unfit(name: str, root: Path, needs: str, error: BaseException) -> DataError:
    return DataError(
        f"torchvision/{name}: {root} does not hold it as torchvision expects ({_told(error)})",
        path="target.path",
        hint=f"needed are {needs}",
    )


def _absent(fetch: _Fetch, variant: str, *, download: bool) -> UsageError:
    """What is said of a data set that is not there; with `download`, what will be done about it."""
    name, root = fetch.name, fetch.root
    text = f"torchvision/{name}: it is not in {root}; looked for {fetch.needs}"
    about = known(name, variant)
    if about is None:
        return DataError(text, path="target.path", hint="put it there; it can't be downloaded any more")
    if not download:
        return DataError(text, path="target.path", hint="put it there, or set `download: true`")
    if importlib.util.find_spec("torchvision") is None:
        return _needed(name, "download")
    downloads = about.downloads(root)
    fetch = replace(fetch, urls=tuple(download.url for download in downloads))
    return AbsentDataError(
        text,
        announced=Announced(about.names, about.counts, downloads, fetch),
        path="target.path",
        hint="`xfer fetch RECIPE` downloads it",
    )
