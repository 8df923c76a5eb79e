"""Models that are files or folders on this machine: where a name leads, and whether what lies there is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from xfer.data.locations import locate, missing, shown
from xfer.errors import UsageError, WeightsError

PLACE = "source.model"  # where in the recipe such a model is named


def located(name: str, provider: str) -> str:
    """The absolute path that the name of a model means; raises UsageError for a URL, and for a package that is not installed."""
    place = locate(name)
    if place.url is not None:
        raise UsageError(f"{provider}:{shown(name)} is behind a URL; copy it to this machine and name the copy")
    return str(place.file)


def stamp(path: Path) -> str:
    """A digest over names, sizes and times of what lies there; raises WeightsError where nothing does."""
    if not path.exists():
        raise WeightsError(missing(path), path=PLACE)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    seen = [f"{file.relative_to(path) if path.is_dir() else ''}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}" for file in files]
    return hashlib.blake2b("\n".join(seen).encode(), digest_size=16).hexdigest()
