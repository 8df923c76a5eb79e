"""Models that are files or folders on this machine: where a name leads, and whether what lies there is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from xfer import plugins
from xfer.data.locations import locate, missing, shown
from xfer.errors import BundleError, UsageError, WeightsError
from xfer.plan.plan import SourcePlan
from xfer.sources import keras_library

PLACE = "source.model"  # where in the recipe such a model is named
OWN = "its own"  # the name of the weights that lie with it
ANY_SIZE = 224  # of a network that takes images of any size
BLOCK_BYTES = 1 << 20
KEPT = "model/source"  # in a bundle: a copy of the file or folder that its model is built from


class PathSource:
    """What each source of Keras's or TensorFlow's models on this machine answers alike."""

    backend = "tensorflow"
    provider: str
    named_by_path = True
    brings_weights = True

    def library(self) -> str:
        """'keras 3.15.1', without importing it; raises MissingExtraError."""
        return keras_library.library()

    def models(self) -> list[str]:
        """None: such models are named by their paths."""
        return []

    def located(self, name: str) -> str:
        """The absolute path that a name means; raises UsageError for a URL, and for a package that is not installed."""
        place = locate(name)
        if place.url is not None:
            raise UsageError(f"{self.provider}:{shown(name)} is behind a URL; copy it to this machine and name the copy")
        return str(place.file)

    def stamp(self, name: str) -> str:
        """What changes when a file there does; raises WeightsError where nothing is."""
        return _stamp(Path(self.located(name)))

    def tags(self, name: str) -> list[str]:
        """The weights that lie with it."""
        return [OWN]

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """As they are."""
        return tensors


def content(path: Path) -> str:
    """A digest over a file, or over all files of a folder with their names: what a graph computes may depend on each of them."""
    digest = hashlib.blake2b(digest_size=16)
    for file in _files(path):
        name = file.relative_to(path).as_posix() if file != path else ""
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def model_path(source: SourcePlan) -> Path | None:
    """The file or folder that a source's model is made from; None for a model that its provider knows by name."""
    provider = plugins.load(source.target)()
    return Path(provider.located(source.name)) if getattr(provider, "named_by_path", False) else None


def model_content(source: SourcePlan) -> str | None:
    """The digest over it; None where there is none."""
    path = model_path(source)
    return None if path is None else content(path)


def kept(source: SourcePlan, bundle: Path) -> SourcePlan:
    """The source with the bundle's own copy of its model, where it has one: what it was copied from may be elsewhere, or another, now."""
    copy = bundle.absolute() / KEPT / Path(source.name).name
    return source.model_copy(update={"name": str(copy)}) if copy.exists() else source


def refuse_another(source: SourcePlan, before: str | None, *, bundle: Path) -> None:
    """Raises BundleError where the model that a bundle was made from, or its copy, is there no more, or another lies in its place: the
    bundle's tensors would be put into it, and what it makes of them is not what the run made. `before` is what `model_content` was then."""
    path = model_path(source)
    if path is None or before is None:
        return
    if not path.exists():
        raise BundleError(f"{missing(path)}; the model in {bundle} is built from it", hint="put it back where it was")
    if content(path) != before:
        raise BundleError(
            f"{path} changed since the run in {bundle} began, and the model in it is built from that file",
            hint="put the file back that the run had, or start a new run with the recipe",
        )


def _stamp(path: Path) -> str:
    """A digest over names, sizes and times of what lies there."""
    if not path.exists():
        raise WeightsError(missing(path), path=PLACE)
    files = _files(path)
    seen = [f"{file.relative_to(path) if path.is_dir() else ''}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}" for file in files]
    return hashlib.blake2b("\n".join(seen).encode(), digest_size=16).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
