"""Whatever is done to a recipe, reading it ends with faults and never with a traceback."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xfer.errors import Fault
from xfer.recipe.loader import read
from xfer.recipe.schema import Recipe

FULL = (Path(__file__).parent / "full.yaml").read_text()
DATA = read(Path(__file__).parent / "full.yaml").data
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["${seed}", "${target}", "${", "${oc.env:HOME}", "???", "none", "<list>", "[key]", "1e-3", "head", "a.b[0]", "{x}", "%s"]
    )
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [at, *(path for key, item in pairs for path in paths(item, (*at, key)))]


PATHS = [path for path in paths(DATA) if path]


def holds(file: Path, *overrides: str) -> None:
    found = read(file, overrides)
    assert all(isinstance(fault, Fault) and fault.message and "\n" not in str(fault) for fault in found.faults)
    assert found.recipe is None or isinstance(found.recipe, Recipe)
    assert found.recipe is not None or found.faults
    for path in ("freeze[0].train", "target.path", "optimizer.lr", "source.model"):
        found.fault(path, "x")
        found.blocked(path)
    if found.recipe is not None:
        assert Recipe.model_validate(found.recipe.model_dump()) == found.recipe
    if not found.faults:
        assert found.recipe is not None
        assert found.resolved == found.recipe.model_dump()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "r.yaml"


@quick
@given(data=st.data())
def test_values_replaced_removed_and_added(file: Path, data: st.DataObject) -> None:
    recipe = deepcopy(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(PATHS))
        container: Any = recipe
        for key in path[:-1]:
            container = (
                container.get(key)
                if isinstance(container, dict)
                else container[key]
                if isinstance(container, list) and key < len(container)
                else None
            )
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if isinstance(container, list):
            container.append(data.draw(values)) if action == "add" else None
        elif isinstance(container, dict) and action == "remove":
            container.pop(path[-1], None)
        elif isinstance(container, dict):
            container[path[-1] if action == "replace" else data.draw(st.text(max_size=10))] = data.draw(values)
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace")
    holds(file)


@quick
@given(
    at=st.integers(0, len(FULL)),
    length=st.integers(0, 12),
    text=st.text(st.sampled_from("{}[]:,-#&*!|>'\"%@`?<~\t\n $ab0.\x00é"), max_size=6),
)
def test_text_torn(file: Path, at: int, length: int, text: str) -> None:
    file.write_bytes((FULL[:at] + text + FULL[at + length :]).encode())
    holds(file)


@quick
@given(content=st.binary(max_size=60))
def test_any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    holds(file)


@quick
@given(path=st.sampled_from(PATHS), tail=st.sampled_from(["", ".x", "[0]", ".0.y", "[", "..", "]"]), value=values | st.text(max_size=20))
def test_any_override(file: Path, path: tuple[str | int, ...], tail: str, value: Any) -> None:
    file.write_text(FULL)
    text = value if isinstance(value, str) else json.dumps(value)
    holds(file, f"{'.'.join(str(key) for key in path)}{tail}={text}")


@quick
@given(parent=values, child=values, key=st.sampled_from(["source", "freeze", "optimizer", "head", "sweep", "target"]))
def test_any_merge(file: Path, parent: Any, child: Any, key: str) -> None:
    file.with_name("base.yaml").write_text(yaml.safe_dump({**DATA, key: parent}, allow_unicode=True), encoding="utf-8", errors="replace")
    file.write_text(yaml.safe_dump({"extends": "base.yaml", key: child}, allow_unicode=True), encoding="utf-8", errors="replace")
    holds(file)
