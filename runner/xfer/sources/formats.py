"""What a weight file is, told by its first bytes: names lie, and a web page saved as .pth is common."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from xfer.errors import WeightsError

Format = Literal["safetensors", "torch", "numpy archive", "pickled arrays", "keras"]
Backend = Literal["torch", "tensorflow"]

READABLE = {
    "torch": "xfer reads .safetensors, .pth, .pt, .bin, .npz, and .pkl files of numpy arrays",
    "tensorflow": "xfer reads .h5, .keras, .safetensors, .npz, .pkl files of numpy arrays, and .pth, .pt, .bin by order",
}
HEAD_BYTES = 512
# A legacy torch file opens with a pickled number of its own; its other parts are pickles too.
LEGACY_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstandard"}
PICKLE_ENDINGS = (".pkl", ".pickle")
TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
TEXT_PICKLE = (b"c", b"(", b"}", b"]")  # how pickles of the oldest protocol open


def identify(file: Path, backend: Backend = "torch") -> Format:
    """The format of a weight file for a model of that backend; raises WeightsError that says what the file is instead."""
    head, size = _opening(file)
    if size == 0:
        raise _refused(file, "is empty (0 bytes): a download or copy of it failed")
    if head.startswith(b"version https://git-lfs"):
        raise _refused(file, "is a git-LFS pointer, not the weights themselves: run 'git lfs pull' where it comes from")
    if _is_web_page(head):
        raise _refused(file, "is a web page, not weights: the address it was saved from wants a login, or is not that of the file itself")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        if backend == "tensorflow":
            return "keras"
        raise _refused(file, "is an HDF5 file, as Keras writes them; this model is torch's. " + READABLE["torch"])
    if head.startswith(b"\x93NUMPY"):
        raise _refused(file, "is one numpy array without a name; save the arrays by name: numpy.savez(file, **tensors)")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _in_zip(file, backend)
    if head[257:262] == b"ustar":
        raise _refused(file, "is a tar archive: unpack it and name the weight file in it")
    for mark, name in PACKED.items():
        if head.startswith(mark):
            raise _refused(file, f"is packed with {name}: unpack it first")
    return _by_opening(file, head, size, backend)


def _by_opening(file: Path, head: bytes, size: int, backend: Backend) -> Format:
    ending = file.suffix.lower()
    if ending == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        return "safetensors"
    if LEGACY_TORCH in head[:64]:
        return "torch"
    if head[:1] == b"\x80" or ending in PICKLE_ENDINGS or (ending in TORCH_ENDINGS and head[:1] in TEXT_PICKLE):
        return "pickled arrays"
    raise _refused(file, f"is no weight file that xfer knows (it opens with {head[:8]!r}). " + READABLE[backend])


def _in_zip(file: Path, backend: Backend) -> Format:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError):
        raise _refused(file, "is truncated or damaged: it opens as a zip archive, and its end is missing") from None
    tops = {name.split("/", 1)[1] for name in names if "/" in name} | set(names)
    if "constants.pkl" in tops:
        raise _refused(
            file,
            "is a TorchScript program, which is code; save its tensors alone: torch.save(torch.jit.load(file).state_dict(), 'weights.pth')",
        )
    if "data.pkl" in tops:
        return "torch"
    if "model.weights.h5" in tops:
        if backend == "tensorflow":
            return "keras"
        raise _refused(file, "is a Keras model; this model is torch's. " + READABLE["torch"])
    if names and all(name.endswith(".npy") for name in names):
        return "numpy archive"
    listed = ", ".join(names[:3]) or "nothing"
    raise _refused(file, f"is a zip archive without tensors in it (it holds {listed}); unpack it and name the weight file in it")


def _opening(file: Path) -> tuple[bytes, int]:
    try:
        with file.open("rb") as stream:
            return stream.read(HEAD_BYTES), file.stat().st_size
    except IsADirectoryError:
        raise _refused(file, "is a folder; name the weight file in it") from None
    except FileNotFoundError:
        raise WeightsError(f"there is no file {file}") from None
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror or error}") from None


def _is_web_page(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"))


def _refused(file: Path, what: str) -> WeightsError:
    return WeightsError(f"{file} {what}")
