"""Reads a recipe: files, merging, overrides, interpolation, validation; and says what is wrong with it, all at once.

OmegaConf goes no further than this package: what leaves it is plain data and frozen models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfer.errors import Fault, RecipeError
from xfer.recipe import interpolate, shape
from xfer.recipe.document import Place
from xfer.recipe.faults import Findings, fault_at, place_of, validated
from xfer.recipe.inherit import gather
from xfer.recipe.overrides import NoKeyError, apply, locate
from xfer.recipe.paths import Keys, related, split
from xfer.recipe.schema import Recipe


@dataclass(frozen=True)
class Reading:
    """What was read. `recipe` is valid even where there are faults, because faulty keys were taken out of it; it is None where
    nothing valid is left. `data` is what was written, with overrides; `resolved` has the defaults too. `files` begins with the recipe."""

    recipe: Recipe | None
    faults: tuple[Fault, ...]
    data: dict[str, Any]
    resolved: dict[str, Any]
    text: str
    files: tuple[Path, ...]
    _places: Mapping[Keys, Place] = field(default_factory=dict, repr=False)
    _blocked: frozenset[Keys] = field(default=frozenset(), repr=False)

    def place(self, path: str) -> Place:
        """Where `freeze[0].train` was written; for what was not, where its nearest parent was."""
        return place_of(self._places, split(path))[0]

    def fault(self, path: str, message: str, suggestion: str | None = None) -> Fault:
        """A fault at that path, or at the override that its value came from."""
        return fault_at(self._places, self._typed(split(path)), message, suggestion)

    def blocked(self, path: str) -> bool:
        """True if a fault was found at, above or below that path already: a second one would only repeat it."""
        return any(related(split(path), faulty) for faulty in self._blocked)

    def _typed(self, keys: Keys) -> tuple[str | int, ...]:
        """The keys with positions in lists as numbers, as they are shown."""
        value: Any = self.resolved
        found: list[str | int] = []
        for key in keys:
            found.append(int(key) if isinstance(value, list) and key.isdecimal() else key)
            value = shape.step(value, key)
        return tuple(found)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Reading:
    """As `read`, but raises RecipeError with all faults if there are any."""
    reading = read(path, overrides)
    if reading.faults:
        raise RecipeError(faults=reading.faults)
    return reading


def read(path: str | Path, overrides: Sequence[str] = ()) -> Reading:
    """A recipe file with its parents and overrides. Never raises for what is wrong with the recipe: see `Reading.faults`."""
    findings = Findings({})
    chain = gather(str(path), findings)
    if chain.data is None:
        return Reading(None, findings.sorted(), {}, {}, chain.text, tuple(chain.files), findings.places, frozenset({()}))
    written = chain.data
    full = shape.filled(shape.ROOT, written)
    apply(overrides, written, full, findings)
    full = interpolate.resolved(full, findings)
    written = _restricted(full, written)
    if not chain.is_whole:
        findings.blocked |= set(_absent(written))  # a parent that could not be read may well have them
    recipe = validated(written, findings)
    if recipe is not None and recipe.sweep is not None:
        _check_space(recipe, full, findings)
    blocked = findings.blocked if chain.is_whole else {()}
    resolved = recipe.model_dump() if recipe is not None else full
    return Reading(recipe, findings.sorted(), written, resolved, chain.text, tuple(chain.files), findings.places, frozenset(blocked))


def _restricted(full: Any, written: Any) -> Any:
    """`full` without the defaults: what the recipe wrote, with interpolations resolved."""
    if isinstance(full, dict) and isinstance(written, dict):
        return {key: _restricted(full[key], written[key]) for key in written if key in full}
    if isinstance(full, list) and isinstance(written, list):
        return [_restricted(one, other) for one, other in zip(full, written, strict=True)]
    return deepcopy(full) if written is not None else None


def _absent(written: dict[str, Any]) -> list[Keys]:
    """Required keys that are not written."""
    found = []
    for path, _ in shape.required(Recipe):
        value: Any = written
        for key in path:
            value = shape.step(value, key)
        if value is None:
            found.append(path)
    return found


def _check_space(recipe: Recipe, full: dict[str, Any], findings: Findings) -> None:
    """The keys of a sweep's space, and those in `when`, must be keys of the recipe."""
    assert recipe.sweep is not None
    for name, space in recipe.sweep.space.items():
        for key, at in [(name, ("sweep", "space", name)), *((key, ("sweep", "space", name, "when", key)) for key in space.when or {})]:
            try:
                locate(full, split(key))
            except ValueError as error:
                findings.add(at, str(error))
            except NoKeyError as error:
                findings.add(at, error.message, error.suggestion)
