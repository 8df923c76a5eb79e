"""The idx files that MNIST and its relatives come in, packed with gzip or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from xfer.errors import DataError

UNSIGNED_BYTES = 8


def find_idx(folders: tuple[Path, ...], name: str) -> Path | None:
    """The file called `name` (`train-images-idx3-ubyte`), also with a dot before `idx`, also with `.gz`; None if there is none."""
    names = [name, name.replace("-idx", ".idx")]
    candidates = (folder / (each + ending) for folder in folders for each in names for ending in ("", ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def read_idx(file: Path, *, n_dimensions: int) -> np.ndarray:
    """The array of bytes that an idx file holds, memory-mapped if it is not packed. Raises DataError where it is damaged."""
    start = 4 + 4 * n_dimensions
    content: bytes | np.ndarray
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as stream:
                content = stream.read()
        else:
            content = np.memmap(file, np.uint8, mode="r")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{file}: it can't be read: {error}", path="target.path", hint="get it again; half a download looks like this"
        ) from error
    header = bytes(content[:start])
    if len(header) < start or header[:4] != bytes([0, 0, UNSIGNED_BYTES, n_dimensions]):
        raise DataError(f"{file}: it is not an idx file of bytes with {n_dimensions} dimensions", path="target.path")
    shape = struct.unpack(f">{n_dimensions}I", header[4:])
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise DataError(
            f"{file}: {len(content) - start} bytes of values instead of {expected}",
            path="target.path",
            hint="get it again; half a download looks like this",
        )
    values = np.frombuffer(content, np.uint8, offset=start) if isinstance(content, bytes) else content[start:]
    return values.reshape(shape)
