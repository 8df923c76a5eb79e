"""A Keras network as a graph of calls: nested models expanded, names that don't depend on what else the process made.

Keras keeps a node for each symbolic call of an operation (`operation._inbound_nodes`), with its arguments, and each symbolic tensor
knows its node (`tensor._keras_history`); `keras.src.ops.function.Function` runs a functional model by the same data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
from keras import tree

from xfer.backends.tensorflow.calling import refusals
from xfer.backends.tensorflow.layers import is_norm
from xfer.errors import UsageError


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation: `node` holds its arguments, `reads` and `gives` are symbolic tensors, `name` the operation's
    name, `named` whether a person gave it."""

    operation: Any
    node: Any
    name: str
    named: bool
    reads: tuple[Any, ...]
    gives: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A flat network: its calls in topological order, one branch after the other, without the one that reads the input."""

    network: Any
    calls: tuple[Call, ...]
    input: Any
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class NamedTensor:
    """A variable under its one name. `owner` is the top-level layer that it belongs to (None for a model's own), `norm` tells whether the
    layer that made it normalises."""

    name: str
    variable: Any
    kind: Literal["parameter", "buffer"]
    owner: Any
    norm: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.variable.shape)

    @property
    def size(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


def functional(network: Any) -> Any:
    """The functional model that `network` is or consists of, None for any other: a subclassed model, a Sequential without a shape."""
    inside = network._functional if isinstance(network, keras.Sequential) else network
    is_one = isinstance(inside, keras.Model) and isinstance(inside, keras.Function)
    own_call = not type(network).call.__module__.startswith("keras.")  # a subclass that decides itself what happens
    return inside if is_one and not own_call else None


def flatten(network: Any, *, image_size: int) -> Any:
    """The network with nested models expanded, on an input [B, image_size, image_size, 3]; layers and variables are shared with the
    original. A network without a graph is returned as it is; a Sequential that was never built is built. Layers whose names clash are
    renamed.

    Raises UsageError for a network that doesn't read one RGB image, Refused for a size that it can't take.
    """
    if isinstance(network, keras.Sequential) and network._functional is None:
        with refusals():
            network.build((None, image_size, image_size, 3))
    inside = functional(network)
    if inside is None:
        return network
    entry = _entry(network, inside)
    top = _Scope(inside)
    steps = _steps(top)
    flat = all(step.scope.parent is None for step in steps)
    if flat and tuple(entry.shape[1:]) == (image_size, image_size, 3) and entry.dtype == "float32":
        return inside
    _separate(steps)
    pixels = keras.Input((image_size, image_size, 3), name=entry._keras_history.operation.name, dtype="float32")
    made: dict[tuple[int, int], list[Any]] = {}

    def new(scope: _Scope, tensor: Any) -> Any:
        found = _source(scope, tensor)
        return pixels if found is None else made[found.step.key][found.index]

    for step in steps:
        args, kwargs = step.node.arguments.convert(lambda x, step=step: new(step.scope, x) if isinstance(x, keras.KerasTensor) else x)
        with refusals():
            made[step.key] = tree.flatten(step.operation(*args, **kwargs))
    outputs = [new(top, tensor) for tensor in inside.outputs]
    return keras.Model(pixels, outputs[0] if len(outputs) == 1 else tree.pack_sequence_as(inside.output, outputs), name=network.name)


def graph_of(flat: Any) -> Graph:
    """The graph of a network that `flatten` made."""
    steps = _steps(_Scope(flat))
    names = _names(steps)
    calls = tuple(
        Call(s.operation, s.node, names[id(s.operation)], not is_automatic(s.operation), tuple(s.node.input_tensors), tuple(s.node.outputs))
        for s in steps
    )
    return Graph(flat, calls, flat.inputs[0], tuple(flat.outputs))


def named_tensors(network: Any) -> list[NamedTensor]:
    """All tensors of the network's state, each once, in the order of their first use: the same for a network and what `flatten` makes
    of it. Of a network without a graph in the order of its layers."""
    inside = functional(network)
    if inside is None:
        return list(_inside(network, "", owner=None, seen=set()))
    steps = _steps(_Scope(inside))
    names, seen = _names(steps), set[int]()
    return [
        tensor for o in _operations(steps) if isinstance(o, keras.Layer) for tensor in _inside(o, f"{names[id(o)]}/", owner=o, seen=seen)
    ]


def named_variables(network: Any) -> dict[str, Any]:
    """Every variable of the network's state (keras.Variable) by its name: `<layer>/<variable>`, `<layer>/<inner layer>/<variable>`.

    Names that Keras makes (`conv2d_17`) are numbered anew in the network's own order, so they are the same however many layers the
    process made before. The states of random generators and metrics are no part of it.
    """
    return {tensor.name: tensor.variable for tensor in named_tensors(network)}


def is_automatic(operation: Any) -> bool:
    """Whether Keras made the name: the class's, with a number behind."""
    return re.fullmatch(rf"{_snake(type(operation).__name__)}(_\d+)?", operation.name) is not None


# Nested models, expanded


@dataclass(eq=False)
class _Scope:
    """One call of a nested model (or the whole): where its inputs come from. `children` are the calls of models inside it."""

    model: Any
    parent: _Scope | None = None
    feeds: dict[int, Any] = field(default_factory=dict)  # id of an input of the model -> the tensor in the parent
    children: dict[int, _Scope] = field(default_factory=dict)  # by id of the node


@dataclass(frozen=True, eq=False)
class _Step:
    """A node whose operation is no nested model, in its scope."""

    scope: _Scope
    node: Any

    @property
    def operation(self) -> Any:
        return self.node.operation

    @property
    def key(self) -> tuple[int, int]:
        return id(self.scope), id(self.node)


@dataclass(frozen=True, eq=False)
class _Source:
    step: _Step
    index: int  # of the step's outputs


def _source(scope: _Scope, tensor: Any) -> _Source | None:
    """The step that makes a tensor; None for the network's input."""
    while True:
        if scope.parent is not None and id(tensor) in scope.feeds:
            scope, tensor = scope.parent, scope.feeds[id(tensor)]
            continue
        operation, node_index, index = tensor._keras_history
        node = operation._inbound_nodes[node_index]
        if node.is_input:
            return None
        child = scope.children.get(id(node))
        if child is None and (feeds := _feeds(node)) is not None:
            child = scope.children[id(node)] = _Scope(functional(operation), scope, feeds)
        if child is None:
            return _Source(_Step(scope, node), index)
        scope, tensor = child, child.model.outputs[index]


def _feeds(node: Any) -> dict[int, Any] | None:
    """What the inputs of a nested model stand for; None where the node's operation isn't one, or is called in a way that only it knows."""
    operation, args, kwargs = node.operation, node.arguments.args, node.arguments.kwargs
    inside = functional(operation) if isinstance(operation, keras.Model) else None
    if inside is None or len(args) != 1 or any(value is not None for name, value in kwargs.items() if name != "training"):
        return None
    given = args[0]
    names = [tensor._keras_history.operation.name for tensor in inside.inputs]
    flat = [given[name] for name in names] if isinstance(given, dict) and set(names) == set(given) else tree.flatten(given)
    if len(flat) != len(names) or not all(isinstance(x, keras.KerasTensor) for x in flat):
        return None
    masked = any(getattr(x, "_keras_mask", None) is not None for x in flat)
    return None if masked else dict(zip(map(id, inside.inputs), flat, strict=True))


def _steps(top: _Scope) -> list[_Step]:
    """All steps that lead to some output, each after those that it reads; depth first, so that branches come one after the other."""
    done: dict[tuple[int, int], _Step] = {}
    todo = [found.step for tensor in reversed(top.model.outputs) if (found := _source(top, tensor)) is not None]
    while todo:
        step = todo[-1]
        if step.key in done:
            todo.pop()
            continue
        read = [found.step for x in step.node.input_tensors if (found := _source(step.scope, x)) is not None]
        waiting = [other for other in reversed(read) if other.key not in done]
        if waiting:
            todo.extend(waiting)
        else:
            done[step.key] = todo.pop()
    return list(done.values())


def _operations(steps: Iterable[_Step]) -> list[Any]:
    return list({id(step.operation): step.operation for step in steps}.values())


def _entry(network: Any, inside: Any) -> Any:
    """The network's one input; raises UsageError for any other kind of network."""
    if len(inside.inputs) != 1:
        names = ", ".join(tensor._keras_history.operation.name for tensor in inside.inputs)
        raise UsageError(f"'{network.name}' has {len(inside.inputs)} inputs ({names}): only networks that read one image can be used")
    entry = inside.inputs[0]
    shape = tuple(entry.shape)
    if len(shape) != 4 or shape[3] not in (None, 3) or (shape[1] == 3 and shape[3] is None):
        shown = " x ".join("any" if n is None else str(n) for n in shape[1:])
        raise UsageError(f"'{network.name}' reads {shown}: only networks that read RGB images, channels last, can be used")
    return entry


# Names


def _names(steps: Sequence[_Step]) -> dict[int, str]:
    """The name of each operation, by its id."""
    scopes = {id(step.operation): step.scope for step in reversed(steps)}
    operations = _operations(steps)
    chosen = _numbered(operations)
    taken: set[str] = set()
    for nested in (False, True):  # a top-level layer keeps its name, a nested one yields
        for operation in operations:
            scope = scopes[id(operation)]
            if (scope.parent is not None) == nested:
                chosen[id(operation)] = _unused(chosen[id(operation)], taken, prefix=_name_of(scope) if nested else None)
    return chosen


def _numbered(named: Sequence[Any]) -> dict[int, str]:
    """Names with the automatic ones numbered anew, as Keras numbers them in a fresh process."""
    counts: dict[str, int] = {}
    names = {}
    for each in named:
        name = each.name
        if is_automatic(each):
            base = _snake(type(each).__name__)
            number = counts[base] = counts.get(base, -1) + 1
            name = f"{base}_{number}" if number else base
        names[id(each)] = name
    return names


def _unused(name: str, taken: set[str], *, prefix: str | None) -> str:
    if name in taken and prefix is not None:
        name = f"{prefix}_{name}"
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _name_of(scope: _Scope) -> str:
    """A nested model's name, without the number that Keras gives."""
    model = scope.model
    return _snake(type(model).__name__) if is_automatic(model) else str(model.name)


def _separate(steps: Sequence[_Step]) -> None:
    """A Keras model can't hold two operations of one name: where names clash, the layers take those that `_names` has for them.
    An automatic name stays one, so that it is numbered the same afterwards."""
    names, operations = _names(steps), _operations(steps)
    every = [operation.name for operation in operations]
    taken, clashing = set(every), {name for name in every if every.count(name) > 1}
    for operation in operations:
        if operation.name not in clashing:
            continue
        name, number = names[id(operation)], len(every)
        if is_automatic(operation):
            while (name := f"{_snake(type(operation).__name__)}_{number}") in taken:
                number += 1
        operation.name = name
        taken.add(name)


def _inside(layer: Any, prefix: str, *, owner: Any, seen: set[int]) -> Iterator[NamedTensor]:
    """A layer's own variables, then those of the layers inside it."""
    taken: set[str] = set()
    parameters = {id(variable) for variable in layer._trainable_variables}
    own = [v for v in [*layer._trainable_variables, *layer._non_trainable_variables] if id(v) not in seen]
    for variable in own:
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        automatic = re.fullmatch(r"variable(_\d+)?", variable.name) is not None
        name = _unused("variable" if automatic else variable.name.replace("/", "_"), taken, prefix=None)
        yield NamedTensor(f"{prefix}{name}", variable, "parameter" if id(variable) in parameters else "buffer", owner, is_norm(layer))
    layers = [inner for inner in layer._layers if isinstance(inner, keras.Layer)]
    names = _numbered(layers)
    for inner in layers:
        name = _unused(names[id(inner)], taken, prefix=None)
        yield from _inside(inner, f"{prefix}{name}/", owner=inner if owner is None else owner, seen=seen)


def _snake(name: str) -> str:
    """How Keras writes a class's name.

    >>> _snake("BatchNormalization"), _snake("Conv2D"), _snake("ReLU")
    ('batch_normalization', 'conv2d', 're_lu')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
