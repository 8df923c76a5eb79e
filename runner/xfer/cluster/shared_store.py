"""A feature store in a shared place, with the cache of each node in front of it. The shared files lie in `<storage>/store/<digest>/`:

    manifest.json                   as in the cache (see xfer.data.store_folder)
    00000.npy …                     shards, byte for byte as in the cache
    bad-00000-<16 hex digits>.json  rows of that shard that have no value, with the reason; the name is made of the content, so that two
                                    who write at the same time leave two files, and nothing is lost

Only whole shards appear there, and what comes from there is checked before it is trusted: a wrong checksum means that the rows are
computed again. Of two who add different rows to one shard in the same moment the later wins: the other's rows stay in its own cache, and
go up when it looks again. No lock reaches from node to node: who computes which shard is agreed on beforehand (`mine`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np

from xfer.cluster.storage import Storage
from xfer.data.store import FeatureStore, ShardClaim, StoreSpec
from xfer.data.store_faults import store_fault
from xfer.data.store_folder import MANIFEST, lock_path, shard_path
from xfer.data.store_lock import FileLock, lock
from xfer.data.store_shard import DamageError, Signature, temporary_path
from xfer.engine.inputs import OpenStore, Stop
from xfer.errors import StoreError

STORES = "store"
BAD_NAME = re.compile(r"bad-(\d+)-[0-9a-f]{16}\.json")
LISTED_SECONDS = 2.0  # how old what is known of the shared place may be while others work
BUSY_SECONDS = 0.1  # how often to look whether another process of this node is done with a shard
COPIES = 4  # at a time
ROWS_MERGED = 64  # at a time
LOGGER = logging.getLogger("xfer.cluster.shared_store")


def opener(storage: Storage | None, *, rank: int = 0, size: int = 1, stop: Stop = lambda: False) -> OpenStore:
    """What `Inputs` opens stores with, where `size` processes fill them together: each computes every `size`-th shard, and waits for
    the others'. Without a shared place (one node) the processes share a cache, whose locks share the work already."""
    if storage is None:
        return FeatureStore

    def open_store(root: Path, spec: StoreSpec) -> FeatureStore:
        return SharedStore(root, spec, storage=storage, mine=lambda shard: shard % size == rank, stop=stop)

    return open_store


