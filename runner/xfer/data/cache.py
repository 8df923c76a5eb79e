"""The cache folder from outside: which stores are there, and removing those that are not in use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xfer.data.store_faults import read_fault, store_fault
from xfer.data.store_folder import FEATURES, StoreSpec, last_used, lock_path, read_bad, read_manifest, shard_path, sweep
from xfer.data.store_lock import try_lock
from xfer.data.store_shard import DamageError
from xfer.errors import UsageError

TRASH = ".removed-"
UNLOCKED_USE_SECONDS = 24 * 3600  # on a disk without locks, a store used this recently counts as in use


@dataclass(frozen=True)
class StoreEntry:
    """One store: rows `present` and `bad` of `rows`, `bytes` that it takes on the disk, `last_used` in seconds since the epoch.

    `spec` is None, and the counts 0, where its manifest can't be understood.
    """

    digest: str
    folder: Path
    spec: StoreSpec | None
    present: int
    bad: int
    bytes: int
    last_used: float
    in_use: bool

    @property
    def rows(self) -> int:
        return self.spec.rows if self.spec else 0

    @property
    def complete(self) -> bool:
        """Every row is there, or known to be bad. (Rows that nobody asked for are not computed: few stores need to be complete.)"""
        return self.spec is not None and self.present + self.bad >= self.rows

    def label(self, part: str) -> str:
        """The key's 'model' or 'cut', for people; decoded pixels belong to no model."""
        return str(self.spec.key.get(part, "-")) if self.spec else "?"

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data.update(folder=str(self.folder), model=self.label("model"), cut=self.label("cut"), rows=self.rows, complete=self.complete)
        data["spec"] = self.spec.layout if self.spec else None
        return data


@dataclass(frozen=True)
class Removal:
    """What was removed, and what was left because a live process uses it."""

    removed: tuple[StoreEntry, ...]
    in_use: tuple[StoreEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.removed)


def cache_entries(root: Path) -> list[StoreEntry]:
    """All stores under the cache folder, the one used last first. No shard is read but its last bytes."""
    features = root / FEATURES
    try:
        folders = [path for path in sorted(features.iterdir()) if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_fault(error, features) from error
    entries = []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):  # removed while we look
            entries.append(store_entry(folder))
    return sorted(entries, key=lambda entry: (-entry.last_used, entry.digest))


def store_entry(folder: Path) -> StoreEntry:
    """What can be said of one store's folder."""
    manifest = read_manifest(folder)
    spec = manifest[0] if manifest else None
    bad = {row for row in read_bad(folder) if spec and row < spec.rows}
    return StoreEntry(
        digest=folder.name,
        folder=folder,
        spec=spec,
        present=_rows_present(folder, spec) if spec else 0,
        bad=len(bad),
        bytes=_disk_bytes(folder),
        last_used=last_used(folder),
        in_use=_is_in_use(folder),
    )


def remove(root: Path, keys: Sequence[str]) -> Removal:
    """Removes the stores whose digests start so; raises UsageError, before anything is removed, where a key fits none or several."""
    entries = cache_entries(root)
    chosen = {}
    for key in keys:
        found = [entry for entry in entries if key and entry.digest.startswith(key)]
        if not found:
            raise UsageError(f"no store in {root} has a key that starts with '{key}'", hint="`xfer cache ls` shows the keys")
        if len(found) > 1:
            raise UsageError(f"'{key}' fits several stores: {', '.join(entry.digest for entry in found)}", hint="give more of the key")
        chosen[found[0].digest] = found[0]
    return _remove(root, list(chosen.values()))


def prune(root: Path, *, older_than_seconds: float | None = None, max_bytes: int | None = None) -> Removal:
    """Removes stores that were not used for that long, then, oldest first, as many as it takes to stay within `max_bytes`.

    What a live process uses stays (its bytes count). Leftovers of killed processes go too.
    """
    _empty_trash(root)
    entries = sorted(cache_entries(root), key=lambda entry: (entry.last_used, entry.digest))
    for entry in entries:
        with contextlib.suppress(OSError):  # a store in a read-only folder: removing it says so, if it is to be removed
            sweep(entry.folder)
    now = time.time()
    too_old = [entry for entry in entries if older_than_seconds is not None and now - entry.last_used > older_than_seconds]
    first = _remove(root, too_old)
    if max_bytes is None:
        return first
    total = sum(entry.bytes for entry in entries) - first.bytes
    removed, in_use = list(first.removed), list(first.in_use)
    for entry in entries:
        if total <= max_bytes:
            break
        if entry in too_old:
            continue
        outcome = _remove(root, [entry])
        removed += outcome.removed
        in_use += outcome.in_use
        total -= outcome.bytes
    return Removal(tuple(removed), tuple(in_use))


def _rows_present(folder: Path, spec: StoreSpec) -> int:
    n_present = 0
    for shard in range(spec.n_shards):
        with contextlib.suppress(FileNotFoundError, DamageError):
            descriptor = os.open(shard_path(folder, shard), os.O_RDONLY | os.O_CLOEXEC)
            try:
                n_present += int(spec.shard_format(folder.name, shard).read_trailer(descriptor)[0].sum())
            finally:
                os.close(descriptor)
    return n_present


def _disk_bytes(folder: Path) -> int:
    """What its files take on the disk: a shard with rows missing is a file with holes."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def _is_in_use(folder: Path) -> bool:
    if not lock_path(folder, "use").exists():
        return False
    try:
        held = try_lock(lock_path(folder, "use"))
    except OSError:  # a folder that we may not write: its owner's runs can't be seen from here
        return False
    if held is None:
        return True
    with held:
        return not held.supported and time.time() - last_used(folder) < UNLOCKED_USE_SECONDS


def _remove(root: Path, entries: Sequence[StoreEntry]) -> Removal:
    removed: list[StoreEntry] = []
    in_use: list[StoreEntry] = []
    for entry in entries:
        try:
            (removed if _take_away(entry.folder) else in_use).append(entry)
        except FileNotFoundError:  # another process removed it
            continue
        except OSError as error:
            raise store_fault(error, entry.folder) from error
    _empty_trash(root)
    return Removal(tuple(removed), tuple(in_use))


def _take_away(folder: Path) -> bool:
    """Renames the store's folder while nobody uses it, so that from then on it is not a store; False where it is in use."""
    lock_path(folder, "use").parent.mkdir(exist_ok=True)
    held = try_lock(lock_path(folder, "use"))
    if held is None:
        return False
    with held:
        if not held.supported and time.time() - last_used(folder) < UNLOCKED_USE_SECONDS:
            return False
        folder.rename(folder.with_name(f"{TRASH}{uuid.uuid4().hex[:12]}"))
    return True


def _empty_trash(root: Path) -> None:
    """Deletes what was taken away, also by a process that was killed while it deleted."""
    for folder in (root / FEATURES).glob(f"{TRASH}*"):
        shutil.rmtree(folder, ignore_errors=True)
