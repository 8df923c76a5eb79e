"""The actors of an extraction pool: started where there is room, of one kind, replaced when they are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xfer.cluster.extractor import About, Assignment, Extractor
from xfer.cluster.seats import Node, Seat, live_nodes, seats, words
from xfer.engine.inputs import Stop
from xfer.errors import DataError, InterruptedRun, UsageError, XferError

POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0  # how often to look for nodes that came, or places that got free
START_SECONDS = 300.0  # without any process that could start
CONCURRENT_CALLS = 4  # of one actor: computing, being asked how far it is, being told to stop


@dataclass(eq=False)
class Member:
    """An actor. `doing` is the call whose answer `ref` will be, or '' while it waits; `opened` the number of the store it turned to."""

    actor: Any
    seat: Seat
    doing: str = ""
    ref: Any = None
    about: About | None = None
    opened: int = 0

    @property
    def node(self) -> Node:
        return self.seat.node


class Crew:
    """All actors while a pool lasts. `on_lost(member)` hears of each that is gone, before anything is raised for it."""

    def __init__(
        self,
        *,
        assign: Callable[[Seat], Assignment],
        on_lost: Callable[[Member], None],
        actors: int | None,
        cpus_per_actor: float | None,
        gpus_per_actor: float,
        only: str | None,
        max_failures: int,
        warn: Callable[[str], None],
        stop: Stop,
    ) -> None:
        self.assign, self.on_lost, self.warn, self.stop = assign, on_lost, warn, stop
        self.actors, self.cpus, self.gpus = actors, cpus_per_actor, gpus_per_actor
        self.only, self.max_failures = only, max_failures
        self.members: list[Member] = []
        self.about: About | None = None  # what all must be like
        self.only_on: set[str] | None = None  # nodes; None: all, those that come later too
        self._refused: set[str] = set()  # nodes of another device class
        self._lost_actors, self._lost_nodes = 0, set[str]()
        self._looked_at = self._had_members_at = time.monotonic() - LOOK_SECONDS

    @property
    def n_lost(self) -> int:
        """Losses: a node that took several actors with it counts once."""
        return self._lost_actors + len(self._lost_nodes)

    def gather(self) -> None:
        """Starts all, and sees that they are alike before any of them computes. Raises UsageError, DataError."""
        began = time.monotonic()
        while not self.members or any(member.doing == "start" for member in self.members):
            self.top_up()
            self.answers()
            if self.stop():
                raise InterruptedRun("stopped before features were extracted")
            if time.monotonic() - began > START_SECONDS:
                break  # those that started go on alone, the others join when they can
        started = {member: member.about for member in self.members if member.about}
        if not started:
            raise UsageError(
                f"cluster: no extraction worker could start within {START_SECONDS:g} s; each needs {words(self.cpus or 1, self.gpus)}",
                hint="do other jobs hold what the cluster has? `ray status` shows it",
            )
        kind = one_kind({member.node.label: about.kind for member, about in started.items()}, only=self.only)
        self.about = next(about for about in started.values() if about.kind == kind)
        for member in started:
            self._compare(member)

    def top_up(self) -> None:
        """Starts actors where there is a place for one: at first, after losses, on nodes that came."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        nodes = [node for node in live_nodes() if node.id not in self._refused and (self.only_on is None or node.id in self.only_on)]
        taken = {(member.node.id, member.seat.index) for member in self.members}
        try:
            places = seats(nodes, actors=self.actors, cpus_per_actor=self.cpus, gpus_per_actor=self.gpus)
        except UsageError:
            if self.about is None:
                raise
            places = []  # such a node was there before, and may come back
        for seat in places:
            if (seat.node.id, seat.index) not in taken and (self.actors is None or len(self.members) < self.actors):
                self.members.append(self._start(seat))
        if self.members:
            self._had_members_at = now
        elif now - self._had_members_at > START_SECONDS:
            raise XferError("no node is left that could extract features", hint="what is in the store is kept; start it again when one is")

    def call(self, member: Member, method: str, *arguments: Any) -> None:
        """Asks a member that waits for something; the answer comes through `answers`."""
        member.doing, member.ref = method, getattr(member.actor, method).remote(*arguments)

    def answers(self) -> list[tuple[Member, str, Any]]:
        """(member, what it was asked for, its answer) that came within a moment; they wait again. Raises what they raised."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        asked = {member.ref: member for member in self.members if member.doing}
        if not asked:
            time.sleep(POLL_SECONDS)
            return []
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=POLL_SECONDS)
        came = []
        for ref in ready:
            member = asked[ref]
            method, member.doing, member.ref = member.doing, "", None
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                raise failure(member.node.label, error.cause) from None
            except RayError as error:
                self._lose(member, loss(str(error)))
                continue
            if method != "start":
                came.append((member, method, answer))
                continue
            member.about = answer
            if self.about is not None:
                self._compare(member)
        return came

    def heard(self) -> dict[Member, int]:
        """How many rows those that compute have done by now; those that don't answer at once are left out."""
        import ray
        from ray.exceptions import RayError

        asked = {member.actor.heard.remote(): member for member in self.members if member.doing == "compute"}
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)[0] if asked else []
        said = {}
        for ref in ready:
            try:
                said[asked[ref]] = int(ray.get(ref))
            except RayError:  # it is lost: the answer to its real work will say so
                continue
        return said

    def tell_stop(self) -> None:
        """Lets those that compute end after the batch in work."""
        for member in self.members:
            if member.doing == "compute":
                member.actor.stop.remote()

    def dismiss(self, member: Member) -> None:
        """Ends an actor. What it has not committed is as if it had never been."""
        import ray

        if member in self.members:
            self.members.remove(member)
        ray.kill(member.actor, no_restart=True)

    def _start(self, seat: Seat) -> Member:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = ray.remote(Extractor).options(  # type: ignore[attr-defined]
            num_cpus=seat.cpus,
            num_gpus=seat.gpus,
            max_concurrency=CONCURRENT_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node.id, soft=False),
        )
        member = Member(actor.remote(self.assign(seat)), seat)
        self.call(member, "start")
        return member

    def _compare(self, member: Member) -> None:
        """Dismisses an actor that started, of another device class; raises UsageError where one of the same would compute other rows."""
        assert self.about is not None
        assert member.about is not None
        if member.about.kind != self.about.kind:
            self._refused.add(member.node.id)
            self.dismiss(member)
            self.warn(f"node {member.node.label} computes on {member.about.kind}, the others on {self.about.kind}: it is left out")
            return
        check_alike(member.node.label, member.about, self.about)

    def _lose(self, member: Member, reason: str) -> None:
        self.dismiss(member)
        self.on_lost(member)
        if any(node.id == member.node.id for node in live_nodes()):
            self._lost_actors += 1
        else:
            self._lost_nodes.add(member.node.id)
        if self.n_lost > self.max_failures:
            raise XferError(
                f"{self.n_lost} extraction workers were lost, and cluster.max_failures is {self.max_failures}; "
                f"the last one, on node {member.node.label}: {reason}",
                hint="what is in the store is kept, and the next start goes on from there",
            )
        self.warn(f"an extraction worker on node {member.node.label} is lost ({reason}); others take over its shards")


