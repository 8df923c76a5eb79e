"""Where Keras would look for the tensors of a network in its own files: by layer, by the layers' order, by the place in the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What a property of a layer may raise before the layer is ready for it.
UNREADY = (AttributeError, ValueError, TypeError, RuntimeError, NotImplementedError, KeyError)


@dataclass(frozen=True)
class Layer:
    """A layer that has tensors: `path` is its name with those of the nested models before it, `tensors` our names for them, trained
    ones first, as the older files have them. `is_named` tells that a person named it."""

    path: str
    tensors: tuple[str, ...]
    is_named: bool


@dataclass(frozen=True)
class Place:
    """Where the newer files have a tensor: `layers/conv2d_1/vars/0`, and the same by the layers' own names: `Conv1/0`."""

    place: str
    named: str
    tensor: str


def tops(network: Any, names: Mapping[int, str], parameters: Iterable[str]) -> list[list[Layer]]:
    """The top-level layers that have tensors, each as the layers in it that are no models. `names` are ours, by a variable's id."""
    trained = set(parameters)

    def inside(layer: Any, above: str) -> Iterator[Layer]:
        if _is_nested(layer):
            for inner in layer.layers:
                yield from inside(inner, f"{above}{layer.name}/")
            return
        own = [names[id(variable)] for variable in layer.weights if id(variable) in names]
        if own:
            ordered = sorted(own, key=lambda name: name not in trained)
            yield Layer(f"{above}{layer.name}", tuple(ordered), not _is_automatic(layer))

    found = [list(inside(layer, "")) for layer in _layers(network)]
    return [layers for layers in found if layers]


def places(network: Any, names: Mapping[int, str]) -> list[Place]:
    """Where Keras 3 has each tensor of a network, in the order in which it saves them."""
    return list(_Walk(names).below(network, "", ""))


class _Walk:
    """Goes through a network as Keras 3 does when it saves: whatever it meets a second time is left out."""

    def __init__(self, names: Mapping[int, str]) -> None:
        import keras

        self.names, self.kind = names, keras.layers.Layer
        self.plain = set(dir(keras.layers.Layer()))
        self.seen: dict[int, Any] = {}  # held, so that no other object takes their ids

    def below(self, child: Any, place: str, named: str) -> Iterator[Place]:
        """The places in a layer, or in a list or dict of layers; what else an attribute may be has none."""
        if not isinstance(child, (self.kind, list, tuple, dict)) or id(child) in self.seen:
            return
        self.seen[id(child)] = child
        if isinstance(child, self.kind):
            yield from self._own(child, place, named)
            for attribute, entry in self._attributes(child):
                yield from self.below(entry, _joined(place, attribute), self._name(entry, named))
            return
        counts: dict[str, int] = {}
        for entry in child.values() if isinstance(child, dict) else child:
            kind = "container" if isinstance(entry, (list, tuple, dict)) else _snake(type(entry).__name__)
            number = counts[kind] = counts.get(kind, -1) + 1
            yield from self.below(entry, _joined(place, f"{kind}_{number}" if number else kind), self._name(entry, named))

    def _own(self, layer: Any, place: str, named: str) -> Iterator[Place]:
        own: dict[str, Any] = {}
        layer.save_own_variables(own)
        for index, variable in own.items():
            if id(variable) in self.names:
                yield Place(_joined(place, f"vars/{index}"), _joined(named, index), self.names[id(variable)])

    def _attributes(self, layer: Any) -> Iterator[tuple[str, Any]]:
        """A model's layers first, then what not every layer has, private attributes last."""
        left_out = self.plain
        if _is_nested(layer):
            yield "layers", layer.layers
            left_out = left_out | {"operations", "_operations", "_functional", "layers"}
        for attribute in sorted(dir(layer), key=lambda name: f"~{name}" if name.startswith("_") else name):
            if attribute.startswith("__") or attribute in left_out:
                continue
            try:
                entry = getattr(layer, attribute)
            except UNREADY:
                continue
            yield attribute, entry

    def _name(self, entry: Any, named: str) -> str:
        return _joined(named, entry.name) if isinstance(entry, self.kind) else named


def _joined(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name


def _is_nested(layer: Any) -> bool:
    import keras

    return isinstance(layer, (keras.Sequential, keras.Function)) and isinstance(layer, keras.Model)


def _layers(network: Any) -> list[Any]:
    return list(network.layers) if hasattr(network, "layers") else [network]


def _is_automatic(layer: Any) -> bool:
    return re.fullmatch(rf"{_snake(type(layer).__name__)}(_\d+)?", layer.name) is not None


def _snake(name: str) -> str:
    """How Keras writes a class's name.

    >>> _snake("BatchNormalization"), _snake("Conv2D")
    ('batch_normalization', 'conv2d')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
