"""Digests over what the images are, so that stored features follow the data and nothing else."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np

from xfer.data.dataset import Dataset, RawImage, Stamp
from xfer.errors import DiskFullError, StoreError

ABSENT = "0" * 32  # the digest of an image that can't be read: never cached, so that it counts once it can
BLOCK = 20_000  # digests between two writes of the cache file
# A file that changed just now may change again within one tick of the file system's clock: its digest is not cached yet.
SETTLED_NS = 2_000_000_000
_DIGEST_BYTES = 16


def content_digests(dataset: Dataset, *, cache: Path | None, threads: int) -> list[str]:
    """Per row the digest (32 hexadecimal characters) of its raw content; ABSENT where it can't be read.

    With `cache`, a folder, digests of files are kept there by path, size and modification time; only files that changed
    are read. Raises DiskFullError or StoreError where they can't be kept.
    """
    stamps = _stamps(dataset, threads) if dataset.stamp is not None and cache is not None else None
    if stamps is None or cache is None:
        return _digests(dataset, list(range(len(dataset))), threads)
    file = _file(cache, stamps)
    known = _read(file)
    digests = [ABSENT] * len(dataset)
    missing = []
    for row, stamp in enumerate(stamps):
        entry = known.get(stamp[0]) if stamp else None
        if stamp and entry and (entry[0], entry[1]) == (stamp[1], stamp[2]):
            digests[row] = entry[2]
        else:
            missing.append(row)
    for start in range(0, len(missing), BLOCK):
        rows = missing[start : start + BLOCK]
        newest = time.time_ns() - SETTLED_NS
        found = _digests(dataset, rows, threads)
        for row, digest in zip(rows, found, strict=True):
            digests[row] = digest
            stamp = stamps[row]
            if stamp and digest != ABSENT and stamp[2] < newest and stamp == _stamp(dataset, row):
                known[stamp[0]] = (stamp[1], stamp[2], digest)
        _write(file, known)
    return digests


def listing_digest(dataset: Dataset) -> str:
    """Digest over classes, keys, labels and given splits: a dataset that changed between plan and run is noticed by it."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for names in (dataset.classes, dataset.keys, dataset.splits.tolist()):
        digest.update(json.dumps(names).encode())
    digest.update(np.ascontiguousarray(dataset.labels, "<i8").tobytes())
    return digest.hexdigest()


def content_digest(raw: RawImage) -> str:
    """The digest of one image's raw content: a file's bytes, or an array's shape and values."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    if isinstance(raw, np.ndarray):
        digest.update(f"array {raw.dtype} {raw.shape} ".encode())
        digest.update(np.ascontiguousarray(raw).data)
    else:
        digest.update(raw)
    return digest.hexdigest()


def _digests(dataset: Dataset, rows: list[int], threads: int) -> list[str]:
    def one(row: int) -> str:
        try:
            return content_digest(dataset.read(row))
        except OSError:
            return ABSENT  # decoding will say why

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(one, rows))


def _stamps(dataset: Dataset, threads: int) -> list[Stamp | None]:
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(lambda row: _stamp(dataset, row), range(len(dataset))))


def _stamp(dataset: Dataset, row: int) -> Stamp | None:
    assert dataset.stamp is not None
    try:
        return dataset.stamp(row)
    except OSError:
        return None


def _file(cache: Path, stamps: list[Stamp | None]) -> Path:
    """One file per folder of images: datasets in the same place share it."""
    folders = {os.path.dirname(stamp[0]) for stamp in stamps if stamp}
    common = os.path.commonpath(folders) if folders else ""
    return cache / "digests" / f"{blake2b(os.fsencode(common), digest_size=_DIGEST_BYTES).hexdigest()}.json"


def _read(file: Path) -> dict[str, tuple[int, int, str]]:
    """What is known; a cache that can't be understood is an empty one."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {path: (entry[0], entry[1], entry[2]) for path, entry in found.items() if isinstance(entry, list) and len(entry) == 3}


def _write(file: Path, known: dict[str, tuple[int, int, str]]) -> None:
    """Atomically: a reader sees the old file or the new one. Of two writers the last wins, and the other's work is done again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".", suffix=".part", delete=False) as part:
            try:
                json.dump(known, part)
                part.flush()
                os.replace(part.name, file)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{file}: no room left for the digests of the images", hint="free some space, or clear the cache"
            ) from error
        raise StoreError(f"{file}: can't be written: {(error.strerror or str(error)).lower()}") from error
