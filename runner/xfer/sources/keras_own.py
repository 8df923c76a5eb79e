"""Files of weights that were trained in the network which Keras builds for its own weights. EfficientNet scales its input once more there
(to what its authors trained with), in a layer that holds no tensor: nothing in the fit of tensors would show that it is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xfer.errors import WeightsError
from xfer.sources.keras_description import description

FAMILY = "EfficientNetB"


def is_for_own(name: str, file: Path, part: str | None) -> bool:
    """Whether it is one of the files that Keras publishes, or holds a model, in it the one named `part`, that scales its input so."""
    if not name.startswith(FAMILY) or not file.is_file():
        return False
    if _digest(file) in _published(name):
        return True
    try:
        described = description(file)
    except WeightsError:  # weights alone, or no file of Keras's: what is wrong with it, if anything, is said when it is read
        return False
    return any(_scales_by_channel(layer) for layer in _all(_model(described, part)))


def _published(name: str) -> tuple[str, ...]:
    """MD5 of the file with the classifier and of the one without."""
    from keras.src.applications import efficientnet

    return tuple(efficientnet.WEIGHTS_HASHES.get(name.removeprefix("EfficientNet").lower(), ()))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


def _model(described: Any, part: str | None) -> Any:
    """The description of the model of that name; the whole one where there is none, or no name."""
    wanted = part.rpartition("/")[2] if part else None
    for layer in _all(described):
        config = layer.get("config")
        if wanted is not None and isinstance(config, dict) and config.get("name") == wanted and "layers" in config:
            return layer
    return described


def _all(described: Any) -> Iterator[dict[str, Any]]:
    """Every object in a description, from the outside in."""
    if isinstance(described, dict):
        yield described
    for value in described.values() if isinstance(described, dict) else described if isinstance(described, list) else ():
        yield from _all(value)


def _scales_by_channel(layer: dict[str, Any]) -> bool:
    return layer.get("class_name") == "Rescaling" and not isinstance(layer.get("config", {}).get("scale"), int | float)
