"""The image classifiers of keras.applications."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from xfer.data.keras_files import keras_home
from xfer.errors import UsageError
from xfer.plan.preprocess import Preprocess
from xfer.plugins import nearest
from xfer.sources import keras_library, keras_own
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

_PATCHING = threading.RLock()  # Keras is asked what it would do by putting other functions in the place of its own
_WRITTEN_IN = "keras.src.applications."
OPEN_SIZE = 224  # of a network that Keras builds for no size in particular


class _AskedError(Exception):
    """Ends a builder as soon as it has told its native size."""


class KerasSource:
    """`keras/NAME`: the image classifiers of `keras.applications`, by the names of their functions (`keras/MobileNetV2`)."""

    backend = "tensorflow"
    provider = "keras"

    def library(self) -> str:
        """'keras 3.15.1', without importing it; raises MissingExtraError."""
        return keras_library.library()

    def models(self) -> list[str]:
        """All model names, sorted: what keras.applications gives from its modules, read from its text, because importing it
        takes seconds and must not come before an import of torchvision."""
        self.library()
        return list(_names())

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network without its classifier, for `image_size` (else the native one). Some families are built differently for
        Keras's own weights: then as Keras builds them, but with no weights put in. Layers have the same names in every process."""
        self._known(name)
        weights = _offered(name) if pretrained else None
        return _built(name, weights, image_size or _native_size(name))[0]

    def input_size(self, name: str) -> int:
        """The native side in pixels: what the function takes when nobody tells it a size."""
        self._known(name)
        return _native_size(name)

    def tags(self, name: str) -> list[str]:
        """The weights that Keras offers for a model: 'imagenet'."""
        self._known(name)
        offered = _offered(name)
        return [offered] if offered else []

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """One of them, by its name or as 'DEFAULT'. Which file it is may depend on the size, as it does in Keras (MobileNet)."""
        tags = self.tags(name)
        if not tags or tag not in ("DEFAULT", *tags):
            raise unknown_tag(self.provider, name, tag, tags)
        return _place(name, tags[0], image_size or _native_size(name), keras_home())

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the family's own `preprocess_input` does, told from what it makes of pixels; the whole frame's central square."""
        size = self.input_size(name)
        if tag is not None and tag not in self.tags(name):
            raise unknown_tag(self.provider, name, tag, self.tags(name))
        return _probed(name).model_copy(update={"resize": size, "crop": size})

    def is_for_own(self, name: str, file: Path, part: str | None) -> bool:
        """See `keras_own`: EfficientNet is built differently for Keras's own weights."""
        return keras_own.is_for_own(name, file, part)

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """As they are: Keras's files are fitted by layers (see keras_weights)."""
        return tensors

    def _known(self, name: str) -> None:
        if name not in (names := self.models()):
            guess = nearest(name, names)
            more = f"; did you mean '{guess}'?" if guess else ""
            raise UsageError(f"keras has no application '{name}'{more}", hint="xfer list models shows all names")


@cache
def _names() -> tuple[str, ...]:
    """What `keras/applications/__init__.py` takes from modules of models: their functions."""
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "applications" / "__init__.py").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_WRITTEN_IN)]
    return tuple(sorted(alias.asname or alias.name for node in imports for alias in node.names))


def _function(name: str) -> Callable[..., Any]:
    return getattr(keras_library.keras().applications, name)  # type: ignore[no-any-return]


def _offered(name: str) -> str | None:
    """The weights that the function takes when nobody tells it any."""
    default = inspect.signature(_function(name)).parameters["weights"].default
    return default if isinstance(default, str) else None


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    with _PATCHING:
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, before)


@cache
def _native_size(name: str) -> int:
    """A function tells `obtain_input_shape` its native size before it makes an input; one that leaves it open is MobileNetV3's."""
    told = []

    def asked(_: Any = None, **settings: Any) -> None:
        told.append(int(settings["default_size"]))
        raise _AskedError

    def made(**_: Any) -> None:
        raise _AskedError

    function = _function(name)
    from keras.src import layers
    from keras.src.applications import imagenet_utils

    with _replaced(imagenet_utils, "obtain_input_shape", asked), _replaced(layers, "Input", made), suppress(_AskedError):
        function(weights=None)
    return told[0] if told else OPEN_SIZE


def _built(name: str, weights: str | None, size: int) -> tuple[Any, Tag | None]:
    """The network, and where Keras would have taken the weights from; nothing is fetched and nothing put in."""
    keras, function = keras_library.keras(), _function(name)
    from keras.src.utils import file_utils, naming

    asked: list[Tag] = []

    def recorded(fname: str, origin: str, *, cache_subdir: str, file_hash: str | None = None, **_: Any) -> str:
        file = str(keras_home() / cache_subdir / fname)
        asked.append(Tag(str(weights), origin, file, file_hash))
        return file

    with ExitStack() as stack:
        stack.enter_context(_replaced(file_utils, "get_file", recorded))
        if weights is not None:
            stack.enter_context(_replaced(keras.Model, "load_weights", lambda *_, **__: None))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # that odd sizes take the weights of another: the Plan names the file
        naming.reset_uids()  # layers without a name of their own are numbered on through a process: here they start anew
        try:
            network = function(include_top=False, weights=weights, input_shape=(size, size, 3), pooling="avg")
        except ValueError as reason:
            told = str(reason).splitlines()[0].partition("; Received")[0]
            raise UsageError(
                f"keras/{name} can't be built for images of {size} pixels a side: {told}",
                hint=f"leave target.image_size out, or set it to {_native_size(name)}",
            ) from reason
    return _before_pooling(network, keras), asked[0] if asked else None


def _before_pooling(network: Any, keras: Any) -> Any:
    """As far as the last map, where that is averaged and nothing more. ConvNeXt normalises the averages for its classifier: asked for no
    average, Keras would normalise every position instead, which are other features."""
    last = network.layers[-1]
    if not isinstance(last, keras.layers.GlobalAveragePooling2D):
        return network
    return keras.Model(network.inputs, last.input, name=network.name)


@cache
def _place(name: str, weights: str, size: int, home: Path) -> Tag:
    """Building is the dear part of the answer, so that it is kept for as long as Keras's folder stays where it is."""
    tag = _built(name, weights, size)[1]
    assert tag is not None
    return tag


@cache
def _probed(name: str) -> Preprocess:
    """`preprocess_input` as scale, mean, std and order of channels, which are told from black, and from each channel at full."""
    prepare = sys.modules[_function(name).__module__].preprocess_input  # type: ignore[attr-defined]

    def answer(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(prepare(np.array(pixels, np.float64)), np.float64)[:, 0, 0, :]

    black = answer(np.zeros((1, 1, 1, 3)))[0]
    gains = (answer(255.0 * np.eye(3).reshape(3, 1, 1, 3)) - black) / 255  # [channel lit, channel of the result]
    gain = gains.max(axis=0)
    scale = 1.0 if np.allclose(gain, 1, rtol=0, atol=1e-9) else 255.0
    std = 1 / (gain * scale)
    return Preprocess(
        resize=1,
        crop=1,
        mean=tuple(round(float(value), 9) + 0.0 for value in -black * std),  # + 0.0: no -0.0
        std=tuple(round(float(value), 9) for value in std),
        scale=scale,
        channels="bgr" if gains.argmax(axis=0).tolist() == [2, 1, 0] else "rgb",
    )
