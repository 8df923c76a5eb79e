"""Extraction spread over a cluster: actors on all nodes of one device class fill feature stores, shard by shard.

The driver hands out shards; an actor computes them into its node's cache and puts them into the shared place. Shards of an actor or a
node that is lost are handed out again, and of those only what is not there yet is computed. Which actor computed a shard leaves no trace in
its bytes: rows don't depend on their neighbours in a batch, and a batch has one shape.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from xfer.cluster.crew import Crew, Member
from xfer.cluster.extractor import Assignment
from xfer.cluster.node_plan import CACHE_VARIABLE
from xfer.cluster.seats import Seat, live_nodes, seats
from xfer.cluster.storage import Storage, require_shared
from xfer.cluster.wanted import Wanted, wanted
from xfer.engine.inputs import EXTRACTED, Stop
from xfer.engine.reporter import Reporter
from xfer.errors import InterruptedRun, StoreError, UsageError
from xfer.plan.plan import Plan

MOST_SHARDS = 8  # handed out at a time: enough that reading ahead is seldom cut off, few enough that all end together
STOP_SECONDS = 60.0  # for the batches in work
ROUNDS = 3

Shard = tuple[int, int]  # its number, and how many of its rows are missing


@dataclass(frozen=True)
class Figures:
    """How a store was filled: rows that were missing; rows `computed`, by node; rows of these that were computed in vain, because a
    worker was lost before their shard was whole (as far as it was heard of); rows without a value; workers lost."""

    rows: int
    computed: dict[str, int]
    repeated: int
    bad: int
    lost: int
    seconds: float


def fill(
    plan: Plan,
    *,
    storage: Storage | None,
    stores: Sequence[Wanted] | None = None,
    actors: int | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float = 0.0,
    only: str | None = None,
    max_failures: int = 3,
    reporter: Reporter,
    stop: Stop,
) -> dict[str, Figures]:
    """Fills `stores` (by default all that a run of the plan would compute before anything trains), with the Ray that this process is
    connected to; figures by the stores' titles. A killed driver goes on at the first missing shard.

    `only` names a device class, such as 'cuda sm90', and leaves nodes of others out; without it a cluster of several is refused. Raises
    UsageError before work begins (resources, storage, a mixed cluster), InterruptedRun, what the workers raise, and XferError where
    more than `max_failures` of them were lost.
    """
    chosen = wanted(plan) if stores is None else list(stores)
    if not chosen:
        return {}
    pool = Pool(plan, storage=storage, reporter=reporter, stop=stop)
    pool.crew = Crew(
        assign=pool.assignment,
        on_lost=pool.take_back,
        actors=actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
        only=only,
        max_failures=max_failures,
        warn=reporter.warn,
        stop=stop,
    )
    with pool:
        return {each.title: pool.fill(each) for each in chosen}


class Pool:
    """Hands shards to a crew, store after store."""

    def __init__(self, plan: Plan, *, storage: Storage | None, reporter: Reporter, stop: Stop) -> None:
        self.storage, self.reporter, self.stop = storage, reporter, stop
        self.crew: Crew
        self._plan = plan.model_dump_json()
        self._mark: str | None = None
        self._contents = ""
        self._bad: dict[int, str] = {}  # rows that some store knows to have no value
        # of the store that is being filled
        self._number = 0
        self._wanted: Wanted
        self._digest = ""
        self._todo: deque[Shard] = deque()
        self._handed: dict[Member, list[Shard]] = {}
        self._heard: dict[Member, int] = {}
        self._computed: Counter[str] = Counter()
        self._finished = self._shown = self._total = 0

    def __enter__(self) -> Pool:
        places = seats(live_nodes(), actors=None, cpus_per_actor=self.crew.cpus, gpus_per_actor=self.crew.gpus)
        on = {seat.node.id for seat in places}
        require_shared(self.storage, len(on))
        if self.storage is None:
            self.crew.only_on = on  # what a node that comes later computes would be seen by itself alone
        self._mark = self.storage.leave_mark() if self.storage else None
        try:
            self.crew.gather()
            self._contents = self._ask("contents")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for member in list(self.crew.members):
            self.crew.dismiss(member)
        if self.storage is not None and self._mark is not None:
            self.storage.remove_mark(self._mark)

    def assignment(self, seat: Seat) -> Assignment:
        """What an actor on this seat is told."""
        return Assignment(self._plan, self.storage, self._mark, os.environ.get(CACHE_VARIABLE), seat.threads)

    def take_back(self, member: Member) -> None:
        """An actor is lost: what it had goes to others."""
        self._todo.extendleft(reversed(self._handed.pop(member, [])))
        self._computed[member.node.label] += self._heard.pop(member, 0)

    def fill(self, wanted: Wanted) -> Figures:
        """One store, to the end."""
        began, lost = time.monotonic(), self.crew.n_lost
        self._wanted, self._digest = wanted, ""
        self._number += 1
        self._computed.clear()
        self._finished = self._shown = 0
        for member in self.crew.members:
            self._open(member)
        while any(member.doing == "open" for member in self.crew.members):
            self._hear()
            self._look_for_stop()
        self._todo = deque(self._ask("absent"))
        n_known = len(self._ask("bad"))  # after it: looking for what is absent, a node learns of bad rows from the shared place
        self._total = sum(n_rows for _, n_rows in self._todo)
        if self._total:
            n_members = len(self.crew.members)
            with_whom = f"with {n_members} worker{'s' if n_members != 1 else ''}"
            self.reporter.start(f"extracting features at {wanted.title} {with_whom}", self._total)
        for _ in range(ROUNDS):
            self._hand_out()
            self._todo = deque(self._ask("absent"))
            if not self._todo:
                break
        else:
            raise StoreError(
                f"rows that were just written are gone from the feature store, the first is in shard {self._todo[0][0]}",
                hint="is the folder cleared while it is used, or its disk failing?",
            )
        if self._total:
            self._advance(self._total)
            self.reporter.done()
        bad = self._ask("bad")
        self._bad.update(bad)
        computed = {node: n_rows for node, n_rows in sorted(self._computed.items()) if n_rows}
        repeated = max(0, sum(computed.values()) - (self._total - (len(bad) - n_known)))
        return Figures(self._total, computed, repeated, len(bad), self.crew.n_lost - lost, time.monotonic() - began)

    # handing out

    def _hand_out(self) -> None:
        while self._todo or self._handed:
            for member in [each for each in self.crew.members if each.about and not each.doing]:
                if member.opened != self._number:
                    self._open(member)
                elif self._todo:
                    shards = [self._todo.popleft() for _ in range(self._share())]
                    self._handed[member] = shards
                    self.crew.call(member, "compute", [shard for shard, _ in shards])
            self._hear()
            self._heard.update({member: rows for member, rows in self.crew.heard().items() if member in self._handed})
            self._advance(self._finished + sum(self._heard.values()))
            self.crew.top_up()
            if self.stop():
                self._end_work()
                self._look_for_stop()

    def _share(self) -> int:
        """How many shards to hand out next: fewer towards the end, so that no worker is left with much."""
        n_members = max(1, len(self.crew.members))
        return max(1, min(MOST_SHARDS, len(self._todo) // (2 * n_members)))

    def _open(self, member: Member) -> None:
        if member.about and not member.doing:
            self.crew.call(member, "open", self._wanted, self._contents, self._bad)

    def _hear(self) -> None:
        """Takes answers in."""
        for member, method, answer in self.crew.answers():
            if method == "open":
                self._digest = self._digest or answer.digest
                if answer.digest != self._digest:
                    raise UsageError(
                        f"cluster: node {member.node.label} would compute other rows than the other nodes, at {self._wanted.title}",
                        hint="are the weights, and the code of local plugins, the same on all nodes?",
                    )
                member.opened = self._number
            elif method == "compute":
                self._finished += sum(n_rows for _, n_rows in self._handed.pop(member))
                self._heard.pop(member, None)
                self._computed[member.node.label] += answer

    def _ask(self, method: str) -> Any:
        """The answer of any member that is ready; of another, where that one is lost."""
        while True:
            ready = [each for each in self.crew.members if each.about and not each.doing and each.opened == self._number]
            if ready:
                self.crew.call(ready[0], method)
                for _, asked, answer in self._until_answered(ready[0]):
                    if asked == method:
                        return answer
            else:
                for member in self.crew.members:
                    self._open(member)
                self._hear()
            self.crew.top_up()
            self._look_for_stop()

    def _until_answered(self, member: Member) -> list[tuple[Member, str, Any]]:
        """Its answer; nothing where it is lost."""
        while member in self.crew.members:
            for answer in self.crew.answers():
                if answer[0] is member:
                    return [answer]
            self._look_for_stop()
        return []

    def _advance(self, n_rows: int) -> None:
        """Shows so many rows as done; what is computed again doesn't count twice."""
        n_rows = min(n_rows, self._total)
        if n_rows > self._shown:
            self.reporter.advance(n_rows - self._shown)
            self._shown = n_rows

    def _end_work(self) -> None:
        """Lets the batches in work be finished and written."""
        self.crew.tell_stop()
        began = time.monotonic()
        while any(each.doing == "compute" for each in self.crew.members) and time.monotonic() - began < STOP_SECONDS:
            with suppress(InterruptedRun):  # what a worker that was stopped says
                self._hear()

    def _look_for_stop(self) -> None:
        if self.stop():
            raise InterruptedRun(f"stopped while {EXTRACTED}")
