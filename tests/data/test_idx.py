from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from xfer.data.idx import find_idx, read_idx
from xfer.errors import DataError

VALUES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
RAW = struct.pack(">4B3I", 0, 0, 8, 3, 3, 4, 5) + VALUES.tobytes()


@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte.gz"]
)
def test_read(tmp_path, name):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(gzip.compress(RAW) if name.endswith(".gz") else RAW)
    file = find_idx((tmp_path, tmp_path / "raw"), "train-images-idx3-ubyte")
    assert file == tmp_path / "raw" / name
    found = read_idx(file, n_dimensions=3)
    np.testing.assert_array_equal(found, VALUES)
    assert isinstance(found, np.memmap) == (not name.endswith(".gz"))


def test_nothing_found(tmp_path):
    assert find_idx((tmp_path,), "train-images-idx3-ubyte") is None


@pytest.mark.parametrize(
    ("raw", "ending", "text"),
    [
        (RAW[:-1], "", "59 bytes of values instead of 60"),
        (RAW + b"x", "", "61 bytes of values instead of 60"),
        (gzip.compress(RAW, mtime=0)[:-20], ".gz", "it can't be read: Compressed file ended before the end-of-stream marker was reached"),
        (RAW, ".gz", "it can't be read: Not a gzipped file (b'\\x00\\x00')"),
        (b"", "", "it can't be read: cannot mmap an empty file"),
        (b"\0\0", "", "it is not an idx file of bytes with 3 dimensions"),
        (RAW.replace(b"\x08\x03", b"\x0d\x03", 1), "", "it is not an idx file of bytes with 3 dimensions"),
        (struct.pack(">4BI", 0, 0, 8, 1, 3) + b"abc" * 9, "", "it is not an idx file of bytes with 3 dimensions"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "", f"0 bytes of values instead of {(2**32 - 1) ** 3}"),
    ],
)
def test_damage(tmp_path, raw, ending, text):
    file = tmp_path / f"x{ending}"
    file.write_bytes(raw)
    with pytest.raises(DataError) as error:
        read_idx(file, n_dimensions=3)
    assert error.value.message == f"{file}: {text}"
