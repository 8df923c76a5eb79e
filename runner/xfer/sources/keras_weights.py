"""A weight file put into a Keras network, whatever wrote the file: complete and checked, or an error that lists what does not fit.

Only arrays are read. Keras's own files are matched by the names that persons gave to layers, else as Keras itself does it: by the
order of layers in the older files, by the place in the network in the newer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xfer.errors import WeightsError
from xfer.plan.model_map import ModelMap
from xfer.plan.plan import SourcePlan
from xfer.sources import arrays, hdf5, keras_structure, torch_process
from xfer.sources.alignment import MOST_CLASSIFIER
from xfer.sources.fitting import Wanted, fit, unknown_part
from xfer.sources.formats import Format, identify
from xfer.sources.hdf5 import Stored
from xfer.sources.keras_structure import Layer, Place
from xfer.sources.safetensors import read_safetensors
from xfer.sources.weights import leaves, without_added

Pairs = dict[str, str]  # the file's name for each of ours


def put(network: Any, variables: Mapping[str, Any], source: SourcePlan, *, model_map: ModelMap) -> None:
    """Load the weights that a source names into a network. `network` is what the provider built, `variables` are its variables
    (keras.Variable) by our names, those of `model_map` among them. Raises WeightsError, and MissingExtraError for a torch file
    where torch is not installed; then nothing has been put in."""
    found = load(network, variables, source, model_map=model_map)
    for name, value in found.items():
        variables[name].assign(value)
    for layer in network._flatten_layers():
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # Normalization computes with constants that it makes from its variables


def load(network: Any, variables: Mapping[str, Any], source: SourcePlan, *, model_map: ModelMap) -> dict[str, np.ndarray]:
    """The tensors that `put` puts in, by our names: float32 where they are real numbers."""
    weights = source.weights
    assert weights.file is not None
    file = Path(weights.file)
    kind = identify(file, "tensorflow")
    names = {id(variable): name for name, variable in variables.items()}
    wanted = Wanted.of(model_map, None)
    parameters = [name for name, tensor in {**wanted.required, **wanted.classifier}.items() if tensor.kind == "parameter"]
    tops = keras_structure.tops(network, names, parameters)
    if kind == "keras":
        stored = hdf5.read(file) if weights.part is None else _part(hdf5.read(file), weights.part, weights.file)
        if weights.match == "name" or stored.places:  # the newer files have no order: they are matched by places
            chosen = _keras(stored, network, names, tops, wanted, match=weights.match, origin=weights.file)
            return fit(chosen, model_map=model_map, origin=weights.file)
        tensors: dict[str, Any] = stored.tensors
    else:
        tensors = _read_arrays(file, kind)
    if weights.kind == "bundle":
        tensors = without_added(tensors, variables)
    order = list(dict.fromkeys([*(name for top in tops for layer in top for name in layer.tensors), *variables]))
    part = weights.part if kind != "keras" else None
    return fit(tensors, model_map=model_map, match=weights.match, part=part, order=order, origin=weights.file)


def _read_arrays(file: Path, kind: Format) -> dict[str, np.ndarray]:
    """All tensors of a file that is not Keras's, by name and in the file's order. Torch's are read by a process of their own."""
    if kind == "torch":
        return torch_process.read(file)
    if kind == "safetensors":
        content: Any = read_safetensors(file)
    else:
        content = arrays.read_archive(file) if kind == "numpy archive" else arrays.read_pickle(file)
    return {name: arrays.checked(value, name, file) for name, value in leaves(content, file).items()}


def _keras(
    stored: Stored,
    network: Any,
    names: Mapping[int, str],
    tops: list[list[Layer]],
    wanted: Wanted,
    *,
    match: Literal["name", "order"],
    origin: str,
) -> dict[str, np.ndarray]:
    """The tensors of a file of Keras's by our names where they have a place in the network, the others by their own."""
    places = keras_structure.places(network, names) if stored.places else []
    named = _by_name(stored, tops, places)
    is_named = match == "name" and all(layer.is_named for top in tops for layer in top)
    if is_named and _is_complete(named, stored, wanted):
        return _chosen(named, stored)
    ordered, reason = (_by_place(stored, places), "") if stored.places else _by_order(stored, tops, wanted)
    if _is_complete(ordered, stored, wanted):
        return _chosen(ordered, stored)
    if not is_named and reason and not _lies_deeper(stored, wanted):
        raise WeightsError(f"{origin} does not fit {wanted.model} by the order of its layers: {reason}")
    best = named if is_named or len(named) >= len(ordered) else ordered
    ours = {theirs: name for name, theirs in best.items()}
    return {ours.get(name, name): tensor for name, tensor in stored.tensors.items()}


