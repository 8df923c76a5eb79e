"""Room for the workers of a run: what the live nodes hold, and waiting for a cluster that grows by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from xfer.cluster.seats import Node, live_nodes, room, words
from xfer.cluster.storage import Storage, require_shared
from xfer.engine.inputs import Stop
from xfer.engine.reporter import Reporter
from xfer.errors import InterruptedRun, UsageError, XferError
from xfer.plan.plan import ClusterPlan

POLL_SECONDS = 1.0


def gather(cluster: ClusterPlan, storage: Storage | None, *, reporter: Reporter, stop: Stop) -> tuple[list[Node], float]:
    """(live nodes that hold the fewest workers that the recipe allows, GPUs of each worker). Where those that are up don't, and the recipe
    gives the cluster time to grow, Ray is told what is needed and the nodes are waited for.

    Raises UsageError at once, with what is there and what was asked, where there is no such time (Ray would wait for ever) or several
    nodes would have no storage in common; XferError where nothing came in time; InterruptedRun where `stop` says so meanwhile.
    """
    nodes = live_nodes()
    gpus = gpus_of_each(cluster, nodes)
    fewest, now = cluster.workers[0], holds(nodes, gpus)
    if now >= fewest:
        require_shared(storage, len(nodes))
        return nodes, gpus
    if not cluster.startup_seconds or cluster.address is None:  # a Ray of its own has nothing to grow by
        raise too_small(cluster, nodes, gpus)
    require_shared(storage, len(nodes) + 1)
    reporter.note(f"the cluster has room for {now} of {fewest} workers with {words(1, gpus)} each; waiting for it to grow")
    began = time.monotonic()
    _ask(cluster, gpus, stop)
    nodes = live_nodes()
    reporter.note(f"the cluster has grown, in {time.monotonic() - began:.0f} s: {listed(nodes)}")
    return nodes, gpus


def _ask(cluster: ClusterPlan, gpus: float, stop: Stop) -> None:
    """Returns once the fewest workers have found a place. A placement group is the demand that Ray's autoscaler sees: it ends with this
    process, whatever happens, and what others ask of the autoscaler stands."""
    from ray.util import placement_group, remove_placement_group

    fewest = cluster.workers[0]
    needed = placement_group([{"CPU": 1.0, **({"GPU": gpus} if gpus else {})}] * fewest, strategy="PACK")
    deadline = time.monotonic() + cluster.startup_seconds
    try:
        while not needed.wait(POLL_SECONDS):
            if stop():
                raise InterruptedRun("stopped while the cluster was to grow")
            if time.monotonic() > deadline:
                raise XferError(
                    f"the cluster did not get room for {_workers(fewest, gpus)} within cluster.startup_timeout, "
                    f"{cluster.startup_seconds:g} s; it has: {listed(live_nodes())}",
                    hint="`ray status` on its head says what its autoscaler waits for, or that there is none",
                )
    finally:
        remove_placement_group(needed)


def gpus_of_each(cluster: ClusterPlan, nodes: Sequence[Node]) -> float:
    """GPUs of a worker: where the recipe leaves it open, one if any node has one."""
    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0


def holds(nodes: Sequence[Node], gpus: float) -> int:
    """How many workers of one CPU find a place on the nodes: none straddles two."""
    return sum(room(node.cpus, node.gpus, 1.0, gpus) for node in nodes)


def share(nodes: Sequence[Node], cluster: ClusterPlan, gpus: float) -> tuple[int, float]:
    """(how many workers fit now, CPUs that each is given): first as many workers as fit, up to the most that the recipe allows, then as
    many CPUs as all of them can have alike. Raises UsageError where not even the fewest fit."""
    fewest, most = cluster.workers
    workers = min(most, holds(nodes, gpus))
    if workers < fewest:
        raise too_small(cluster, nodes, gpus)
    sizes = {float(int(node.cpus // n)) for node in nodes for n in range(1, workers + 1)} - {0.0}
    return workers, max(cpus for cpus in sizes if sum(room(node.cpus, node.gpus, cpus, gpus) for node in nodes) >= workers)


def listed(nodes: Sequence[Node]) -> str:
    """Nodes for people."""
    return ", ".join(f"{node.label} {words(node.cpus, node.gpus)}" for node in nodes) or "no node"


def too_small(cluster: ClusterPlan, nodes: Sequence[Node], gpus: float) -> UsageError:
    """What is there and what was asked."""
    return UsageError(
        f"cluster.workers: {_workers(cluster.workers[0], gpus)} were asked for, and the cluster has: {listed(nodes)}",
        hint="ask for fewer (cluster.workers, cluster.gpus_per_worker), or give the cluster more nodes; where it grows by itself, say how "
        "long that may take: cluster.startup_timeout=30min",
    )


def _workers(n: int, gpus: float) -> str:
    return f"{n} {'worker' if n == 1 else 'workers'} with {words(1, gpus)} each"
