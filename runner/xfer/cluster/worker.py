"""What each worker of a Ray Train run does: joins the team, and goes through the run as any process would."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xfer.backends.backend import backend_named
from xfer.cluster.desk import DeskReporter, Watch
from xfer.cluster.mirror import Mirror
from xfer.cluster.node_plan import on_this_node
from xfer.cluster.shared_store import opener
from xfer.cluster.storage import Storage
from xfer.engine.bundle import Bundle, Follower
from xfer.engine.reporter import Reporter, Silent
from xfer.engine.runner import Run
from xfer.errors import XferError
from xfer.plan.plan import Plan

GRACE_SECONDS = 10.0  # for the other ranks to meet the same error, before a rank that waits for a lost one ends itself


@dataclass(frozen=True)
class Orders:
    """What a worker is told. `bundle` is the bundle's folder; `mirrored` where it is copied to, for storage that is no file system."""

    plan: str
    bundle: str
    storage: Storage | None
    mirrored: Storage | None
    drivers_cache: str | None
    threads: int
    extracted: tuple[int, float]  # images that the pool computed for this run, and the seconds it took


class MirroredBundle(Bundle):
    """A bundle in a local folder whose every step is copied to where the driver and a later worker find it."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        super().__init__(folder)
        self._mirror = mirror

    def checkpoint(self, state: Any, progress: Any) -> None:
        super().checkpoint(state, progress)
        self._mirror.push()

    def write_result(self, result: Any) -> None:
        super().write_result(result)
        self._mirror.push()


def work(config: dict[str, Any]) -> None:
    """Ray Train's training function. An error of ours is left at the desk: it ends the run, and no restart would mend it. Whatever else
    is raised, a lost worker's silence too, makes Ray Train start the group anew, which goes on from the last checkpoint."""
    import ray
    from ray import train

    orders: Orders = config["orders"]
    desk = config["desk"]
    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if not ray.get(desk.started.remote(rank, size)):
        return
    watch = Watch(desk, on_over=lambda: os._exit(1), grace=GRACE_SECONDS)
    reporter: Reporter = DeskReporter(desk) if rank == 0 else Silent()
    told = Warnings(reporter)
    try:
        prepared(orders, rank, size, reporter=reporter, watch=watch).execute()
    except XferError as error:
        ray.get(desk.finish.remote(error))
    else:
        if rank == 0:
            ray.get(desk.finish.remote())
    finally:
        told.close()
        if isinstance(reporter, DeskReporter):
            reporter.flush()
        watch.close()


def prepared(orders: Orders, rank: int, size: int, *, reporter: Reporter, watch: Watch) -> Run:
    """This rank's Run, its team joined."""
    plan = on_this_node(Plan.model_validate_json(orders.plan), drivers_cache=orders.drivers_cache)
    backend = backend_named(plan.backend)
    team = backend.join(rank, size, device=plan.runtime.device, threads=orders.threads)

    def stop() -> bool:
        return watch.stopped

    folder, storage = Path(orders.bundle), orders.storage and orders.storage.patient()
    bundle: Bundle = Follower(folder, plan)
    if rank == 0:
        bundle = opened(folder, orders.mirrored and orders.mirrored.patient())
        bundle.plan = plan
    return Run(
        bundle,
        reporter=reporter,
        stop=stop,
        team=team,
        backend=backend,
        open_store=opener(storage, rank=rank, size=size, stop=stop),
        notice=Notices(),
        extracted=orders.extracted,
    )


def opened(folder: Path, mirrored: Storage | None) -> Bundle:
    """The bundle for its writer; from storage that is no file system, its newest whole is brought to this node first."""
    if mirrored is None:
        return Bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(folder, mirrored)
    mirror.fetch()
    return MirroredBundle(folder, mirror)


class Warnings(logging.Handler):
    """Passes on what is logged about storage and features, until it is closed: the person is elsewhere."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter
        logging.getLogger("xfer").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn(record.getMessage())

    def close(self) -> None:
        logging.getLogger("xfer").removeHandler(self)
        super().close()


class Notices:
    """Whether a node of this run is about to be taken away, said once for each such notice. All ranks must ask alike."""

    def __init__(self) -> None:
        self._known: str | None = None

    def __call__(self) -> bool:
        from ray import train

        info = train.get_preemption_info()
        told = repr(info) if info is not None else None
        new, self._known = told is not None and told != self._known, told
        return new