def one_kind(kinds: Mapping[str, str], *, only: str | None = None) -> str:
    """The device class of a pool, from the classes by node; raises UsageError where there are several, or none that is `only`.

    Rows that different classes compute differ in their last bits, and a store holds rows of one.
    """
    found = sorted({*kinds.values()})
    listed = "\n".join(f"  {kind}: node {', '.join(node for node in sorted(kinds) if kinds[node] == kind)}" for kind in found)
    if only is not None:
        if only not in found:
            raise UsageError(
                f"cluster: no node computes on {only}; there are\n{listed}", hint="choose one of these, or give the cluster such a node"
            )
        return only
    if len(found) > 1:
        raise UsageError(
            f"cluster: features are computed by one class of device, and there are {len(found)}:\n{listed}",
            hint="let the cluster have nodes of one class; with cluster.gpus_per_worker: 1, nodes without a GPU are left out",
        )
    return found[0]


def check_alike(label: str, about: About, others: About) -> None:
    """Raises UsageError where a node's libraries or images are not those of the others."""
    names = sorted({*about.versions, *others.versions})
    pairs = [(name, about.versions.get(name, "absent"), others.versions.get(name, "absent")) for name in names]
    differing = ", ".join(f"{name} {own} instead of {other}" for name, own, other in pairs if own != other)
    if differing:
        raise UsageError(f"cluster: node {label} has {differing}", hint="install the same versions on all nodes")
    if about.sample != others.sample:
        raise DataError(f"the images on node {label} are not those on the other nodes", hint="keep them in one place that every node sees")


def failure(label: str, cause: BaseException) -> XferError:
    """What to raise for an error inside an actor: ours as it is, with the node; any other in one sentence."""
    if isinstance(cause, XferError):
        cause.args = (f"node {label}: {cause.message}",)
        return cause
    return XferError(
        f"node {label}: extraction failed: {type(cause).__name__}: {first_line(str(cause))}",
        hint="the worker's log in Ray's session folder has the whole traceback; what is in the store is kept",
    )


def loss(text: str) -> str:
    """Why an actor is gone, from Ray's own words: what its constructor raised stands in their last line."""
    first = first_line(text)
    return text.strip().splitlines()[-1].strip() if "creation task" in first else first


def first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].rstrip(".")
