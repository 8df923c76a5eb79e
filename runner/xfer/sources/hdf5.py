"""Keras's HDF5 files as named arrays, read with h5py alone: nothing in them is made into an object.

There are two kinds. The older one (`.h5` of whole models, and of weights alone) has a group for each top-level layer, with the
names of its tensors in the order that Keras loads them in. The newer one (`.weights.h5`, and within `.keras`) has a place for
each layer by its kind and number (`layers/conv2d_1/vars/0`), and beside it the layer's name.
"""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xfer.errors import MissingExtraError, WeightsError
from xfer.sources import arrays
from xfer.sources.keras_library import EXTRA

INSIDE = "model.weights.h5"  # what a .keras archive holds
DEPENDENCIES = "_layer_checkpoint_dependencies"  # what Keras 2.13 called `layers`
NOT_THE_NETWORKS = ("optimizer", "metrics", "_metrics", "_loss_tracker", "_compile_metrics")  # attributes beside a model's layers
MODELS = ("Functional", "Sequential", "Model")
# A file whose datasets say that they are this much larger than it is wants memory, not to be read.
MOST_EXPANSION, ROOM_BYTES = 100, 1 << 26


@dataclass
class Stored:
    """`tensors` by name, `layer/variable`, with the names of nested models before it; in the newer kind with an index in the
    variable's place, and in no order. `tops` is for the older kind the names by top-level layer and by the layers within it, each
    under its path; `places` for the newer one where each tensor lies, `models` where each layer does."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    tops: list[dict[str, list[str]]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


def read(file: Path) -> Stored:
    """The tensors of an HDF5 file, or of the one in a `.keras` archive; raises WeightsError, or MissingExtraError without h5py."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(f"{file} is an HDF5 file, and h5py is not installed", hint=EXTRA) from None

    try:
        content = _unpacked(file)
        with h5py.File(file if content is None else h5py.h5f.open_file_image(content), "r") as root:
            _check_size(root, file.stat().st_size if content is None else len(content), file)
            if _lists(root, "layer_names"):
                return _older(root, None, file)
            if "model_weights" in root:
                return _older(_member(root, "model_weights", file), root.attrs.get("model_config"), file)
            return _newer(root, file)
    except arrays.DAMAGE as error:
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as HDF5 ({arrays.reason(error)})") from None


