"""Filling a feature store: reading runs ahead in a thread, computing in full batches, shards written as they get whole.

Shards are claimed a few at a time, so that several processes on one empty store share the work; batches run over shard
boundaries. Bytes in the store depend on neither: a killed, shared or repeated extraction leaves the same files.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from xfer.data.dataset import Dataset
from xfer.data.pipeline import DecodedBatch, Make, decoded
from xfer.data.store import FeatureStore, ShardClaim
from xfer.errors import StoreError
from xfer.plan.preprocess import Preprocess

Compute = Callable[[np.ndarray], np.ndarray]
Feed = Callable[[np.ndarray], Iterator[DecodedBatch]]  # row numbers -> their input, in order

WINDOW_BATCHES = 32  # claimed and read in one go: enough that a pause between two windows is not felt
WINDOW_SHARDS = 64  # each claim holds two open files
BATCHES_AHEAD = 2
ROUNDS = 3  # where there are no locks, two processes may undo each other's rows; what is missing after this many is an error
OTHERS_SECONDS = 0.2  # how often to look whether another process is done with a shard


@dataclass(frozen=True)
class Extraction:
    """What was done: rows `computed` by this process, its wall time, the bad rows among those asked for (known before or found
    now), and whether every row is there now (False after a stop)."""

    computed: int
    seconds: float
    bad: dict[int, str]
    complete: bool


def extract(
    store: FeatureStore,
    dataset: Dataset,
    rows: np.ndarray,
    *,
    preprocess: Preprocess,
    compute: Compute,
    batch: int,
    threads: int,
    progress: Callable[[int], None] = lambda n_rows: None,
    stop: Callable[[], bool] = lambda: False,
    make: Make | None = None,
    shape: tuple[int, ...] | None = None,
) -> Extraction:
    """Computes the rows of images that the store has not yet.

    `compute` gets uint8 [batch, crop, crop, 3], always of this shape (the last batch repeats its last image), and returns
    [batch, *store.spec.shape] in the store's dtype. `progress(n)` hears of n more rows that are there now, or known to be bad,
    whoever did it; in all that is the number of rows that were missing at the start. `stop` is asked between batches: when it is
    true, what was computed is written and the rest is left. `make` and `shape` are `decoded`'s: what stands for an image instead of its
    decoded pixels; `compute` gets uint8 [batch, *shape] then. Raises DiskFullError, StoreError, and what `compute` raises.
    """

    def feed(wanted: np.ndarray) -> Iterator[DecodedBatch]:
        return decoded(dataset, wanted, preprocess, threads=threads, batch=batch, make=make, shape=shape)

    return _fill(store, rows, feed, compute, batch=batch, progress=progress, stop=stop)


def extract_from(
    store: FeatureStore,
    parent: FeatureStore,
    rows: np.ndarray,
    *,
    compute: Compute,
    batch: int,
    progress: Callable[[int], None] = lambda n_rows: None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """As `extract`, from the rows of another store over the same dataset, which must be there or bad: `compute` gets
    [batch, *parent.spec.shape] in the parent's dtype (bfloat16 as uint16). A row that is bad there is bad here."""
    bad = parent.bad()

    def feed(wanted: np.ndarray) -> Iterator[DecodedBatch]:
        for start in range(0, len(wanted), batch):
            some = wanted[start : start + batch]
            good = some[[row not in bad for row in some.tolist()]]
            yield DecodedBatch(good, parent.take(good), [(row, bad[row]) for row in some.tolist() if row in bad])

    return _fill(store, rows, feed, compute, batch=batch, progress=progress, stop=stop)


def _fill(
    store: FeatureStore,
    rows: np.ndarray,
    feed: Feed,
    compute: Compute,
    *,
    batch: int,
    progress: Callable[[int], None],
    stop: Callable[[], bool],
) -> Extraction:
    started = time.perf_counter()
    rows = np.unique(np.asarray(rows, np.int64))
    computed, stopped = 0, False
    missing = store.missing(rows)
    for _ in range(ROUNDS):
        if not missing or stopped:
            break
        n_rows, stopped = _fill_once(store, missing, feed, _Filler(store, compute, batch, progress), batch=batch, stop=stop)
        computed += n_rows
        missing = store.missing(rows)
    if missing and not stopped:
        raise StoreError(
            f"rows that were just written are gone from the feature store {store.folder}, the first is row {missing[0][1][0]}",
            hint="is the folder cleared while it is used, or its disk failing? choose another with `runtime.cache`",
        )
    bad = store.bad()
    found = {row: bad[row] for row in rows.tolist() if row in bad} if bad else {}
    return Extraction(computed, time.perf_counter() - started, found, complete=not missing)


