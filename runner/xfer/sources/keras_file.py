"""A Keras model of one's own, from the file that Keras saved it in. Nothing in a file is run: code in it is refused."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from xfer.errors import WeightsError
from xfer.plan.preprocess import Preprocess
from xfer.sources import arrays, keras_library
from xfer.sources.formats import identify
from xfer.sources.hdf5 import MOST_EXPANSION, ROOM_BYTES
from xfer.sources.model_paths import ANY_SIZE, OWN, PLACE, PathSource
from xfer.sources.source import Tag

CODE = {"__lambda__": "a lambda, Python code that lies in the file", "TFSMLayer": "a SavedModel, a program that lies elsewhere"}
# What may stand before a network's first layer without preparing its input.
PASSED = re.compile(r"InputLayer|Random\w+|Resizing|CenterCrop|ZeroPadding2D|Identity|Dropout|GaussianNoise|AutoContrast|AugMix|\w*Augment")
PREPARES = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add")
UNKNOWN = re.compile(r"(?:Could not locate (?:class|function) |Unknown (?:layer|object|Keras \w+): )'?([\w>.]+)'?")
SELF_MADE = (
    "register the class with @keras.saving.register_keras_serializable() in a file beside the recipe, which says "
    "xfer_plugins = {} too, and name the file in the recipe: plugins: [./layers.py]"
)


class KerasFileSource(PathSource):
    """`file:PATH`: a whole model that Keras saved (`.keras`, `.h5`), with the weights in it or without."""

    provider = "file"

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network as it was saved; without `pretrained` the same with fresh weights."""
        network = _loaded(Path(self.located(name)))
        if pretrained:
            return network
        keras = keras_library.keras()
        try:
            return keras.models.clone_model(network)
        except (ValueError, TypeError, NotImplementedError):
            return type(network).from_config(network.get_config())  # a class of one's own

    def input_size(self, name: str) -> int:
        """The side in pixels that the model was built for; 224 where it takes any."""
        return _told(self.located(name), self.stamp(name))[0]

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """The weights in the file; raises WeightsError for any other tag."""
        if tag not in ("DEFAULT", OWN):
            raise WeightsError(
                f"{self.provider}:{name} brings its own weights, so there is no tag '{tag}'; leave source.weights out, give a path to a "
                "weight file, or 'none' for random weights"
            )
        return Tag(OWN, None, self.located(name))

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """No file says what its network expects: 0..255 where it begins with a layer that prepares its input, else 0..1."""
        size, prepares = _told(self.located(name), self.stamp(name))
        return Preprocess(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0 if prepares else 255.0)


@cache
def _told(path: str, stamp: str) -> tuple[int, bool]:
    """The side in pixels, and whether the network prepares its input itself, of one state of a file."""
    file = Path(path)
    network = _loaded(file)
    shape = _input_shape(network)
    if shape is None:
        return ANY_SIZE, _prepares(network)
    if len(shape) != 4 or shape[3] not in (None, 3) or shape[1] != shape[2]:
        read = " x ".join("any" if n is None else str(n) for n in shape[1:])
        raise WeightsError(f"{file} can't be used: its model reads {read}, not square RGB images (side x side x 3)", path=PLACE)
    return int(shape[1] or ANY_SIZE), _prepares(network)


def _input_shape(network: Any) -> tuple[int | None, ...] | None:
    """(None, side, side, 3) as a rule; None where a class of one's own does not say it. Raises WeightsError for several inputs."""
    inputs = getattr(network, "inputs", None)
    if not inputs:
        shape = (network.get_build_config() or {}).get("input_shape")
        return tuple(shape) if isinstance(shape, (list, tuple)) and all(n is None or isinstance(n, int) for n in shape) else None
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise WeightsError(f"'{network.name}' can't be used: it has {len(inputs)} inputs ({names}), not one image", path=PLACE)
    return tuple(inputs[0].shape)


