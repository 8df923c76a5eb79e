"""What a job takes along to a cluster: the recipe, the recipes that it extends and its local plugins, where they lie to each other.

Nothing else travels: data and weights are read where the cluster reaches them, and no secret is packed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from xfer.compile.secrets import secret_of, strings
from xfer.data.store_faults import size_text
from xfer.errors import UsageError
from xfer.recipe.document import parse
from xfer.recipe.loader import Reading

MAX_BYTES = 50_000_000  # Ray takes 512 MiB; a recipe and its plugins are texts, so what is larger holds something that should not travel
FILES = "files"  # the job's working directory within the package: what lies at the package's top can be imported by every worker
URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
PRIVATE_KEY = b"PRIVATE KEY-----"


@dataclass(frozen=True)
class Package:
    """Files of a job by their names within its working directory; `recipe` is one of the names."""

    recipe: str
    files: Mapping[str, Path]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files.values())


def gather(reading: Reading, *, forbidden: str | None = None) -> Package:
    """The package of a recipe that was read. `forbidden` is a text, the cluster's token, that must not stand in it, nor in what overrides
    say: they travel in the job's command. A file that can't be read is left out: the recipe's check has a fault for it.

    Raises UsageError where it would be too large, or hold a secret.
    """
    recipes = _carried(reading)
    files = [*recipes, *_plugins(reading, recipes)]
    root = _root(files)
    named = {_within(file, root): file for file in files if file.is_file() and os.access(file, os.R_OK)}
    package = Package(_within(recipes[0], root), named)
    if package.bytes > MAX_BYTES:
        largest = max(named, key=lambda name: named[name].stat().st_size)
        raise UsageError(
            f"what the job would take along has {size_text(package.bytes)}, more than the {size_text(MAX_BYTES)} that it may have: "
            f"{largest} alone has {size_text(named[largest].stat().st_size)}",
            hint="a job takes recipes and plugins along; data and weights belong on storage that the cluster reaches",
        )
    for name, file in named.items():
        _refuse_secrets(name, file.read_bytes(), forbidden, what="files")
    for path, text in strings(reading.data):
        if reading.place(path).override is not None:
            _refuse_secrets(f"{path} on the command line", text.encode(errors="surrogateescape"), forbidden, what="command")
    return package


def write(package: Package, folder: Path, *, beside: Mapping[str, str]) -> None:
    """Lay the package out in `folder`: its files below `files/`, and the texts of `beside` under their names."""
    for name, file in package.files.items():
        place = folder / FILES / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    for name, text in beside.items():
        (folder / name).write_text(text, encoding="utf-8")


def _carried(reading: Reading) -> list[Path]:
    """The recipe and those of its parents that are named relative to it: an absolute path, or one into a package, means the same file
    on the cluster, and what such a parent extends is found from there."""
    carried = [Path(os.path.abspath(reading.files[0]))]
    for file, parent in pairwise(reading.files):
        written = (parse(file.read_text(encoding="utf-8-sig"), str(file)).data or {}).get("extends", "")
        if _is_absolute(str(written)):
            break
        carried.append(Path(os.path.abspath(parent)))
    return carried


def _plugins(reading: Reading, recipes: list[Path]) -> list[Path]:
    """The plugin files that the carried recipes, or the command line, name relative to the recipe."""
    writers = {str(file) for file in reading.files[: len(recipes)]}
    found = []
    for index, name in enumerate(reading.recipe.plugins if reading.recipe else []):
        place = reading.place(f"plugins[{index}]")
        if not _is_absolute(name) and (place.override is not None or place.file in writers):
            found.append(Path(os.path.abspath(recipes[0].parent / name)))
    return found


def _is_absolute(location: str) -> bool:
    return "://" in location or location.startswith("~") or os.path.isabs(location)


def _root(files: list[Path]) -> Path:
    """The folder that names are relative to: the working directory where it holds them all, so that the job calls a file what the
    person called it."""
    here = Path.cwd()
    if all(file.is_relative_to(here) for file in files):
        return here
    return Path(os.path.commonpath([file.parent for file in files]))


def _within(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _refuse_secrets(name: str, content: bytes, forbidden: str | None, *, what: str) -> None:
    found = None
    if forbidden and forbidden.encode() in content:
        found = "the cluster's token"
    elif PRIVATE_KEY in content:
        found = "a private key"
    else:
        kinds = (secret_of(url.decode(errors="replace")) for url in URL.findall(content))
        kind = next((kind for kind in kinds if kind is not None), None)
        found = f"an address with a {kind}" if kind else None
    if found:
        raise UsageError(
            f"{name} holds {found}, and a job's {what} can be read by whoever reaches the cluster",
            hint="take it out; on the cluster, libraries read their secrets from their own settings",
        )