def _chosen(pairs: Pairs, stored: Stored) -> dict[str, np.ndarray]:
    """What was paired, by our names, without the classifier that a network was built without: in the older files what comes after
    all else, in the newer ones whole layers with few tensors."""
    ours = {theirs: name for name, theirs in pairs.items()}
    others = [name for name in stored.tensors if name not in ours]
    if stored.places:
        layers = {name.rpartition("/")[0] for name in ours}
        is_classifier = len(others) <= MOST_CLASSIFIER and not any(name.rpartition("/")[0] in layers for name in others)
        left_out = set(others) if is_classifier else set()
    else:
        last = max((index for index, name in enumerate(stored.tensors) if name in ours), default=-1)
        left_out = set(list(stored.tensors)[last + 1 :])
    return {ours.get(name, name): tensor for name, tensor in stored.tensors.items() if name not in left_out}


def _is_complete(pairs: Pairs, stored: Stored, wanted: Wanted) -> bool:
    return all(name in pairs and stored.tensors[pairs[name]].shape == tensor.shape for name, tensor in wanted.required.items())


def _lies_deeper(stored: Stored, wanted: Wanted) -> bool:
    """Whether the network's own names stand behind a nested model's in the file: `part` is what is missing."""
    return any(name.partition("/")[2] in wanted.required for name in stored.tensors)


def _by_name(stored: Stored, tops: list[list[Layer]], places: list[Place]) -> Pairs:
    """Layers of the same name, with or without the nested models that they lie in; within a layer by the variable's name, or by
    position."""
    pairs: Pairs = {}
    for place in places:
        found = next((name for name in _shorter(place.named) if name in stored.tensors), None)
        if found is not None:
            pairs[place.tensor] = found
    theirs = {path: names for top in stored.tops for path, names in top.items()}
    for layer in (layer for top in tops for layer in top):
        listed = next((theirs[path] for path in _shorter(layer.path) if path in theirs), [])
        pairs.update(_within(layer, listed))
    return pairs


def _shorter(path: str) -> list[str]:
    """A name with all of the models that it lies in, with one fewer, and so on.

    >>> _shorter("base/Conv1/0")
    ['base/Conv1/0', 'Conv1/0', '0']
    """
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _within(layer: Layer, theirs: list[str]) -> Pairs:
    """One layer's tensors: by the variables' names where these are all the same, else by position where the counts agree."""
    leaf = {name.rpartition("/")[2]: name for name in theirs}
    if len(leaf) == len(theirs) and all(name.rpartition("/")[2] in leaf for name in layer.tensors):
        return {name: leaf[name.rpartition("/")[2]] for name in layer.tensors}
    return dict(zip(layer.tensors, theirs, strict=True)) if len(theirs) == len(layer.tensors) else {}


def _by_place(stored: Stored, places: list[Place]) -> Pairs:
    """As Keras 3 loads its own files."""
    there = {place: name for name, place in stored.places.items()}
    return {place.tensor: there[place.place] for place in places if place.place in there}


def _by_order(stored: Stored, tops: list[list[Layer]], wanted: Wanted) -> tuple[Pairs, str]:
    """As Keras loads its older files: the first top-level layer with tensors into the network's first, and so on; within a nested
    model the same. Where they part, the pairs are those until there, and the reason is told."""
    pairs: Pairs = {}
    for top, theirs in zip(tops, stored.tops, strict=False):
        if len(top) != len(theirs):
            first = next(iter(theirs))
            return pairs, f"'{first}' stands where '{top[0].path}' is expected, with {len(theirs)} layers in it instead of {len(top)}"
        for layer, (path, names) in zip(top, theirs.items(), strict=True):
            found = _within(layer, names)
            if not found:
                return pairs, f"'{path}' has {len(names)} tensors where '{layer.path}' must have {len(layer.tensors)}"
            for own, name in found.items():
                if own in wanted.required and stored.tensors[name].shape != wanted.required[own].shape:
                    shape, must = list(stored.tensors[name].shape), list(wanted.required[own].shape)
                    return pairs, f"'{name}' is {shape} where '{own}' must be {must}"
            pairs.update(found)
    return pairs, f"it has {len(stored.tops)} layers with tensors, the network {len(tops)}"


def _part(stored: Stored, part: str, origin: str) -> Stored:
    """What lies in one nested model or layer, by the names that it has there."""
    whole = part.strip("/")
    if whole not in stored.models and whole in stored.models.values():  # by its place: layers/functional
        whole = next(name for name, place in stored.models.items() if place == whole)
    prefix, root = f"{whole}/", f"{stored.models.get(whole, '')}/"
    kept = {name.removeprefix(prefix): name for name in stored.tensors if name.startswith(prefix)}
    if not kept:
        raise unknown_part(list(stored.tensors), part, origin, separators="/")
    listed = [(path, names) for top in stored.tops for path, names in top.items() if path.startswith(prefix)]
    return Stored(
        tensors={short: stored.tensors[name] for short, name in kept.items()},
        tops=[{path.removeprefix(prefix): [name.removeprefix(prefix) for name in names]} for path, names in listed],
        places={short: stored.places[name].removeprefix(root) for short, name in kept.items() if name in stored.places},
    )
