"""A Keras model of one's own, from the file that Keras saved it in. Nothing in a file is run: code in it is refused."""

from __future__ import annotations

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
from xfer.sources.keras_description import description
from xfer.sources.model_paths import ANY_SIZE, OWN, PLACE, PathSource
from xfer.sources.source import Tag

CODE = {"__lambda__": "a lambda, Python code that lies in the file", "TFSMLayer": "a SavedModel, a program that lies elsewhere"}
# What may stand before a network's first layer without preparing its input; GetItem and Stack turn RGB into BGR.
PASSED = re.compile(
    r"InputLayer|Random\w+|Resizing|CenterCrop|ZeroPadding2D|Identity|Dropout|GaussianNoise|AutoContrast|AugMix|\w*Augment|GetItem|Stack|Cast"
)
PREPARES = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add")
UNKNOWN = re.compile(r"(?:Could not locate (?:class|function) |Unknown (?:layer|object|Keras \w+): )'?([\w>.]+)'?")
OPERATIONS = ("TFOpLambda", "SlicingOpLambda")  # how Keras 2 wrote `x / 255` between layers; Keras 3 has no such classes
SELF_MADE = (
    "register the class with @keras.saving.register_keras_serializable() in a file beside the recipe, which says "
    "xfer_plugins = {} too, and name the file in the recipe, plugins: [./layers.py], or after xfer layers: --plugin layers.py"
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
        """No file says what its network expects: 0..255 where it reads whole numbers or begins with a layer that prepares its input,
        else 0..1."""
        size, prepares = _told(self.located(name), self.stamp(name))
        return Preprocess(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0 if prepares else 255.0)


@cache
def _told(path: str, stamp: str) -> tuple[int, bool]:
    """The side in pixels, and whether the network takes pixels as they are, of one state of a file."""
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
    """Whether the network reads whole numbers, or the first thing that it does is to bring pixels into a range."""
    if any("int" in tensor.dtype for tensor in getattr(network, "inputs", None) or ()):
        return True
    first = next((kind for kind in _kinds(network) if not PASSED.fullmatch(kind)), None)
    return first in PREPARES


def _kinds(network: Any) -> Iterator[str]:
    """The classes of a network's operations in their order, those of nested models in the model's place."""
    for operation in getattr(network, "operations", None) or getattr(network, "layers", []):
        if getattr(operation, "layers", None):
            yield from _kinds(operation)
        else:
            yield type(operation).__name__


def _loaded(file: Path) -> Any:
    """The model, uncompiled; raises WeightsError that says what the file is instead, or what in it is refused."""
    _check(file)
    keras = keras_library.keras()
    try:
        own = {} if file.suffix == ".keras" else _of_applications()
        network = keras.models.load_model(file, compile=False, safe_mode=True, custom_objects=own)
    except arrays.DAMAGE as error:
        unknown = UNKNOWN.search(str(error))
        if unknown is not None:
            name = unknown[1].rpartition(">")[2]
            if name in OPERATIONS:
                raise WeightsError(
                    f"{file} can't be loaded: Keras 2 wrote operations of TensorFlow into it ('{name}'), which Keras 3 does not read",
                    path=PLACE,
                    hint="its weights can be read: name the network that they are of, and the file as its weights: "
                    f"source.model: keras/NAME, source.weights: {file}, or {{path: {file}, part: NAME}} for a model inside it",
                ) from None
            raise WeightsError(f"{file} can't be loaded: Keras does not know its '{name}'", path=PLACE, hint=SELF_MADE) from None
        raise WeightsError(f"{file} can't be loaded as a Keras model: {arrays.reason(error)}", path=PLACE) from None
    return network


def _of_applications() -> dict[str, Any]:
    """Layers that keras.applications has for itself: HDF5 files say no more of them than the class's name, and Keras looks elsewhere."""
    from keras.src.applications import convnext, inception_resnet_v2

    kinds = (convnext.LayerScale, convnext.StochasticDepth, inception_resnet_v2.CustomScaleLayer)
    return {kind.__name__: kind for kind in kinds}


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
    for name in _code(description(file)):
        raise WeightsError(
            f"{file} is refused: it holds {CODE[name]}; nothing of it was run",
            path=PLACE,
            hint="where the model was made, put a class in its place that is registered with "
            "@keras.saving.register_keras_serializable(), and save it again",
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
