"""One YAML text as plain data, with the place of every key and all that is wrong with the text itself.

YAML's own surprises are left out: numbers are decimal (or 0x, 0o, 0b), `1e-3` is a number, `010` and `1:30` are text, dates are
text. `yes`, `no`, `on` and `off` are booleans as everywhere in YAML 1.1, and a fault says so where text was wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from xfer.errors import Fault
from xfer.recipe import references
from xfer.recipe.paths import Keys, as_keys, render
from xfer.recipe.words import one_line
from xfer.recipe.yaml_text import MAX_DEPTH, TAG, compose, plain_tag

MAX_NODES = 10_000  # after aliases are expanded, as in OmegaConf

_TRUE = {"yes", "true", "on"}


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file with line and column (from 1), or the text of an override and the path that it sets.
    `raw` is a plain scalar's own text."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    override: str | None = None
    sets: Keys = ()
    raw: str | None = None


@dataclass
class Document:
    """A text's data (None where there is none), the places of its keys, its faults, and the paths that are faulty."""

    data: dict[str, Any] | None = None
    places: dict[Keys, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    blocked: set[Keys] = field(default_factory=set)


class _Refused(Exception):
    """A value that can't be used; the fault is noted already."""


def parse(text: str, name: str) -> Document:
    """A recipe's text; `name` is what faults call the file."""
    document = Document()
    builder = _Builder(document, lambda node, raw: Place(name, node.start_mark.line + 1, node.start_mark.column + 1, raw=raw))
    node = compose(text, lambda line, column, message: document.faults.append(Fault(name, line, column, "", message)))
    if node is None:
        if not document.faults:
            message = "empty; a recipe needs at least source.model, target.dataset and transfer.type"
            document.faults.append(Fault(name, 1, 1, "", message))
        document.blocked.add(())
        return document
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        document.faults.append(
            Fault(
                name, node.start_mark.line + 1, node.start_mark.column + 1, "", f"must be a mapping with keys such as 'source:', not {kind}"
            )
        )
        document.blocked.add(())
        return document
    document.places[()] = builder.place(node, None)
    try:
        document.data = builder.root(node)
    except _Refused:
        document.blocked.add(())
    return document


def parse_value(text: str, override: str, keys: Keys) -> Document:
    """The value of an override, as `{'value': …}`; its places lie at `keys`. What opens with a bracket, a brace or a quote is YAML,
    all else a plain scalar, so that a glob or a colon needs no quoting twice."""
    document = Document()

    def say(line: int, column: int, message: str) -> None:
        document.faults.append(Fault(None, None, None, override, message))

    builder = _Builder(document, lambda node, raw: Place(override=override, sets=keys, raw=raw))
    if text[:1] in ("[", "{", "'", '"'):
        node = compose(text, say)
    else:
        tag = plain_tag(text)
        mark = yaml.Mark(override, 0, 0, 0, None, 0)
        node = yaml.ScalarNode(tag, text, mark, mark, style=None)
    if node is not None:
        document.places[keys] = Place(override=override, sets=keys, raw=text)
        try:
            builder.check(node, 0)
            document.data = {"value": builder.value(node, keys)}
        except _Refused:
            document.blocked.add(keys)
    return document


class _Builder:
    """Nodes to data, in one walk."""

    def __init__(self, document: Document, place: Callable[[yaml.Node, str | None], Place]) -> None:
        self.document = document
        self.place = place
        self.sizes: dict[int, int] = {}
        self.open: set[int] = set()

    def root(self, node: yaml.MappingNode) -> dict[str, Any]:
        self.check(node, 0)
        found: dict[str, Any] = self.value(node, ())
        if found:
            first = next(iter(self.document.places[key,] for key in found))
            self.document.places[()] = first
        return found

    def check(self, node: yaml.Node, depth: int) -> int:
        """How many nodes there are once aliases are expanded; refuses loops and what is too big before anything is built."""
        if id(node) in self.open:
            self.refuse(node, (), "an alias stands inside what it names")
        if depth > MAX_DEPTH:
            self.refuse(node, (), f"nested deeper than {MAX_DEPTH} levels")
        if id(node) in self.sizes:
            return self.sizes[id(node)]
        self.open.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        size = 1
        for child in children:
            size += self.check(child, depth + 1)
            if size > MAX_NODES:
                self.refuse(node, (), f"more than {MAX_NODES:,} values once its aliases are expanded")
        self.open.discard(id(node))
        self.sizes[id(node)] = size
        return size

    def value(self, node: yaml.Node, keys: tuple[str | int, ...]) -> Any:
        if len(keys) > MAX_DEPTH:  # an alias can deepen what `check` measured once
            self.refuse(node, keys, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            if node.tag != TAG + "map":
                self.refuse_tag(node, keys)
            return self.mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != TAG + "seq":
                self.refuse_tag(node, keys)
            items = []
            for index, item in enumerate(node.value):
                self.document.places[as_keys((*keys, index))] = self.place(item, _raw(item))
                items.append(self.value(item, (*keys, index)))
            return items
        return self.scalar(node, keys)

    def mapping(self, node: yaml.MappingNode, keys: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in _merged(node):
            merged = isinstance(key_node, _Inherited)
            if merged:
                key_node = key_node.node
            name = self.key(key_node, keys)
            if name is None:
                continue
            path = (*keys, name)
            if name in found or as_keys(path) in self.document.blocked:
                if not merged:
                    first = self.document.places[as_keys(path)]
                    where = f"; first on line {first.line}" if first.line else ""
                    self.note(key_node, path, f"written twice{where}", block=False)
                continue
            self.document.places[as_keys(path)] = self.place(key_node, _raw(value_node))
            try:
                found[name] = self.value(value_node, path)
            except _Refused:
                self.document.blocked.add(as_keys(path))
        return found

    def key(self, node: yaml.Node, keys: tuple[str | int, ...]) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
            self.note(node, keys, f"a key must be text, not {kind}", block=False)
        elif node.tag == TAG + "str":
            if node.value:
                return str(node.value)
            self.note(node, keys, "a key must not be empty", block=False)
        elif node.tag == TAG + "merge":
            self.note(node, keys, "'<<' takes the alias of a mapping, or a list of them", block=False)
        elif node.tag == TAG + "null" and not node.value:
            self.note(node, keys, "a key is missing before ':'", block=False)
        elif node.tag.startswith(TAG) and node.tag[len(TAG) :] in ("bool", "int", "float", "null"):
            hint = (
                f"; YAML reads {node.value} as {_spoken(node)}"
                if node.tag == TAG + "bool" and node.value.lower() not in ("true", "false")
                else ""
            )
            self.note(node, (*keys, node.value), f"a key must be text{hint}; write it in quotes: '{node.value}'", block=False)
        else:
            self.note(node, (*keys, node.value), f"the tag {_tag(node)} is not allowed; a recipe holds plain values only", block=False)
        return None

    def scalar(self, node: yaml.Node, keys: tuple[str | int, ...]) -> Any:
        kind, text = node.tag.removeprefix(TAG), str(node.value)
        if kind == "str" or kind in ("merge", "value"):
            if text == "???":
                self.refuse(node, keys, "'???' marks a value that is still to be filled in")
            message = references.refused(text)
            if message:
                self.refuse(node, keys, message)
            return text
        if kind == "null":
            return None
        try:
            if kind == "bool" and text.lower() in (*_TRUE, "no", "false", "off"):
                return text.lower() in _TRUE
            if kind == "int":
                return _whole(text)
            if kind == "float":
                return self.number(node, keys, text)
        except ValueError:
            self.refuse(node, keys, f"not a number that can be used: {text[:20]}{'…' if len(text) > 20 else ''}")
        return self.refuse_tag(node, keys)

    def number(self, node: yaml.Node, keys: tuple[str | int, ...], text: str) -> float:
        digits = text.replace("_", "").lower()
        number = float(digits[:-4] + digits[-3:]) if digits.endswith((".inf", ".nan")) else float(digits)
        if number != number or number in (float("inf"), float("-inf")):
            self.refuse(node, keys, f"must be a finite number, not {text}")
        return number

    def refuse_tag(self, node: yaml.Node, keys: tuple[str | int, ...]) -> Any:
        self.refuse(node, keys, f"the tag {_tag(node)} is not allowed; a recipe holds plain values only")

    def refuse(self, node: yaml.Node, keys: tuple[str | int, ...], message: str) -> Any:
        self.note(node, keys, message)
        raise _Refused

    def note(self, node: yaml.Node, keys: tuple[str | int, ...], message: str, *, block: bool = True) -> None:
        place = self.place(node, None) if not block or not keys else self.document.places.get(as_keys(keys)) or self.place(node, None)
        path = place.override or render(keys)
        self.document.faults.append(Fault(place.file, place.line, place.column, one_line(path), one_line(message)))
        if block:
            self.document.blocked.add(as_keys(keys))


class _Inherited:
    """A key that came through `<<`."""

    def __init__(self, node: yaml.Node) -> None:
        self.node = node


def _merged(node: yaml.MappingNode) -> list[tuple[Any, yaml.Node]]:
    """Own pairs first, then those that `<<` brings."""
    own: list[tuple[Any, yaml.Node]] = []
    brought: list[tuple[Any, yaml.Node]] = []
    for key, value in node.value:
        if key.tag != TAG + "merge":
            own.append((key, value))
            continue
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(source, yaml.MappingNode):
                brought += [(k if isinstance(k, _Inherited) else _Inherited(k), v) for k, v in _merged(source)]
            else:
                own.append((key, value))
    return own + brought


def _whole(text: str) -> int:
    digits = text.replace("_", "").lower()
    prefix = digits.lstrip("+-")[:2]
    return int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(prefix, 10))


def _raw(node: yaml.Node) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None


def _spoken(node: yaml.ScalarNode) -> str:
    return "true" if node.value.lower() in _TRUE else "false"


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG, "!!")