def _prepares(network: Any) -> bool:
    """Whether the first thing that the network does is to bring pixels into a range."""
    for operation in getattr(network, "operations", None) or getattr(network, "layers", []):
        if getattr(operation, "layers", None):
            return _prepares(operation)
        kind = type(operation).__name__
        if not PASSED.fullmatch(kind):
            return kind in PREPARES
    return False


def _loaded(file: Path) -> Any:
    """The model, uncompiled; raises WeightsError that says what the file is instead, or what in it is refused."""
    _check(file)
    keras = keras_library.keras()
    try:
        network = keras.models.load_model(file, compile=False, safe_mode=True)
    except arrays.DAMAGE as error:
        unknown = UNKNOWN.search(str(error))
        if unknown is not None:
            name = unknown[1].rpartition(">")[2]
            raise WeightsError(f"{file} can't be loaded: Keras does not know its '{name}'", path=PLACE, hint=SELF_MADE) from None
        raise WeightsError(f"{file} can't be loaded as a Keras model: {arrays.reason(error)}", path=PLACE) from None
    return network


def _check(file: Path) -> None:
    """What can be told without Keras: that it is a whole model, under the ending that its format has, and that no code lies in it."""
    if file.is_dir():
        what = f"a SavedModel: name it savedmodel:{file}" if (file / "saved_model.pb").exists() else "a folder, not a model file"
        raise WeightsError(f"{file} is {what}", path=PLACE)
    try:
        kind = identify(file, "tensorflow")
    except WeightsError as error:
        raise WeightsError(error.message, path=PLACE, hint=error.hint) from None
    if kind != "keras":
        named = {"torch": "torch's weights", "safetensors": "weights in safetensors"}.get(kind, "arrays")
        hint = f"name a model, and the file as its weights: source.weights: {file}"
        raise WeightsError(f"{file} holds {named}, not a Keras model", path=PLACE, hint=hint)
    is_archive = zipfile.is_zipfile(file)
    endings = (".keras",) if is_archive else (".h5", ".hdf5")
    if file.suffix not in endings:
        what = "a .keras archive" if is_archive else "an HDF5 file"
        raise WeightsError(f"{file} is {what}, and Keras goes by the ending: rename it to {file.stem}{endings[0]}", path=PLACE)
    for name in _code(_description(file, is_archive=is_archive)):
        raise WeightsError(
            f"{file} is refused: it holds {CODE[name]}; nothing of it was run",
            path=PLACE,
            hint="where the model was made, put a class in its place that is registered with "
            "@keras.saving.register_keras_serializable(), and save it again",
        )


def _description(file: Path, *, is_archive: bool) -> Any:
    """The JSON that Keras would make the model from; raises WeightsError for weights without a model."""
    import h5py

    try:
        if is_archive:
            with zipfile.ZipFile(file) as archive:
                if archive.getinfo("config.json").file_size > MOST_EXPANSION * file.stat().st_size + ROOM_BYTES:
                    raise WeightsError(f"{file} is refused: its config.json is far larger than the archive", path=PLACE)
                return json.loads(archive.read("config.json"))
        with h5py.File(file, "r") as root:
            if "model_config" in root.attrs:
                return json.loads(root.attrs["model_config"])
    except arrays.DAMAGE as error:
        reason = arrays.reason(error)
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as a Keras model ({reason})", path=PLACE) from None
    raise WeightsError(
        f"{file} holds weights alone, not a model",
        path=PLACE,
        hint=f"name the model that they are of, and the file as its weights: source.model: keras/NAME, source.weights: {file}",
    )


def _code(description: Any) -> Iterator[str]:
    """Each kind of code in a description: lambdas as the older and the newer files write them, and SavedModels."""
    if isinstance(description, dict):
        kind, config = description.get("class_name"), description.get("config")
        if kind in CODE:
            yield str(kind)
        elif kind == "Lambda" and isinstance(config, dict) and isinstance(config.get("function"), list):
            yield "__lambda__"
        for value in description.values():
            yield from _code(value)
    elif isinstance(description, list):
        for value in description:
            yield from _code(value)
