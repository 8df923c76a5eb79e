"""What a file of Keras's says of the model in it, as the JSON that lies there: nothing is made from it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from xfer.errors import WeightsError
from xfer.sources import arrays
from xfer.sources.hdf5 import MOST_EXPANSION, ROOM_BYTES
from xfer.sources.model_paths import PLACE


def description(file: Path) -> Any:
    """The JSON that Keras would make the model from; raises WeightsError for weights without a model."""
    import h5py

    try:
        if zipfile.is_zipfile(file):
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
