"""`keras/NAME`: the image data sets of keras.datasets, read from where Keras keeps them; Keras itself is not needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xfer.data.announced import Announced, Fetch, by_hand
from xfer.data.dataset import Dataset, check_usable
from xfer.data.keras_files import HOME, KERAS_SETS, KerasSet, datasets_folder
from xfer.data.places import existing
from xfer.errors import AbsentDataError, DataError
from xfer.plugins import nearest

NO_IMAGES = ("boston_housing", "california_housing", "imdb", "reuters")


def keras(name: str | None, *, path: str | None = None, variant: str | None = None, download: bool = True) -> Dataset:
    """A data set by Keras's name for it: cifar10, cifar100, mnist, fashion_mnist; the splits train and test are its own.

    It is looked for in `$KERAS_HOME/datasets` (by default `~/.keras/datasets`) under the names that any release of Keras gives it,
    packed or unpacked, or in `path`: a folder, or the file itself. `variant` is `fine` or `coarse` for cifar100. Where it is not
    there, AbsentDataError says from where `xfer run` and `xfer fetch` will download it, unless `path` is given or `download` is
    false: then it is a DataError, saying what was looked for.
    """
    chosen = _checked_name(name)
    known = KERAS_SETS[chosen]
    kind = _checked_variant(chosen, known, variant)
    place = datasets_folder() if path is None else existing(path)
    found = known.read(place, kind)
    if found is None:
        raise _absent(chosen, known, kind, place, own_path=path is not None, download=download)
    return check_usable(found.dataset(), place=f"keras/{chosen} in {place}")


def _checked_name(name: str | None) -> str:
    if name is not None and name in KERAS_SETS:
        return name
    there = ", ".join(KERAS_SETS)
    if name is None:
        raise DataError("'keras': which data set?", path="target.dataset", hint=f"write keras/NAME; there are {there}")
    guess = nearest(name.lower().replace("-", "_"), KERAS_SETS)
    if name in NO_IMAGES:
        raise DataError(f"'keras/{name}': it holds no images; there are {there}", path="target.dataset")
    raise DataError(
        f"'keras/{name}': Keras has no image data set of that name; there are {there}",
        path="target.dataset",
        hint=f"did you mean 'keras/{guess}'?" if guess else None,
    )


def _checked_variant(name: str, known: KerasSet, variant: str | None) -> str:
    """The variant, by default the first; '' for a data set without."""
    if variant is None or variant in known.variants:
        return variant or known.variants[0]
    there = f"there are {', '.join(known.variants)}" if len(known.variants) > 1 else "it has no variants"
    raise DataError(f"keras/{name}: no variant is called '{variant}'; {there}", path="target.variant")


def _absent(name: str, known: KerasSet, variant: str, place: Path, *, own_path: bool, download: bool) -> DataError:
    text = f"keras/{name}: it is not in {place}; looked for {known.looks_for}"
    if own_path:
        return DataError(text, path="target.path", hint=f"put it there, or leave `path` out to have it from Keras's own folder (${HOME})")
    missing = tuple(replace(each, file=str(place / each.file)) for each in known.downloads if not (place / each.file).is_file())
    if not download:
        return DataError(text, path="target.dataset", hint=f"{by_hand(missing)}, or leave `download: false` out")
    announced = Announced(known.classes[variant], known.counts[variant], missing, Fetch(f"the images of keras/{name}", missing))
    hint = f"`xfer fetch RECIPE` downloads it, or {by_hand(missing)}"
    return AbsentDataError(text, announced=announced, path="target.dataset", hint=hint)
