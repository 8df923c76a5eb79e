"""Where a dataset's options point to: a path of the recipe becomes an absolute local path that exists, or a DataError."""

from __future__ import annotations

from pathlib import Path

from xfer.data.locations import local_path, locate
from xfer.errors import DataError, UsageError


def existing(location: str, *, option: str = "path") -> Path:
    """The absolute path that `location` (a path, `pkg://package/file`, an fsspec URL) means.

    Raises DataError, placed at the recipe's `target.<option>`, with the absolute path that was tried.
    """
    if not isinstance(location, str) or not location:
        raise DataError(f"{option}: expected a path, not {location!r}", path=f"target.{option}")
    try:
        return local_path(location).absolute()
    except UsageError as error:
        raise DataError(f"{option}: {error.message}", path=f"target.{option}", hint=error.hint) from error


def no_name(plugin: str, name: str | None) -> None:
    """Raises DataError where a dataset that takes no name was written with one (`folder/flowers`)."""
    if name is not None:
        raise DataError(
            f"'{plugin}/{name}': {plugin} takes no name after a slash",
            path="target.dataset",
            hint=f"write `dataset: {plugin}` and `path: …`",
        )


def wanted(location: str, *, option: str = "path") -> Path:
    """As `existing`, but the path may not be there yet: a place to download to."""
    try:
        located = locate(location)
    except UsageError as error:
        raise DataError(f"{option}: {error.message}", path=f"target.{option}", hint=error.hint) from error
    return existing(location, option=option) if located.url is not None else located.file.absolute()
