"""A recipe and the recipes that it extends, merged: mappings deeply, everything else replaced; and where each key was written."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfer.errors import Fault
from xfer.recipe.document import Document, Place, parse
from xfer.recipe.faults import Findings, fault_at
from xfer.recipe.paths import Keys
from xfer.recipe.words import shown
from xfer.recipe.yaml_text import read_text

PACKAGE, FILE = "pkg://", "file://"


@dataclass
class Chain:
    """The merged data (None where there is none), the text of the recipe itself, all files, and whether a parent is missing."""

    data: dict[str, Any] | None = None
    text: str = ""
    files: list[Path] = field(default_factory=list)
    is_whole: bool = True


def gather(location: str, findings: Findings) -> Chain:
    """The recipe at `location` on top of its parents. Faults go to `findings`, and so do the places of all keys."""
    try:
        name, file = _find(location, "")
    except LookupError as error:
        findings.faults.append(Fault(location, None, None, "", str(error)))
        return Chain(files=[Path(location)])
    text, fault = read_text(file, name)
    chain = Chain(text=text or "", files=[file])
    if text is None:
        assert fault is not None
        findings.faults.append(fault)
        findings.blocked.add(())
        return chain
    document = parse(text, name)
    merged = document
    findings.take(document)
    findings.places.update(document.places)
    names = [name]
    while document.data is not None and "extends" in document.data:
        parent = _parent(document, names, chain, findings)
        if parent is None:
            chain.is_whole = False
            break
        findings.take(parent)
        merged = _merged(parent, merged)
        document = parent
    if merged.data is not None:
        merged.data.pop("extends", None)
    findings.places.clear()
    findings.places.update(merged.places)
    chain.data = merged.data
    return chain


def _parent(document: Document, names: list[str], chain: Chain, findings: Findings) -> Document | None:
    """The recipe that `document` extends; None after a fault at its `extends` key."""
    assert document.data is not None
    location = document.data.pop("extends")
    place = document.places[("extends",)]

    def refuse(message: str) -> None:
        findings.faults.append(fault_at({("extends",): place}, ("extends",), message))

    if not isinstance(location, str) or not location:
        refuse(f"must be the path of one recipe, not {shown(location)}")
        return None
    if "${" in location:
        refuse("must be a plain path: interpolation happens after recipes are merged")
        return None
    try:
        name, file = _find(location, os.path.dirname(names[-1]))
    except LookupError as error:
        refuse(str(error))
        return None
    if any(os.path.realpath(file) == os.path.realpath(known) for known in chain.files):
        refuse(f"goes round in a circle: {' -> '.join([*names, name])}")
        return None
    text, fault = read_text(file, name)
    if text is None:
        assert fault is not None
        refuse(fault.message if fault.line is None else f"{name}:{fault.line}:{fault.column}: {fault.message}")
        return None
    names.append(name)
    chain.files.append(file)
    parent = parse(text, name)
    if parent.data is None:
        findings.faults += parent.faults
        return None
    _rebase_plugins(parent.data, file, chain.files[0])
    return parent


def _find(location: str, folder: str) -> tuple[str, Path]:
    """What messages call the file, and the file. Raises LookupError for what can't hold a recipe."""
    if "\0" in location:
        raise LookupError("a path can't hold a NUL character")
    if folder.startswith(PACKAGE) and "://" not in location and not location.startswith(("/", "~")):
        location = PACKAGE + os.path.normpath(os.path.join(folder[len(PACKAGE) :], location))
    if location.startswith(PACKAGE):
        package, _, inside = location[len(PACKAGE) :].partition("/")
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        folders = list(found.submodule_search_locations or []) if found else []
        if not folders or not inside:
            raise LookupError(
                f"no package '{package}' is installed" if inside else f"must name a file: pkg://package/file, not '{location}'"
            )
        return location, Path(folders[0], inside)
    if location.startswith(FILE):
        location = location[len(FILE) :]
    elif "://" in location:
        raise LookupError(f"recipes are read from files and packages only, not from '{location}'; download it first")
    name = os.path.normpath(os.path.join(folder, os.path.expanduser(location)))
    return name, Path(name)


def _rebase_plugins(data: dict[str, Any], file: Path, recipe: Path) -> None:
    """Plugin files are named relative to the recipe that lists them; after merging, relative to the recipe itself."""
    listed = data.get("plugins")
    if isinstance(listed, list):
        away = os.path.relpath(file.absolute().parent, recipe.absolute().parent)
        if away != ".":
            data["plugins"] = [os.path.join(away, item) if isinstance(item, str) and "://" not in item else item for item in listed]


def _merged(parent: Document, child: Document) -> Document:
    from omegaconf import OmegaConf  # costs 0.1 s, which only recipes that merge something pay

    assert parent.data is not None
    assert child.data is not None
    base = _without(parent.data, child.data)
    data = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(child.data)), resolve=False)
    assert isinstance(data, dict)
    return Document(data={str(key): value for key, value in data.items()}, places=_merged_places(parent, child))


def _without(parent: dict[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """The parent without what the child replaces outright: OmegaConf refuses to merge a mapping into a list."""
    kept = {}
    for key, value in parent.items():
        if isinstance(value, dict) and isinstance(child.get(key), dict):
            kept[key] = _without(value, child[key])
        elif key not in child:
            kept[key] = value
    return kept


def _merged_places(parent: Document, child: Document) -> dict[Keys, Place]:
    replaced = set()

    def walk(old: Any, new: Any, keys: Keys) -> None:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            replaced.add(keys)
            return
        for key in new:
            walk(old.get(key), new[key], (*keys, key))

    walk(parent.data, child.data, ())
    kept = {keys: place for keys, place in parent.places.items() if not any(keys[:n] in replaced for n in range(1, len(keys) + 1))}
    return kept | child.places
