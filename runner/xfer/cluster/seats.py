"""Where the processes of an extraction pool may sit: so many on each node, each with its share of processors and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xfer.errors import UsageError


@dataclass(frozen=True)
class Node:
    """A live node of the cluster. `label` is for people."""

    id: str
    label: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Seat:
    """Place number `index` on a node, with what Ray is asked for and the threads that the process uses."""

    node: Node
    index: int
    cpus: float
    gpus: float
    threads: int


def live_nodes() -> list[Node]:
    """The nodes that Ray has now, by id. Two of one address (a test's) are told apart by their ids."""
    import ray

    alive = sorted((found for found in ray.nodes() if found["Alive"]), key=lambda found: found["NodeID"])
    return nodes_of(alive)


def nodes_of(found: Sequence[Mapping[str, Any]]) -> list[Node]:
    """From Ray's own words."""
    addresses = Counter(each["NodeManagerAddress"] for each in found)
    nodes = []
    for each in found:
        address, resources = each["NodeManagerAddress"], each["Resources"]
        label = address if addresses[address] == 1 else f"{address} ({each['NodeID'][:8]})"
        nodes.append(Node(each["NodeID"], label, resources.get("CPU", 0.0), resources.get("GPU", 0.0)))
    return nodes


def seats(nodes: Sequence[Node], *, actors: int | None, cpus_per_actor: float | None, gpus_per_actor: float) -> list[Seat]:
    """At most `actors` seats, in turn over the nodes; raises UsageError where no node has what one needs.

    By default a process for each share of a GPU, and on nodes that compute on processors one for each node with all of its threads: Ray is
    then asked for one processor, so that the pool starts though another part of the run holds some.
    """
    asked = 1.0 if cpus_per_actor is None else cpus_per_actor
    room = {node.id: capacity(node, asked=asked, alone=cpus_per_actor is None, gpus=gpus_per_actor) for node in nodes}
    if not any(room.values()):
        raise UsageError(
            f"cluster: no node has what one extraction worker needs, {words(asked, gpus_per_actor)}; there are: {kinds(nodes)}",
            hint="ask for less with cluster.gpus_per_worker, or give the cluster such a node",
        )
    chosen = []
    for index in range(max(room.values())):
        chosen += [(node, index) for node in nodes if index < room[node.id]]
    chosen = chosen[:actors]
    on_node = Counter(node.id for node, _ in chosen)
    return [
        Seat(node, index, asked, gpus_per_actor, max(1, int(cpus_per_actor or node.cpus // on_node[node.id]))) for node, index in chosen
    ]


def capacity(node: Node, *, asked: float, alone: bool, gpus: float) -> int:
    """How many processes a node holds; one that computes on processors may be `alone` there."""
    fitting = room(node.cpus, node.gpus, asked, gpus)
    return min(fitting, 1) if alone and not gpus else fitting


def room(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    """How many processes of so many CPUs and GPUs a node holds.

    >>> room(8.0, 2.0, 2.0, 1.0), room(8.0, 0.0, 3.0, 0.0), room(1.0, 0.3, 1.0, 0.1)
    (2, 2, 1)
    """
    by_cpus = int(node_cpus // cpus)
    return min(by_cpus, int(node_gpus / gpus + 1e-9)) if gpus else by_cpus


def words(cpus: float, gpus: float) -> str:
    """Resources for people.

    >>> words(1.0, 0.0), words(2.0, 0.5)
    ('1 CPU', '2 CPU and 0.5 GPU')
    """
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def kinds(nodes: Sequence[Node]) -> str:
    """What kinds of nodes there are."""
    counted = Counter(words(node.cpus, node.gpus) for node in nodes)
    return ", ".join(f"{count} of {kind}" for kind, count in sorted(counted.items())) or "none"