def _fill_once(
    store: FeatureStore, missing: list[tuple[int, np.ndarray]], feed: Feed, filler: _Filler, *, batch: int, stop: Callable[[], bool]
) -> tuple[int, bool]:
    """Rows computed, and whether it was stopped."""
    stopped = False
    reader = _Reader(store, missing, feed, batch)
    try:
        for item in reader.items():
            filler.take_item(item)
            if stop():
                stopped = True
                break
        reader.close()
        filler.finish()
    finally:
        reader.close()
        filler.abandon()
    return filler.computed, stopped


@dataclass(frozen=True)
class _Claimed:
    """A shard is ours, and these rows of it will come."""

    claim: ShardClaim
    rows: np.ndarray


@dataclass(frozen=True)
class _Elsewhere:
    """Another process brought this many rows."""

    n_rows: int


@dataclass(frozen=True)
class _Flush:
    """Nothing comes for a while: compute what waits for a full batch, so that no claim is held while we wait for others."""


_Item = DecodedBatch | _Claimed | _Elsewhere | _Flush


class _Reader:
    """Claims shards and reads their input in a thread of its own, a few batches ahead."""

    def __init__(self, store: FeatureStore, missing: list[tuple[int, np.ndarray]], feed: Feed, batch: int) -> None:
        self._store = store
        self._missing = missing
        self._feed = feed
        self._window_rows = WINDOW_BATCHES * batch
        self._queue: queue.Queue[_Item | None] = queue.Queue(BATCHES_AHEAD)
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(1, "xfer-read")
        self._reading = self._pool.submit(self._run)

    def items(self) -> Iterator[_Item | None]:
        """What comes, in order; None now and then while nothing comes, so that a stop is noticed."""
        while True:
            try:
                item = self._queue.get(timeout=OTHERS_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is None:
                self._reading.result()  # raises what reading raised
                return
            yield item

    def close(self) -> None:
        """Ends the thread; claims that nobody took are given back."""
        self._closed.set()
        while not self._reading.done() or not self._queue.empty():
            try:
                item = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(item, _Claimed):
                item.claim.release()
        self._pool.shutdown()

    def _run(self) -> None:
        try:
            self._read()
        finally:
            self._put(None)

    def _put(self, item: _Item | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        if isinstance(item, _Claimed):
            item.claim.release()
        return False

    def _read(self) -> None:
        todo = list(self._missing)
        others: list[tuple[int, np.ndarray]] = []
        while todo or others:
            window: list[np.ndarray] = []
            while todo and len(window) < WINDOW_SHARDS and sum(map(len, window)) < self._window_rows and not self._closed.is_set():
                shard, rows = todo.pop(0)
                claim = self._store.claim(shard)
                if claim is None:
                    others.append((shard, rows))
                else:
                    window.append(self._begin(claim, rows))
            wanted = np.concatenate([np.empty(0, np.int64), *window])
            if len(wanted):
                batches = self._feed(wanted)
                for item in batches:
                    if not self._put(item):
                        return
            if not todo and others:
                # Ours must be finished before we wait: the others may be waiting for them.
                self._put(_Flush())
                self._closed.wait(OTHERS_SECONDS)
                todo, others = others, []
            if self._closed.is_set():
                return

    def _begin(self, claim: ShardClaim, rows: np.ndarray) -> np.ndarray:
        """The rows of a claimed shard that are still missing."""
        try:
            found = self._store.missing(rows)
        except BaseException:
            claim.release()
            raise
        wanted = found[0][1] if found else np.empty(0, np.int64)
        if len(wanted) < len(rows):
            self._put(_Elsewhere(len(rows) - len(wanted)))
        if not len(wanted):
            claim.release()
        elif not self._put(_Claimed(claim, wanted)):
            return np.empty(0, np.int64)
        return wanted


@dataclass
class _Open:
    """A shard of ours that waits for `n_waiting` more rows."""

    claim: ShardClaim
    n_waiting: int
    bad: dict[int, str] = field(default_factory=dict)


class _Filler:
    """Computes full batches and hands whole shards to a thread that checks, syncs and renames them."""

    def __init__(self, store: FeatureStore, compute: Compute, batch: int, progress: Callable[[int], None]) -> None:
        self.computed = 0
        self._store = store
        self._compute = compute
        self._batch = batch
        self._progress = progress
        self._shards: dict[int, _Open] = {}
        self._rows: list[np.ndarray] = []  # waiting for a full batch
        self._inputs: list[np.ndarray] = []
        self._committer = ThreadPoolExecutor(1, "xfer-commit")
        self._commits: list[Future[None]] = []

    def take_item(self, item: _Item | None) -> None:
        if isinstance(item, _Claimed):
            self._shards[item.claim.shard] = _Open(item.claim, len(item.rows))
        elif isinstance(item, _Elsewhere):
            self._progress(item.n_rows)
        elif isinstance(item, _Flush):
            self._compute_waiting(at_least=1)
        elif isinstance(item, DecodedBatch):
            for row, reason in item.bad:
                self._shards[row // self._store.spec.shard_rows].bad[row] = reason
            if len(item.rows):
                self._rows.append(item.rows)
                self._inputs.append(item.pixels)
            self._settle([row for row, _ in item.bad])
            self._compute_waiting(at_least=self._batch)

    def finish(self) -> None:
        """Computes and writes what was read, shards that are not whole too; waits until all of it is on the disk."""
        self._compute_waiting(at_least=1)
        for shard in list(self._shards):
            self._commit(shard)
        self._collect(wait=True)

    def abandon(self) -> None:
        """Ends the thread; what it was given is still written, what is left over is dropped. Nothing happens after `finish`."""
        self._committer.shutdown(wait=True)
        for shard in self._shards.values():
            shard.claim.release()
        self._shards.clear()

    def _compute_waiting(self, *, at_least: int) -> None:
        while sum(map(len, self._rows)) >= at_least:
            rows = np.concatenate(self._rows) if len(self._rows) > 1 else self._rows[0]
            inputs = np.concatenate(self._inputs) if len(self._inputs) > 1 else self._inputs[0]
            n_rows = min(self._batch, len(rows))
            self._rows = [rows[n_rows:]] if len(rows) > n_rows else []
            self._inputs = [inputs[n_rows:]] if len(rows) > n_rows else []
            rows, inputs = rows[:n_rows], inputs[:n_rows]
            if n_rows < self._batch:
                inputs = np.concatenate([inputs, np.repeat(inputs[-1:], self._batch - n_rows, axis=0)])
            self._put(rows, self._compute(inputs)[:n_rows])

    def _put(self, rows: np.ndarray, values: np.ndarray) -> None:
        shards = rows // self._store.spec.shard_rows
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            self._shards[shard].claim.put(rows[chosen], values[chosen])
        self.computed += len(rows)
        self._settle(rows.tolist())

    def _settle(self, rows: list[int]) -> None:
        """These rows are done, one way or the other: shards that wait for none are committed."""
        for row in rows:
            self._shards[row // self._store.spec.shard_rows].n_waiting -= 1
        for shard in {row // self._store.spec.shard_rows for row in rows}:
            if self._shards[shard].n_waiting == 0:
                self._commit(shard)
        self._collect(wait=False)
        if rows:
            self._progress(len(rows))

    def _commit(self, shard: int) -> None:
        done = self._shards.pop(shard)

        def run() -> None:
            with done.claim:
                self._store.mark_bad(done.bad)
                done.claim.commit()

        self._commits.append(self._committer.submit(run))

    def _collect(self, *, wait: bool) -> None:
        """Raises what a commit raised."""
        while self._commits and (wait or self._commits[0].done() or len(self._commits) > 2):
            self._commits.pop(0).result()
