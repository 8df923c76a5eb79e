"""The folder of one store: names, the small JSON files in it, leftovers of killed processes.

    features/<digest>/manifest.json    the key's parts and the layout, readable
                      00000.npy …      shards (see store_shard)
                      bad.json         rows that have no value, with the reason
                      used             touched when the store is opened: its time is the last use
                      locks/           empty files to lock: use (shared by all who have it open), 00000 … (who writes that
                                       shard), bad and manifest (who writes that file)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from xfer.data.store_lock import FileLock, lock, try_lock
from xfer.data.store_shard import FORMAT, TEMPORARY, ShardFormat

FEATURES = "features"
MANIFEST = "manifest.json"
BAD = "bad.json"
USED = "used"
LOCKS = "locks"
UNLOCKED_LEFTOVER_SECONDS = 24 * 3600  # without locks, a temporary file this old belongs to nobody
DTYPES = {"uint8": "|u1", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # bfloat16 is held as uint16


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds: `rows` rows of `shape` and `dtype`, of which each shard takes `shard_rows`.

    `key` is plain JSON data that says what the rows are a function of; 'model' and 'cut' in it are shown by `xfer cache ls`.
    """

    key: dict[str, Any]
    rows: int
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.rows < 0 or self.shard_rows < 1 or any(n < 1 for n in self.shape):
            raise ValueError(f"rows, shard_rows and shape must be positive: {self.rows}, {self.shard_rows}, {self.shape}")

    @property
    def layout(self) -> dict[str, Any]:
        """All that the digest is made of, as it stands in the manifest."""
        shape = [int(n) for n in self.shape]
        return {"format": FORMAT, "key": self.key, "rows": self.rows, "shape": shape, "dtype": self.dtype, "shard_rows": self.shard_rows}

    @property
    def digest(self) -> str:
        """32 hex digits."""
        text = json.dumps(self.layout, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.dtype])

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.numpy_dtype.itemsize

    @property
    def n_shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard_format(self, digest: str, shard: int) -> ShardFormat:
        """How shard number `shard` lies in its file; the last one may be shorter."""
        rows = min(self.shard_rows, self.rows - shard * self.shard_rows)
        return ShardFormat(digest, shard, rows, tuple(int(n) for n in self.shape), self.numpy_dtype)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.npy"


def lock_path(folder: Path, name: str | int) -> Path:
    return folder / LOCKS / (name if isinstance(name, str) else f"{name:05d}")


def read_manifest(folder: Path) -> tuple[StoreSpec, str] | None:
    """The store's spec and when it was made (ISO 8601, UTC); None where there is no manifest that can be understood."""
    data = read_json(folder / MANIFEST)
    try:
        spec = StoreSpec(data["key"], data["rows"], tuple(data["shape"]), data["dtype"], data["shard_rows"])
        return spec, str(data["created"])
    except (KeyError, TypeError, ValueError):
        return None


def write_manifest(folder: Path, spec: StoreSpec) -> None:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(folder / MANIFEST, {"digest": spec.digest, **spec.layout, "created": created})


def read_bad(folder: Path) -> dict[int, str]:
    """Rows without a value and why; empty where the file is absent or damaged (those rows are then tried again)."""
    data = read_json(folder / BAD)
    if not isinstance(data, dict):
        return {}
    return {int(row): str(reason) for row, reason in data.items() if row.isdigit()}


def write_bad(folder: Path, reasons: dict[int, str]) -> None:
    write_json(folder / BAD, {str(row): reasons[row] for row in sorted(reasons)})


def read_json(path: Path) -> Any:
    """The file's content, or None where it is absent or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, data: Any) -> None:
    """Replaces the file by one rename."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def touch_used(folder: Path) -> None:
    # The time of the last use only orders what `prune` removes: a read-only or full disk must not stop a run for it.
    with contextlib.suppress(OSError):
        os.utime(folder / USED)
        return
    with contextlib.suppress(OSError):
        (folder / USED).touch()


def last_used(folder: Path) -> float:
    """Seconds since the epoch."""
    for path in (folder / USED, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def open_use_lock(folder: Path) -> FileLock | None:
    """A shared lock that says 'in use'; None where the folder is read-only and has no lock file."""
    with contextlib.suppress(OSError):
        (folder / LOCKS).mkdir(exist_ok=True)
    try:
        return lock(lock_path(folder, "use"), shared=True)
    except OSError:
        return None


def make_folder(folder: Path, spec: StoreSpec) -> FileLock:
    """Makes the store's folder where it is absent, clears leftovers, returns the 'in use' lock; raises OSError."""
    for _ in range(100):
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        try:
            in_use = lock(lock_path(folder, "use"), shared=True)
        except FileNotFoundError:  # another process cleared the cache just now
            continue
        with lock(lock_path(folder, "manifest")):
            found = read_manifest(folder)
            if found is None or found[0].digest != spec.digest:
                write_manifest(folder, spec)
        sweep(folder)
        return in_use
    raise FileNotFoundError(errno.ENOENT, "the folder is removed again and again", str(folder))


def sweep(folder: Path) -> int:
    """Removes temporary files whose writer is gone; how many. A file is its writer's as long as that one holds the lock of its name."""
    removed = 0
    for path in sorted(folder.glob(f"*{TEMPORARY}")):
        name = path.name.partition(".")[0]
        with contextlib.suppress(FileNotFoundError):
            held = try_lock(lock_path(folder, name))
            if held is None:
                continue
            with held:
                if held.supported or time.time() - path.stat().st_mtime > UNLOCKED_LEFTOVER_SECONDS:
                    path.unlink()
                    removed += 1
    return removed
