"""The recipe's `cluster:` section, decided."""

from __future__ import annotations

import os

from xfer.compile.collector import Collector
from xfer.plan.plan import ClusterPlan
from xfer.recipe.quantities import parse_seconds
from xfer.recipe.schema import Recipe


def plan_cluster(recipe: Recipe) -> ClusterPlan | None:
    """None for a run in one process: one worker, and no cluster named."""
    cluster = recipe.cluster
    if workers(recipe) == (1, 1) and cluster.address is None:
        return None
    storage = cluster.storage
    if storage is not None and "://" not in storage:
        storage = os.path.abspath(os.path.expanduser(storage))
    return ClusterPlan(
        workers=workers(recipe),
        gpus_per_worker=gpus_per_worker(recipe),
        address=cluster.address,
        storage=storage,
        max_failures=cluster.max_failures,
        startup_seconds=startup_seconds(recipe),
    )


def workers(recipe: Recipe) -> tuple[int, int]:
    """The fewest and the most."""
    found = recipe.cluster.workers
    return (found, found) if isinstance(found, int) else (found.min, found.max)


def gpus_per_worker(recipe: Recipe) -> float | None:
    """None where the cluster decides: one where it has any. None are asked for where a run is to be on processors."""
    found = recipe.cluster.gpus_per_worker
    if found != "auto":
        return float(found)
    return 0.0 if recipe.runtime.device == "cpu" else None


def startup_seconds(recipe: Recipe) -> float:
    """So long the cluster may take to grow; 0 where it has to have room at once."""
    found = recipe.cluster.startup_timeout
    return 0.0 if found is None else parse_seconds(found)


def check_cluster(recipe: Recipe, *, backend: str | None, collector: Collector) -> None:
    """Reports what no cluster can do."""
    fewest, most = workers(recipe)
    if backend == "tensorflow" and fewest != most:
        collector.add("cluster.workers", f"an elastic number of workers is for PyTorch; with Keras give one number, such as {most}")
    gpus = gpus_per_worker(recipe)
    if backend == "tensorflow" and most > 1 and gpus is not None and 0 < gpus < 1:
        collector.add("cluster.gpus_per_worker", f"Keras workers need a GPU each, or none: write 1 or 0, not {gpus:g}")
    if most > recipe.target.batch_size:
        collector.add("cluster.workers", f"{most} workers can't share batches of {recipe.target.batch_size} images (target.batch_size)")
