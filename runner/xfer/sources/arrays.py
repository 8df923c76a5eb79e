"""Numpy's own weight files: .npz, and pickles of arrays read so that nothing in them can run.

A pickle is a program: it names functions and has them called. The reader here answers only the few names that an array is
made of, and answers them with functions of ours, so that not even numpy's are handed to the file.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xfer.errors import WeightsError

# What damaged or hostile bytes can make a reader raise.
DAMAGE = (
    EOFError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, MemoryError, OverflowError,
    RuntimeError, AssertionError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
NUMBER_KINDS = "fiub"  # floats, signed and unsigned integers, booleans


class ForbiddenError(Exception):
    """The pickle asks for a name that is no part of an array; `args[0]` is the name."""


class Type:
    """Stands in for numpy.dtype: takes what a pickled dtype says of itself and believes only numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<" if self.order == "<" else "=")
        if dtype.kind not in NUMBER_KINDS:
            raise ForbiddenError(f"an array of {dtype}")
        return dtype


class Array:
    """Stands in for numpy.ndarray: what a pickled array says of itself, checked, becomes `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray = np.empty(0, np.float32)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, kind, is_fortran, content = state[-4:]
        if isinstance(content, list):
            raise ForbiddenError("an array of Python objects")
        self.value = _values(content, kind, shape, "F" if is_fortran else "C")


def _values(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, Type):
        raise ForbiddenError("an array without a type")
    if isinstance(content, str):
        content = content.encode("latin1")  # what a pickle of Python 2 holds
    dtype = kind.dtype()
    shape = tuple(int(n) for n in shape)
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ForbiddenError(f"text in {encoding!r}")
    return text.encode("latin1")


def _typed(code: str, *_: Any) -> Type:
    if not isinstance(code, str) or len(code) > 8:
        raise ForbiddenError("an array of structures")
    return Type(code)


def _empty(*_: Any) -> Array:
    return Array()


def _scalar(kind: Any, content: Any) -> Any:
    return _values(content, kind, (), "C").item()  # a best accuracy, a learning rate: settings, no weights


def _no_bytes() -> bytes:
    return b""


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = _values(bytes(content), kind, shape, order)
    return array


# Every name that an array is pickled with, and what it is answered with. All are functions of ours: a pickle can set attributes
# of what it is given, and theirs change nothing.
ANSWERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytes": _no_bytes,  # how the older protocols write an array without values
    "__builtin__.bytes": _no_bytes,
    "numpy.dtype": _typed,
    "numpy.ndarray": _empty,
    "numpy.core.multiarray._reconstruct": _empty,
    "numpy._core.multiarray._reconstruct": _empty,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}


class _Arrays(pickle.Unpickler):
    """Lists, dicts, numbers and numpy arrays; everything else raises ForbiddenError."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        answer = ANSWERS.get(f"{module}.{name}")
        if answer is None:
            raise ForbiddenError(f"{module}.{name}")
        return answer

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ForbiddenError("something outside the file")


def read_pickle(file: Path) -> Any:
    """The containers of a pickle with `Array`s in them; raises WeightsError, and never runs anything of the file."""
    try:
        with file.open("rb") as stream:
            return _Arrays(stream, encoding="latin1").load()
    except ForbiddenError as error:
        raise refused(file, str(error.args[0])) from None
    except DAMAGE as error:
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as a pickle of arrays ({reason(error)})") from None


def read_archive(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; arrays of Python objects are refused unread."""
    arrays = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except DAMAGE as error:
        if "allow_pickle" in str(error):
            raise refused(file, f"'{name}' as an array of Python objects") from None
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as an .npz archive ({reason(error)})") from None
    return arrays


def checked(value: np.ndarray, name: str, file: Path) -> np.ndarray:
    """An array of plain numbers in this machine's order of bytes, in row-major memory of its own; raises WeightsError."""
    if value.dtype.kind not in NUMBER_KINDS:
        raise WeightsError(f"{file}: '{name}' is an array of {value.dtype}, not of numbers")
    if value.dtype.itemsize > 8:  # long double, which no framework has
        value = value.astype(np.float64)
    return np.array(value, value.dtype.newbyteorder("="), order="C")


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers whose upper halves are these 16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def refused(file: Path, name: str) -> WeightsError:
    """The error for a file that wants more than tensors."""
    return WeightsError(
        f"{file} is refused: it asks for {name}, and only tensors are read from a weight file; nothing of it was run",
        hint="a whole pickled model is code too: where it was made, save its tensors alone, torch.save(model.state_dict(), 'weights.pth')",
    )


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
