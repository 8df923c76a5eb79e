"""safetensors as numpy arrays, without any framework: what numpy has no type for is widened to float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from xfer.errors import WeightsError
from xfer.sources import arrays

TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
BFLOAT16 = "BF16"
LENGTH_BYTES = 8  # before the header, of the header


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, in the order in which they lie in it; raises WeightsError for a damaged file, or one with a type
    of number that can't be used."""
    from safetensors import SafetensorError, deserialize

    try:
        content = file.read_bytes()
        entries = dict(deserialize(content))
    except SafetensorError as error:
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as safetensors ({arrays.reason(error)})") from None
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror or error}") from None
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")])
    order = sorted(entries, key=lambda name: header[name]["data_offsets"])
    return {name: _array(entries[name], name, file) for name in order}


def _array(entry: dict, name: str, file: Path) -> np.ndarray:
    kind, shape, content = entry["dtype"], entry["shape"], entry["data"]
    if kind == BFLOAT16:
        return arrays.from_bfloat16(np.frombuffer(content, "<u2")).reshape(shape)
    if kind not in TYPES:
        raise WeightsError(f"{file}: '{name}' is of the type {kind}, which can't be used")
    return np.frombuffer(content, TYPES[kind]).reshape(shape)
