"""What one process of an extraction pool does: builds the network once, then computes the shards that it is handed.

Nothing here knows Ray: an actor is made of it, and a test may call it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xfer.backends.backend import Device, Network, backend_named
from xfer.cluster.node_plan import on_this_node
from xfer.cluster.shared_store import SharedStore, opener
from xfer.cluster.storage import SETTING, Storage
from xfer.cluster.wanted import Wanted
from xfer.data.digests import content_digest
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.bundle import load_plugins
from xfer.engine.downloads import fetch_dataset
from xfer.engine.inputs import Inputs, contents_digest
from xfer.engine.reporter import Silent
from xfer.engine.target import Target
from xfer.errors import UsageError
from xfer.plan.plan import Plan
from xfer.sources.fetching import download

SAMPLED_ROWS = 32


@dataclass(frozen=True)
class Assignment:
    """What an extractor is made of. `plan` is the Plan's JSON, `drivers_cache` what XFER_CACHE is where it was made; `mark` is a file
    that the driver left in the storage; `threads` for computing and decoding (None: all)."""

    plan: str
    storage: Storage | None
    mark: str | None
    drivers_cache: str | None
    threads: int | None


@dataclass(frozen=True)
class About:
    """What must be the same for all: the class of device, the libraries' versions, a digest over some images."""

    kind: str
    versions: dict[str, str]
    sample: str


class Counting(Silent):
    """Counts what it is told of, for another thread to read."""

    def __init__(self) -> None:
        self.rows = 0

    def advance(self, n: int) -> None:
        self.rows += n


class Extractor:
    """`start` first, then `open` for each store. `heard` and `stop` may be called from another thread."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.plan: Plan
        self.target: Target
        self.network: Network
        self.device: Device
        self.versions: dict[str, str]
        self.inputs: Inputs
        self.rows: np.ndarray
        self._counting = Counting()
        self._stopped = False

    def start(self) -> About:
        """Builds dataset and network. Raises what a local run would, and UsageError where the storage is not the driver's."""
        storage, mark = self.assignment.storage, self.assignment.mark
        if storage is not None and mark is not None:
            if not storage.sees(mark):
                raise UsageError(
                    f"{SETTING}: {storage} is another place here: what was written on the head is not in it",
                    hint="it must be one place for all nodes: a folder of a shared filesystem that is mounted on each, or a URL",
                )
            storage.probe()
        self.plan = on_this_node(Plan.model_validate_json(self.assignment.plan), drivers_cache=self.assignment.drivers_cache)
        load_plugins(self.plan)
        download(self.plan.source.weights, say=self._counting.note)
        self.target = Target.open(self.plan.data, dataset=fetch_dataset(self.plan.data, say=self._counting.note))
        backend = backend_named(self.plan.backend)
        self.network = backend.build(self.plan, threads=self.assignment.threads)
        self.device, self.versions = backend.device(self.plan.runtime.device), backend.versions()
        return About(self.device.kind, self.versions, self._sample())

    @property
    def store(self) -> FeatureStore:
        """That which `open` turned to."""
        assert self.inputs.store is not None
        return self.inputs.store

    def contents(self) -> str:
        """The digest over all images, which one extractor makes for all: every file is read, unless this node's cache knows it."""
        return contents_digest(self.target, cache=Path(self.plan.runtime.cache))

    def open(self, wanted: Wanted, contents: str, bad: dict[int, str]) -> StoreSpec:
        """Turns to a store, and puts into the shared place what only this node's cache has of it; returns what the store is. `bad`
        are rows that other stores know to have no value."""
        self.target.bad.update(bad)
        self.rows, storage = wanted.choose(self.target), self.assignment.storage
        self.inputs = Inputs(
            self.plan,
            wanted.place,
            self.target,
            self.network,
            versions=self.versions,
            device=self.device,
            contents=contents,
            view=wanted.view(self.plan),
            open_store=opener(storage and storage.patient(), stop=self._is_stopped),
        )
        self.inputs.threads = self.assignment.threads or self.inputs.threads
        if isinstance(self.store, SharedStore):
            self.store.offer(self.rows)
        return self.store.spec

    def absent(self) -> list[tuple[int, int]]:
        """(shard, rows) that must still be computed: of the shared place, or of this node's cache where there is none."""
        store = self.store
        missing = store.absent(self.rows) if isinstance(store, SharedStore) else store.missing(self.rows)
        return [(shard, len(rows)) for shard, rows in missing]

    def compute(self, shards: list[int]) -> int:
        """Computes what is missing of these shards, and puts it into the shared place; how many rows, without those that were there
        already or are bad. Raises InterruptedRun after `stop`."""
        before = self.inputs.computed
        rows = self.rows[np.isin(self.rows // self.store.spec.shard_rows, shards)]
        try:
            self.inputs.prepare(rows, reporter=self._counting, stop=self._is_stopped)
        finally:
            self._counting.rows = 0
        return self.inputs.computed - before

    def bad(self) -> dict[int, str]:
        """Rows of the store that have no value, and why."""
        return self.store.bad()

    def heard(self) -> int:
        """Rows that the call of `compute` in work has done by now."""
        return self._counting.rows

    def stop(self) -> None:
        """`compute` ends after its batch; what is whole is kept."""
        self._stopped = True

    def _is_stopped(self) -> bool:
        return self._stopped

    def _sample(self) -> str:
        """A digest over a few images: enough to see that a node has a copy of its own that differs."""
        rows = np.unique(np.linspace(0, len(self.target.dataset) - 1, SAMPLED_ROWS).astype(int))
        return "".join(self._digest(row) for row in rows.tolist())

    def _digest(self, row: int) -> str:
        try:
            return content_digest(self.target.dataset.read(row))
        except OSError:
            return "unreadable"