def _unpacked(file: Path) -> bytes | None:
    """The HDF5 file in a `.keras` archive; None for one that stands alone."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        size = archive.getinfo(INSIDE).file_size
        if size > MOST_EXPANSION * file.stat().st_size + ROOM_BYTES:
            raise WeightsError(f"{file} is refused: its {INSIDE} would unpack to {size} bytes")
        return archive.read(INSIDE)


def _check_size(root: Any, size: int, file: Path) -> None:
    """Refuse what leads out of the file, and datasets that are far larger than the file they lie in."""
    import h5py

    total = 0

    def seen(name: str, link: Any) -> str | None:  # h5py does not let an error out of here: what is returned ends the visit
        nonlocal total
        if not isinstance(link, h5py.HardLink):
            return f"its '{name}' lies in another place; only tensors of the file itself are read"
        entry = root[name]
        if isinstance(entry, h5py.Dataset):
            if entry.external or entry.is_virtual:
                return f"its '{name}' lies in another file; only tensors of the file itself are read"
            total += prod(entry.shape or ()) * entry.dtype.itemsize
        return None

    refusal = root.visititems_links(seen)
    if refusal is None and total > MOST_EXPANSION * size + ROOM_BYTES:
        refusal = f"it has {size} bytes and says that its tensors have {total}"
    if refusal is not None:
        raise WeightsError(f"{file} is refused: {refusal}")


def _member(group: Any, name: str, file: Path) -> Any:
    try:
        return group[name]
    except KeyError:
        raise WeightsError(f"{file} is damaged: it lists '{name}', which it does not hold") from None


def _lists(group: Any, name: str) -> list[str]:
    """An attribute that is a list of names; a long one is cut up and numbered."""
    numbered = [f"{name}{number}" for number in range(len(group.attrs))]
    parts = [name] if name in group.attrs else list(itertools.takewhile(lambda part: part in group.attrs, numbered))
    return [entry.decode() if isinstance(entry, bytes) else str(entry) for part in parts for entry in group.attrs[part]]


def _values(dataset: Any, name: str, file: Path) -> np.ndarray:
    if dataset.dtype.kind == "V" and dataset.attrs.get("dtype") == "bfloat16":
        return arrays.from_bfloat16(np.asarray(dataset[()]).view(np.uint16))
    if dataset.dtype.kind not in arrays.NUMBER_KINDS:
        raise WeightsError(f"{file}: '{name}' is an array of {dataset.dtype}, not of numbers")
    return np.asarray(dataset[()])


# the older kind


def _older(group: Any, config: Any, file: Path) -> Stored:
    stored, nested = Stored(), _nested(config)
    for top in _lists(group, "layer_names"):
        layer = _member(group, top, file)
        listed = _lists(layer, "weight_names")
        if not listed:
            continue
        whole = [re.sub(r":\d+$", "", name) for name in listed]
        parents = list(dict.fromkeys(name.rpartition("/")[0] for name in whole))
        is_model = top in nested if config is not None else len(parents) > 1 and not all(name.startswith(f"{top}/") for name in whole)
        place = {name: index for index, name in enumerate(nested.get(top, []))}
        sublayers: dict[str, list[str]] = {}
        values = {}
        for written, name in zip(listed, whole, strict=True):
            own = f"{top}/{name}" if is_model else name if name.startswith(f"{top}/") else f"{top}/{name.rpartition('/')[2]}"
            values[own] = _values(_member(layer, written, file), own, file)
            sublayers.setdefault(name.split("/")[0] if is_model else "", []).append(own)
        ordered = sorted(sublayers, key=lambda name: place.get(name, len(place)))
        stored.tops.append({f"{top}/{name}" if is_model else top: sublayers[name] for name in ordered})
        stored.tensors.update({own: values[own] for name in ordered for own in sublayers[name]})
    return stored


def _nested(config: Any) -> dict[str, list[str]]:
    """Names of the layers in each top-level layer that is a model, in the model's order, from a whole model's description."""
    try:
        layers = json.loads(config)["config"]["layers"] if config is not None else []
        return {str(layer["config"]["name"]): _inner(layer) for layer in layers if layer.get("class_name") in MODELS}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _inner(model: Any) -> list[str]:
    names = []
    for layer in model["config"].get("layers", []):
        names += _inner(layer) if layer.get("class_name") in MODELS else [str(layer["config"]["name"])]
    return names


# the newer kind


def _newer(root: Any, file: Path) -> Stored:
    stored = Stored()
    for place, index, dataset in _datasets(root):
        names = _names(root, place)
        name = "/".join([*names, index])
        if name in stored.tensors:  # two layers of one name, which Keras allows within a layer of one's own
            name = f"{place}/{index}"
        stored.tensors[name] = _values(dataset, name, file)
        shown = place.replace(DEPENDENCIES, "layers")
        stored.places[name] = f"{shown}/vars/{index}"
        parts = place.split("/")
        for depth in range(1, len(parts) + 1):
            above = "/".join(parts[:depth])
            stored.models.setdefault("/".join(_names(root, above)), above.replace(DEPENDENCIES, "layers"))
    if not stored.tensors:
        raise WeightsError(f"{file} is an HDF5 file without a network's tensors in it, as Keras saves them")
    return stored


def _datasets(root: Any) -> Iterator[tuple[str, str, Any]]:
    """(place, index, dataset) of each tensor of the network."""
    import h5py

    names: list[str] = []
    root.visit(names.append)
    for name in names:
        place, _, index = name.rpartition("/vars/")
        parts = place.split("/")
        if place and isinstance(root[name], h5py.Dataset) and parts[0] not in NOT_THE_NETWORKS and "seed_generator" not in parts:
            yield place, index, root[name]


def _names(root: Any, place: str) -> list[str]:
    """The names of a layer and of those that it lies in; where older files have none, the parts of its place."""
    parts, names = place.split("/"), []
    for depth in range(1, len(parts) + 1):
        own = root["/".join(parts[:depth])].get("vars")
        told = own.attrs.get("name") if own is not None else None
        if isinstance(told, (str, bytes)):
            names.append(told.decode() if isinstance(told, bytes) else told)
    return names or parts
