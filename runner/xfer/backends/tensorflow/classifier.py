"""Where a network's pooled features are: the input of its own last classifying layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xfer.backends.tensorflow.graph import Call, Graph
from xfer.backends.tensorflow.layers import is_dropout, is_linear, rectifies

_SCORES = {"softmax", "log_softmax", "logsoftmax", "sigmoid"}


@dataclass(frozen=True)
class Pooled:
    """`tensor` holds the features (not yet averaged where spatial); `classifiers` are the calls of the network's own classifying
    layers, none for a network without one; `notes` say what a person should know about the choice."""

    tensor: Any
    classifiers: tuple[Call, ...] = ()
    notes: tuple[str, ...] = ()


def find_pooled(graph: Graph) -> Pooled:
    """Walks back from the (first) output over everything without weights. Where each way ends at a linear layer or a 1x1
    convolution, those classify; otherwise the network has no classifier and its output is the features. A layer that ends in a
    rectifier and no softmax gives features, not scores."""
    makers = {id(tensor): call for call in graph.calls for tensor in call.gives}
    output, notes = graph.outputs[0], []
    if len(graph.outputs) > 1:
        names = [makers[id(tensor)].name if id(tensor) in makers else "the images" for tensor in graph.outputs]
        notes.append(f"it has several outputs ({', '.join(names)}): the first, {names[0]}, is taken")
    found = _classifiers(output, makers)
    if not found:
        return Pooled(_before_dropout(output, makers), (), tuple(notes))
    order = {id(call): index for index, call in enumerate(graph.calls)}
    found.sort(key=lambda call: order[id(call)])
    chosen = max(found, key=lambda call: (_depth(call, makers), call.operation.kernel.shape[-2], -order[id(call)]))
    if len(found) > 1:
        names = [call.name for call in found]
        notes.append(f"it has several classifying layers ({', '.join(names)}): the features are those that {chosen.name} reads")
    return Pooled(_before_dropout(chosen.reads[0], makers), tuple(found), tuple(notes))


def ancestors(tensor: Any, makers: dict[int, Call]) -> set[int]:
    """Ids of the calls that a tensor is computed by."""
    found: set[int] = set()
    todo = [tensor]
    while todo:
        call = makers.get(id(todo.pop()))
        if call is not None and id(call) not in found:
            found.add(id(call))
            todo.extend(call.reads)
    return found


def has_weights(call: Call) -> bool:
    return bool(getattr(call.operation, "weights", ()))


def _classifiers(output: Any, makers: dict[int, Call]) -> list[Call]:
    found: dict[int, Call] = {}
    seen: set[tuple[int, bool]] = set()
    todo = [(output, False)]  # a tensor, and whether scores are made of it
    while todo:
        tensor, scores = todo.pop()
        call = makers.get(id(tensor))
        if call is None:
            return []
        if (id(call), scores) in seen:
            continue
        seen.add((id(call), scores))
        scores = scores or _gives_scores(call.operation)
        hidden = rectifies(call.operation) and not scores
        if is_linear(call.operation) and not hidden:
            found[id(call)] = call
        elif has_weights(call) or hidden:
            return []
        else:
            todo.extend((read, scores) for read in call.reads)
    # Several classify only side by side: one that reads what another gives is part of a residual block.
    beneath = {key for call in found.values() for read in call.reads for key in ancestors(read, makers)}
    return [] if beneath & set(found) else list(found.values())


def _gives_scores(operation: Any) -> bool:
    function = getattr(operation, "activation", None)
    name = getattr(function, "__name__", "") if function is not None else type(operation).__name__
    return str(name).lower() in _SCORES


def _before_dropout(tensor: Any, makers: dict[int, Call]) -> Any:
    """The new head brings its own dropout."""
    while (call := makers.get(id(tensor))) is not None and is_dropout(call.operation):
        tensor = call.reads[0]
    return tensor


def _depth(call: Call, makers: dict[int, Call]) -> int:
    """How many layers with weights lie below: a classifier on an early level has fewer than the last one."""
    below = ancestors(call.reads[0], makers)
    return sum(has_weights(other) for other in {id(c): c for c in makers.values()}.values() if id(other) in below)
