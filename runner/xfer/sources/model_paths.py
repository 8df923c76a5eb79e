"""Models that are files or folders on this machine: where a name leads, and whether what lies there is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from xfer.data.locations import locate, missing, shown
from xfer.errors import UsageError, WeightsError
from xfer.sources import keras_library

PLACE = "source.model"  # where in the recipe such a model is named
OWN = "its own"  # the name of the weights that lie with it
ANY_SIZE = 224  # of a network that takes images of any size


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


def _stamp(path: Path) -> str:
    """A digest over names, sizes and times of what lies there."""
    if not path.exists():
        raise WeightsError(missing(path), path=PLACE)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    seen = [f"{file.relative_to(path) if path.is_dir() else ''}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}" for file in files]
    return hashlib.blake2b("\n".join(seen).encode(), digest_size=16).hexdigest()
