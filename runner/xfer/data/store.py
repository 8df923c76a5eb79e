"""The feature store: rows that are a pure function of the data, computed once, shared by runs, resumable at any moment."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np

from xfer.data.store_faults import read_fault, store_fault
from xfer.data.store_folder import (
    BAD,
    FEATURES,
    StoreSpec,
    lock_path,
    make_folder,
    open_use_lock,
    read_bad,
    shard_path,
    touch_used,
    write_bad,
)
from xfer.data.store_lock import FileLock, lock, try_lock
from xfer.data.store_shard import DamageError, ShardDraft, ShardFormat, Signature, signature_of
from xfer.errors import StoreError

__all__ = ["FeatureStore", "ShardClaim", "StoreSpec"]

UNREADABLE = (errno.EIO, errno.ESTALE)  # a bad sector, a file replaced on a network filesystem: computed again
GROUPED_ROW_BYTES = 4096
FEW_ROWS = 64
LOGGER = logging.getLogger("xfer.data.store")


class FeatureStore:
    """Rows at one cut of one network over one dataset, in `<root>/features/<digest>/`.

    Opening makes nothing; the first write makes the folder. `warn` is told of shards that are damaged (once each).
    Reading may be done from several threads. A store that is open is never pruned by another process.
    """

    def __init__(self, root: Path, spec: StoreSpec, *, warn: Callable[[str], None] = LOGGER.warning) -> None:
        self.spec = spec
        self.digest = spec.digest
        self.folder = Path(root).expanduser() / FEATURES / self.digest
        self._warn = warn
        self._present = np.zeros(spec.rows, bool)  # of the shards that were verified
        self._seen: dict[int, Signature] = {}  # the file of each shard that `_present` speaks of
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._n_maps = max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))  # each open map holds a descriptor
        self._bad: tuple[Signature | None, dict[int, str]] = (None, {})
        self._use: FileLock | None = None
        self._n_changes = 0  # how often a shard was found to be another one
        self._made = False  # the folder is known to be whole, and clear of leftovers
        self._guard = threading.RLock()
        self._verifying = threading.Lock()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of maps and of the lock that keeps `xfer cache prune` away."""
        with self._guard:
            self._maps.clear()
            if self._use is not None:
                self._use.close()
                self._use, self._made = None, False

    # Reading

    def missing(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """What must be computed so that `take(rows)` works: per shard its row numbers, ascending. Bad rows are left out.

        Reads the whole of each shard that this process has not seen yet (1.7 GB/s for each thread, from memory): the rows of a
        damaged one are missing.
        """
        wanted = np.unique(self._checked(rows))
        self._look(np.unique(wanted // self.spec.shard_rows))
        absent = wanted[~self._present[wanted]]
        bad = self.bad()
        if bad:
            absent = absent[~np.isin(absent, np.fromiter(bad, np.int64, len(bad)))]
        return self._by_shard(absent)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """A copy [len(rows), *shape] of these rows, in this order; bfloat16 comes as uint16.

        Raises StoreError where a row is absent: ask `missing` first.
        """
        rows = self._checked(rows)
        values = np.empty((len(rows), *self.spec.shape), self.spec.numpy_dtype)
        if not len(rows):
            return values
        shards = rows // self.spec.shard_rows
        if not self._present[rows].all():
            self._look(np.unique(shards))
            self._demand(rows)
        if self.spec.row_bytes <= GROUPED_ROW_BYTES and len(rows) > 16 * self.spec.n_shards:
            self._take_grouped(rows, shards, values)
        else:
            self._take_runs(rows, shards, values)
        return values

    def _take_runs(self, rows: np.ndarray, shards: np.ndarray, values: np.ndarray) -> None:
        """One copy for each run of neighbouring rows: best for few rows, large rows, or rows in order."""
        numbers = shards.tolist()
        n_changes = self._n_changes
        maps = {shard: self._map(shard) for shard in set(numbers)}
        if self._n_changes != n_changes:  # a file was replaced meanwhile: are the rows still there?
            self._demand(rows)
        if len(rows) <= FEW_ROWS:  # finding neighbours would cost more than it saves
            places = (rows - shards * self.spec.shard_rows).tolist()
            for position, (shard, place) in enumerate(zip(numbers, places, strict=True)):
                values[position] = maps[shard][place]
            return
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards) != 0)) + 1
        ends = [*breaks.tolist(), len(rows)]
        places = rows - shards * self.spec.shard_rows
        starts = np.concatenate([[0], breaks])
        first = 0
        for shard, place, end in zip(shards[starts].tolist(), places[starts].tolist(), ends, strict=True):
            if end == first + 1:
                values[first] = maps[shard][place]
            else:
                values[first:end] = maps[shard][place : place + end - first]
            first = end

    def _take_grouped(self, rows: np.ndarray, shards: np.ndarray, values: np.ndarray) -> None:
        """One gather for each shard: best for many small rows in any order."""
        order = np.argsort(shards, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            shard = int(shards[group[0]])
            rows_of_shard = self._map(shard)
            self._demand(rows[group])
            values[group] = rows_of_shard[rows[group] - shard * self.spec.shard_rows]

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64).reshape(-1)
        if len(rows) and rows.view(np.uint64).max() >= self.spec.rows:  # a negative number is a huge one so
            raise IndexError(f"rows must lie in 0..{self.spec.rows - 1}, not {rows.min()}..{rows.max()}")
        return rows

    def _by_shard(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Ascending row numbers, apart for each shard that has some of them."""
        shards, starts = np.unique(rows // self.spec.shard_rows, return_index=True)
        return list(zip(shards.tolist(), np.split(rows, starts[1:]), strict=True)) if len(rows) else []

    def _here(self, shard: int) -> np.ndarray:
        """Which rows (bool [rows]) of a verified shard are there; a copy."""
        first = shard * self.spec.shard_rows
        here: np.ndarray = self._present[first : first + self.spec.shard_rows].copy()
        return here

    def _demand(self, rows: np.ndarray) -> None:
        absent = rows[~self._present[rows]]
        if len(absent):
            raise StoreError(
                f"{len(absent)} rows are not in the feature store {self.folder}, the first is row {absent[0]}",
                hint="run it again: whatever is missing is computed",
            )

    def _format(self, shard: int) -> ShardFormat:
        return self.spec.shard_format(self.digest, shard)

    def _look(self, shards: np.ndarray) -> None:
        """Brings `_present` up to date for these shards, reading those whose file is new to this process."""
        self._enter(create=False)
        touch_used(self.folder)
        with self._verifying:
            changed = []
            for shard in shards.tolist():
                signature = self._signature(shard)
                if signature is None:
                    self._remember(shard, None, None)
                elif self._seen.get(shard) != signature:
                    changed.append((shard, signature))
            if len(changed) == 1:
                self._verify(*changed[0])
            elif changed:
                with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(changed)), "xfer-verify") as pool:
                    list(pool.map(lambda each: self._verify(*each), changed))

    def _signature(self, shard: int) -> Signature | None:
        path = shard_path(self.folder, shard)
        try:
            return signature_of(os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise read_fault(error, path) from error

    def _verify(self, shard: int, signature: Signature) -> None:
        path = shard_path(self.folder, shard)
        try:
            present, signature = self._format(shard).verify(path)
        except FileNotFoundError:
            self._remember(shard, None, None)
        except DamageError as damage:
            self._remember(shard, signature, None)
            self._warn(f"the cache file {path} {damage}; its rows are computed again")
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise read_fault(error, path) from error
            self._remember(shard, signature, None)
            self._warn(f"the cache file {path} can't be read ({error.strerror}); its rows are computed again")
        else:
            self._remember(shard, signature, present)

    def _remember(self, shard: int, signature: Signature | None, present: np.ndarray | None) -> None:
        first = shard * self.spec.shard_rows
        with self._guard:
            self._n_changes += 1
            self._maps.pop(shard, None)
            self._present[first : first + self.spec.shard_rows] = False if present is None else present
            if signature is None:
                self._seen.pop(shard, None)
            else:
                self._seen[shard] = signature

    def _map(self, shard: int) -> np.ndarray:
        """The shard's verified rows as a memory map; the least recently used maps are let go."""
        with self._guard:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
        path = shard_path(self.folder, shard)
        for _ in range(100):  # each turn: another process put a newer file there
            try:
                rows, signature = self._format(shard).map(path)
            except FileNotFoundError as error:
                raise StoreError(f"the cache file {path} was removed while it was in use", hint="run it again") from error
            except DamageError as damage:
                raise StoreError(f"the cache file {path} {damage}", hint="run it again: its rows are computed again") from damage
            except OSError as error:
                raise read_fault(error, path) from error
            with self._guard:
                if self._seen.get(shard) == signature:
                    self._maps[shard] = rows
                    while len(self._maps) > self._n_maps:
                        self._maps.popitem(last=False)
                    return rows
            self._look(np.array([shard]))
        raise StoreError(f"the cache file {path} is being replaced again and again", hint="is another program writing there?")

    # Rows without a value

    def bad(self) -> dict[int, str]:
        """Rows that can't be computed, and why."""
        path = self.folder / BAD
        try:
            signature = signature_of(os.stat(path))
            if self._bad[0] != signature:
                self._bad = (signature, read_bad(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            self._bad = (None, {})
        except OSError as error:
            raise read_fault(error, path) from error
        return {row: reason for row, reason in self._bad[1].items() if row < self.spec.rows}

    def mark_bad(self, reasons: dict[int, str]) -> None:
        """Adds rows that have no value; they are never `missing` again."""
        if not reasons:
            return
        self._enter(create=True)
        try:
            with lock(lock_path(self.folder, "bad")):
                write_bad(self.folder, {**read_bad(self.folder), **reasons})
        except OSError as error:
            raise store_fault(error, self.folder / BAD, needed=sum(len(reason) + 16 for reason in reasons.values())) from error

    # Writing

    def write(self, shard: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds `values` [k, *shape] of the row numbers `rows`, all of this shard; waits while another process writes the shard.

        Raises DiskFullError or StoreError; the shard is then what it was before.
        """
        with self._claim(shard, lock) as claim:
            claim.put(rows, values)
            claim.commit()

    def claim(self, shard: int) -> ShardClaim | None:
        """The right to write a shard, or None where another process has it. What is `missing` may have changed by then."""
        return self._claim(shard, try_lock)

    @overload
    def _claim(self, shard: int, take_lock: Callable[[Path], FileLock]) -> ShardClaim: ...
    @overload
    def _claim(self, shard: int, take_lock: Callable[[Path], FileLock | None]) -> ShardClaim | None: ...
    def _claim(self, shard: int, take_lock: Callable[[Path], FileLock | None]) -> ShardClaim | None:
        if not 0 <= shard < self.spec.n_shards:
            raise IndexError(f"shards are 0..{self.spec.n_shards - 1}, not {shard}")
        self._enter(create=True)
        path = lock_path(self.folder, shard)
        try:
            held = take_lock(path)
        except OSError as error:
            raise store_fault(error, path) from error
        return None if held is None else self._claimed(shard, held)

    def _claimed(self, shard: int, held: FileLock) -> ShardClaim:
        return ShardClaim(self, shard, held)

    def _enter(self, *, create: bool) -> None:
        """Says that the store is in use, and makes its folder where `create`."""
        with self._guard:
            if self._use is not None and (self._made or not create) and lock_path(self.folder, "use").exists():
                return
            if create:
                try:
                    in_use = make_folder(self.folder, self.spec)
                except OSError as error:
                    raise store_fault(error, self.folder, needed=len(str(self.spec.layout))) from error
                self._use, self._made = in_use, True
            elif self.folder.is_dir():
                self._use, self._made = open_use_lock(self.folder), False


class ShardClaim:
    """The right to write one shard. `put` rows, then `commit`; leaving the block without it leaves the shard as it was."""

    def __init__(self, store: FeatureStore, shard: int, held: FileLock) -> None:
        self.store = store
        self.shard = shard
        self._held = held
        self._draft: ShardDraft | None = None

    def __enter__(self) -> ShardClaim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Writes `values` [k, *shape] of the row numbers `rows` to the new shard's temporary file."""
        spec = self.store.spec
        rows = np.asarray(rows, np.int64)
        places = rows - self.shard * spec.shard_rows
        layout = spec.shard_format(self.store.digest, self.shard)
        if len(rows) and (places.min() < 0 or places.max() >= layout.rows):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are not all in shard {self.shard}")
        if values.dtype != spec.numpy_dtype or values.shape != (len(rows), *spec.shape):
            raise ValueError(f"values must be {spec.numpy_dtype} {(len(rows), *spec.shape)}, not {values.dtype} {values.shape}")
        with self._writing():
            if self._draft is None:
                self._draft = self._begin(layout)
            self._draft.put(places, values)

    def commit(self) -> None:
        """Replaces the shard by one that has the new rows too, and gives the claim back."""
        if self._draft is not None:
            with self._writing():
                signature = self._draft.commit()
            self.store._remember(self.shard, signature, self._draft.present)
            self._draft = None
        self.release()

    def release(self) -> None:
        """Gives the claim back; what was not committed is dropped."""
        if self._draft is not None:
            self._draft.discard()
            self._draft = None
        self._held.close()

    def _begin(self, layout: ShardFormat) -> ShardDraft:
        """A draft that already has the rows that the shard holds now."""
        draft = ShardDraft(layout, shard_path(self.store.folder, self.shard))
        try:
            self.store._look(np.array([self.shard]))
            present = self.store._here(self.shard)
            if present.any():
                draft.copy(self.store._map(self.shard), present)
        except BaseException:
            draft.discard()
            raise
        return draft

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.release()
            path = shard_path(self.store.folder, self.shard)
            raise store_fault(error, path, needed=self.store.spec.shard_format(self.store.digest, self.shard).total_bytes) from error