class SharedStore(FeatureStore):
    """The store of a key in this node's cache and in the shared place.

    `missing` first brings what only the shared place has, and puts there what only this node has. A shard that is not `mine` can be
    claimed once another has put it there: until then it counts as being computed elsewhere. `pulled` and `pushed` count shards.
    """

    def __init__(
        self,
        root: Path,
        spec: StoreSpec,
        *,
        storage: Storage,
        mine: Callable[[int], bool] = lambda shard: True,
        stop: Stop = lambda: False,
        warn: Callable[[str], None] = LOGGER.warning,
    ) -> None:
        super().__init__(root, spec, warn=warn)
        self.shared = storage.inside(STORES, self.digest)
        self.pulled, self.pushed = 0, 0
        self._mine, self._stop = mine, stop
        self._wanted = np.zeros(spec.rows, bool)  # rows that were asked for
        self._held: set[int] = set()  # shards that this process is writing
        self._sizes: dict[str, int] = {}  # the shared place's files when they were last listed
        self._listed_at = -float("inf")
        self._tails: dict[int, bytes | None] = {}  # what says which rows a shared shard has, read since the last listing
        self._known: dict[int, bytes | None] = {}  # … and when the shard was last brought here
        self._damaged: set[int] = set()
        self._given: dict[int, Signature] = {}  # shards of which the shared place has all rows that this file has
        self._shared_bad: dict[int, str] = {}
        self._bad_names: set[str] = set()
        self._listing = threading.RLock()

    # as the local store, and the shared place with it

    def missing(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        rows = self._checked(rows)
        self._wanted[rows] = True
        self._learn_bad()
        self._bring(super().missing(rows))
        if not self._held:  # not amid an extraction, which gives what it makes
            self.offer(rows)
        return super().missing(rows)

    def claim(self, shard: int) -> ShardClaim | None:
        self._learn_bad()
        if self._tail(shard) != self._known.get(shard) and not self._fetch(shard):
            return None
        if self._mine(shard) or shard in self._damaged or not self._lacks(shard):
            return super().claim(shard)
        return None

    def mark_bad(self, reasons: dict[int, str]) -> None:
        super().mark_bad(reasons)
        self._give_bad(reasons)

    def absent(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """As `missing`, of the shared place: looked up anew, nothing is copied."""
        self._relist()
        self._learn_bad()
        rows = np.unique(self._checked(rows))
        if self._shared_bad:
            rows = rows[~np.isin(rows, list(self._shared_bad))]
        parts = self._by_shard(rows)
        there = self._all_there([shard for shard, _ in parts])
        left = [(shard, part[~there[shard][part % self.spec.shard_rows]]) for shard, part in parts]
        return [(shard, part) for shard, part in left if len(part)]

    def let_go(self, shard: int) -> None:
        """A claim ended."""
        self._held.discard(shard)

    def _claimed(self, shard: int, held: FileLock) -> ShardClaim:
        self._held.add(shard)
        return SharedClaim(self, shard, held)

    # from the shared place

    def _bring(self, lacking: list[tuple[int, np.ndarray]]) -> None:
        """Copies shards here that have some of these rows."""
        wanted = {shard: rows for shard, rows in lacking if shard not in self._held}
        there = self._all_there(list(wanted))
        todo = [shard for shard, rows in wanted.items() if there[shard][rows - shard * self.spec.shard_rows].any()]
        with ThreadPoolExecutor(COPIES, "xfer-pull") as pool:
            while todo and not self._stop():  # whoever extracts hears of a stop by himself, in step with other ranks
                done = list(pool.map(self._fetch, todo[: 4 * COPIES]))
                left = [shard for shard, is_done in zip(todo, done, strict=False) if not is_done]
                if len(left) == len(done):
                    time.sleep(BUSY_SECONDS)
                todo = todo[len(done) :] + left

    def _fetch(self, shard: int) -> bool:
        """Copies a shard here, beside the rows that are here; False where another process of this node is writing it."""
        claim = super().claim(shard)
        if claim is None:
            return False
        assert isinstance(claim, SharedClaim)
        claim.pushes = False
        path = shard_path(self.folder, shard)
        temporary = temporary_path(path)
        with claim:
            self._look(np.array([shard]))  # another process of this node may have brought it meanwhile
            tail, here = self._tail(shard), self._here(shard)
            if (self._there(shard) & ~here).any():
                try:
                    if self.shared.get(path.name, temporary):
                        self._adopt(claim, temporary, here=here)
                except OSError as error:
                    raise store_fault(error, path, needed=self._format(shard).total_bytes) from error
                finally:
                    temporary.unlink(missing_ok=True)
            self._known[shard] = tail
        return True

    def _adopt(self, claim: SharedClaim, file: Path, *, here: np.ndarray) -> None:
        """Takes the copy over, if it is whole. `here` says which rows (bool [rows]) the cache has."""
        shard, layout = claim.shard, self._format(claim.shard)
        try:
            present, _ = layout.verify(file)
        except DamageError as damage:
            self._tell_damage(shard, damage)
            return
        if (here & ~present).any():
            rows, _ = layout.map(file)
            places = np.flatnonzero(present & ~here)
            for first in range(0, len(places), ROWS_MERGED):
                some = places[first : first + ROWS_MERGED]
                claim.put(shard * self.spec.shard_rows + some, rows[some])
            claim.commit()
        else:
            os.replace(file, shard_path(self.folder, shard))
            self._look(np.array([shard]))
            self._given[shard] = self._seen[shard]
        with self._listing:
            self.pulled += 1

    # to the shared place

    def offer(self, rows: np.ndarray) -> None:
        """Gives what this node has of these rows' shards and the shared place has not."""
        rows = np.unique(self._checked(rows))
        shards = np.unique(rows // self.spec.shard_rows)
        self._look(shards)
        new = [shard for shard in shards.tolist() if shard in self._seen and self._given.get(shard) != self._seen[shard]]
        there = self._all_there(new)
        for shard in new:
            if (self._here(shard) & ~there[shard]).any():
                self.push(shard)
        bad = self.bad()
        self._give_bad({row: bad[row] for row in rows.tolist() if row in bad} if bad else {})

    def push(self, shard: int) -> None:
        """What this node has of a shard goes to the shared place, merged with rows that only the shared place has."""
        path = shard_path(self.folder, shard)
        while True:
            with lock(lock_path(self.folder, f"push-{shard:05d}")):  # one process of a node is enough
                self._look(np.array([shard]))
                here = self._here(shard)
                self._look_again(shard)
                there = self._there(shard)
                if not (there & ~here).any():
                    if (here & ~there).any():
                        self._manifest()
                        self.shared.put(path, path.name)
                        self._look_again(shard)
                        self._damaged.discard(shard)
                        self.pushed += 1
                    break
            if not self._fetch(shard):  # whoever is writing it here may be done soon
                time.sleep(BUSY_SECONDS)
        if shard in self._seen:
            self._given[shard] = self._seen[shard]
            self._known[shard] = self._tail(shard)

    def _manifest(self) -> None:
        if MANIFEST not in self._sizes:
            self.shared.put(self.folder / MANIFEST, MANIFEST)
            self._sizes[MANIFEST] = 0

    # rows without a value

    def _learn_bad(self) -> None:
        names = [name for name in self._listed() if name not in self._bad_names and BAD_NAME.fullmatch(name)]
        found: dict[int, str] = {}
        for name in names:
            found.update(bad_rows(self.shared.read(name)))
        with self._listing:
            self._shared_bad.update(found)
            self._bad_names.update(names)
        here = self.bad()
        super().mark_bad({row: reason for row, reason in found.items() if row not in here and row < self.spec.rows})

    def _give_bad(self, reasons: dict[int, str]) -> None:
        """One file for each shard, of a name that its content has."""
        new = {row: reason for row, reason in sorted(reasons.items()) if row not in self._shared_bad}
        for shard in sorted({row // self.spec.shard_rows for row in new}):
            part = {str(row): reason for row, reason in new.items() if row // self.spec.shard_rows == shard}
            content = json.dumps(part, indent=1).encode()
            self._manifest()
            self.shared.write(f"bad-{shard:05d}-{blake2b(content, digest_size=8).hexdigest()}.json", content)
        with self._listing:
            self._shared_bad.update(new)

    # what is there

    def _lacks(self, shard: int) -> bool:
        """Whether a row of the shard that was asked for is neither here nor known to be bad."""
        first = shard * self.spec.shard_rows
        rows = first + np.flatnonzero(self._wanted[first : first + self.spec.shard_rows] & ~self._here(shard))
        bad = self.bad()
        return any(row not in bad for row in rows.tolist())

    def _all_there(self, shards: list[int]) -> dict[int, np.ndarray]:
        self._listed()
        if len(shards) < 2:
            return {shard: self._there(shard) for shard in shards}
        with ThreadPoolExecutor(2 * COPIES, "xfer-look") as pool:
            return dict(zip(shards, pool.map(self._there, shards), strict=True))

    def _there(self, shard: int) -> np.ndarray:
        """Which rows (bool [rows]) of a shard the shared place has."""
        layout, tail = self._format(shard), self._tail(shard)
        if tail is not None and shard not in self._damaged:
            try:
                if not tail:
                    raise DamageError("is cut off")
                return layout.parse_trailer(tail)[0]
            except DamageError as damage:
                self._tell_damage(shard, damage)
        return np.zeros(layout.rows, bool)

    def _tell_damage(self, shard: int, damage: DamageError) -> None:
        if shard not in self._damaged:
            self._damaged.add(shard)
            self._warn(f"{self.shared.inside(shard_path(self.folder, shard).name)} {damage}; its rows are computed again")

    def _tail(self, shard: int) -> bytes | None:
        """The end of a shared shard's file, or None where there is none."""
        sizes, name = self._listed(), shard_path(self.folder, shard).name
        if name in sizes and shard not in self._tails:
            layout = self._format(shard)
            is_short = sizes[name] <= layout.trailer_at  # libraries differ in what reading behind the end gives
            self._tails[shard] = b"" if is_short else self.shared.read(name, start=layout.trailer_at)
        return self._tails.get(shard)

    def _look_again(self, shard: int) -> None:
        """Asks the shared place for one shard, whatever was known of it: cheaper than listing all."""
        name, layout = shard_path(self.folder, shard).name, self._format(shard)
        try:
            tail = self.shared.patient(0).read(name, start=layout.trailer_at)
        except StoreError:
            is_short = self.shared.sizes().get(name, layout.total_bytes) <= layout.trailer_at
            tail = b"" if is_short else self.shared.read(name, start=layout.trailer_at)
        with self._listing:
            self._tails[shard] = tail
            if tail is not None:
                self._sizes[name] = layout.total_bytes

    def _listed(self) -> dict[str, int]:
        with self._listing:
            if time.monotonic() - self._listed_at > LISTED_SECONDS:
                self._relist()
            return self._sizes

    def _relist(self) -> None:
        """Looks at the shared place anew."""
        with self._listing:
            self._sizes = self.shared.sizes()
            self._listed_at = time.monotonic()
            self._tails.clear()


class SharedClaim(ShardClaim):
    """The right to write a shard; what is committed goes to the shared place too, before `commit` returns."""

    store: SharedStore
    pushes = True  # what is committed; not where it comes from the shared place

    def commit(self) -> None:
        super().commit()
        if self.pushes:
            self.store.push(self.shard)

    def release(self) -> None:
        super().release()
        self.store.let_go(self.shard)


def bad_rows(content: bytes | None) -> dict[int, str]:
    """A file of bad rows; none where it is gone or can't be understood, and those rows are tried again."""
    try:
        data = json.loads(content or b"{}")
    except ValueError:
        return {}
    return {int(row): str(reason) for row, reason in data.items() if row.isdigit()} if isinstance(data, dict) else {}
