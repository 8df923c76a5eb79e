"""Arrays in .npy and .npz files: memory-mapped where the bytes lie in the file as they are, never unpickled."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from xfer.errors import DataError

Loader = Callable[[], np.ndarray]
_DAMAGE = (OSError, EOFError, ValueError, struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def arrays_in(path: Path) -> Mapping[str, Loader]:
    """The arrays of a .npz file or of a folder of .npy files, by name; nothing is read before a loader is called.

    Raises DataError, as the loaders do, naming file and array.
    """
    if path.is_dir():
        return {file.stem: (lambda file=file: array_in(file)) for file in sorted(path.glob("*.npy"))}  # type: ignore[misc]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except _DAMAGE as error:
        raise _damaged(str(path), error) from error
    return {member.filename[:-4]: (lambda member=member: _member(path, member)) for member in members}  # type: ignore[misc]


def array_in(file: Path) -> np.ndarray:
    """The array of a .npy file, read-only and memory-mapped. Raises DataError."""
    try:
        with file.open("rb") as stream:
            return _mapped(file, stream, str(file), start=0)
    except _DAMAGE as error:
        raise _damaged(str(file), error) from error


def _member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    place = f"{path}: {member.filename[:-4]}"
    try:
        with path.open("rb") as stream:
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                start = _data_start(stream, member)
                stream.seek(start)
                return _mapped(path, stream, place, start=start)
        with zipfile.ZipFile(path) as archive, archive.open(member) as content:
            return _read(content, place)
    except _DAMAGE as error:
        raise _damaged(place, error) from error


def _data_start(stream: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: its local header has a length of its own."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("the archive's directory is wrong")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name) + int(extra)


def _mapped(file: Path, stream: IO[bytes], place: str, *, start: int) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        stream.seek(start)
        return _read(stream, place)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise _objects(place)
    if 0 in shape or not shape:
        stream.seek(start)
        return _read(stream, place)
    return np.memmap(file, dtype=dtype, mode="r", offset=stream.tell(), shape=shape, order="F" if fortran else "C")


def _read(stream: IO[bytes], place: str) -> np.ndarray:
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _objects(place) from error
        raise


def _objects(place: str) -> DataError:
    return DataError(
        f"{place}: it holds Python objects, which can run code when they are read and are refused",
        path="target.path",
        hint="save plain arrays: images of one size as uint8, labels with labels.astype(int) or labels.astype(str)",
    )


def _damaged(place: str, error: BaseException) -> DataError:
    told = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{place}: the file is damaged or not in numpy's format: {told}", path="target.path")
