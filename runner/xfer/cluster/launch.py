"""A run spread over a cluster, from the driver's side: what it needs is checked, features are extracted by a pool, Ray Train's workers go
through the phases, and what they tell is passed on."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xfer.cluster.connect import connected
from xfer.cluster.crew import first_line
from xfer.cluster.desk import open_desk, pass_on
from xfer.cluster.extraction_pool import Figures, fill
from xfer.cluster.growth import gather, share
from xfer.cluster.mirror import FIGURES, WORDS, Mirror
from xfer.cluster.node_plan import CACHE_VARIABLE
from xfer.cluster.seats import Node, live_nodes, room, words
from xfer.cluster.storage import EVERYWHERE, Storage
from xfer.cluster.worker import Orders, work
from xfer.engine.bundle import Bundle, load_plugins
from xfer.engine.files import write_json
from xfer.engine.inputs import Stop
from xfer.engine.reporter import Reporter
from xfer.errors import DiskFullError, InterruptedRun, StoreError, UsageError, XferError
from xfer.plan.plan import ClusterPlan, Plan

POLL_SECONDS = 0.3
ROOM_SECONDS = 10.0  # how often to look whether the nodes still hold the workers
DRIVERS_CLAIM = ".driver"


def bundle_place(plan: Plan, run_id: str, *, out: Path | None, runs: Path) -> tuple[Path, Storage | None]:
    """(the bundle's folder here, where it is copied to): within the storage where that is a folder that every node sees; in a folder
    here, mirrored, where the storage is an object store."""
    storage = Storage.of(plan.cluster.storage) if plan.cluster and plan.cluster.storage else None
    if storage is None:
        return out or runs / plan.name / run_id, None
    if storage.is_url:
        return out or runs / plan.name / run_id, storage.inside("runs", plan.name, run_id)
    return out or storage.path / "runs" / plan.name / run_id, None


def run_on_cluster(bundle: Bundle, *, mirrored: Storage | None, reporter: Reporter, stop: Stop) -> dict[str, Any]:
    """Runs a bundle, new or resumed, on the cluster that its plan names; `result.json`'s content.

    Raises UsageError before any work where the cluster lacks what was asked for, or another driver runs the bundle, and what a run in one
    process raises.
    """
    cluster = bundle.plan.cluster
    assert cluster is not None
    bundle.hold(DRIVERS_CLAIM)
    try:
        load_plugins(bundle.plan)  # a run that is gone on with was compiled in another process
        words = bundle.folder / WORDS
        with connected(cluster.address, words=words) as logs:
            words.write_text(f"Ray's own logs: {logs}\n")
            reporter.note(f"what Ray says: {words}")
            return Launch(bundle, cluster, mirrored=mirrored, reporter=reporter, stop=stop).run()
    finally:
        bundle.let_go()


class Launch:
    """One run on the Ray that this process is connected to."""

    def __init__(self, bundle: Bundle, cluster: ClusterPlan, *, mirrored: Storage | None, reporter: Reporter, stop: Stop) -> None:
        self.bundle, self.cluster, self.mirrored, self.reporter, self.stop = bundle, cluster, mirrored, reporter, stop
        self.storage = Storage.of(cluster.storage) if cluster.storage else None
        self.plan = bundle.plan
        self._mirror: Mirror | None = None  # once the bundle stands there
        self._room_at = time.monotonic()
        self._lacks_room = False
        self._scratch = tempfile.TemporaryDirectory(prefix="xfer-ray-train-", ignore_cleanup_errors=True)

    def run(self) -> dict[str, Any]:
        from ray.exceptions import RayError

        go_on = f"go on with: xfer run --resume {self.bundle.folder}"
        try:
            return self._run()
        except RayError as error:
            lost = XferError(f"this process has lost the Ray that it was connected to: {first_line(str(error))}")
            lost.hint = f"what was done is kept; {go_on}"
            self._ended(lost)
            raise lost from error
        except BaseException as error:
            if isinstance(error, InterruptedRun):
                error.hint = go_on
            if isinstance(error, StoreError) and error.hint == EVERYWHERE:  # it was reached when the run began
                error.hint = f"what was done is kept; when it can be reached again, {go_on}"
            self._ended(error)
            raise

    def _ended(self, error: BaseException) -> None:
        """Leave word of it in the bundle: the workers may have been lost before they could, or never have begun."""
        with suppress(StoreError, DiskFullError):  # what ended the run is what is told
            try:
                if self._mirror is not None:
                    self._mirror.storage = self._mirror.storage.patient(0)
                    self._mirror.fetch()
            except (StoreError, DiskFullError):
                self._mirror = None  # what the workers put there is later than what is here
            self.bundle.ended(error)
            if self._mirror is not None:
                self._mirror.push()

    def _run(self) -> dict[str, Any]:
        nodes, gpus = self._gather()
        workers, cpus = share(nodes, self.cluster, gpus)
        if self.storage is None:  # a node that comes later would see nothing of the bundle
            self.cluster = self.cluster.model_copy(update={"workers": (self.cluster.workers[0], workers)})
        if self.storage is not None:
            self.storage.probe()
        if self.plan.runtime.device.partition(":")[2]:
            raise UsageError("runtime.device: a run on a cluster is given its devices by Ray", hint="write cuda, without a number")
        if self.mirrored is not None:
            mirror = Mirror(self.bundle.folder, self.mirrored)
            mirror.fetch()  # a run that is gone on with: its workers, elsewhere, came further than what is here
            mirror.push()
            self._mirror, mirror.storage = mirror, self.mirrored.patient()
        filled = fill(
            self.plan,
            storage=self.storage,
            gpus_per_actor=gpus,
            max_failures=self.cluster.max_failures,
            reporter=self.reporter,
            stop=self.stop,
        )
        extracted = sum(sum(each.computed.values()) for each in filled.values()), sum(each.seconds for each in filled.values())
        told = self._train(cpus, gpus, extracted)
        if self._mirror is not None:
            self._mirror.fetch()
        self._figures(filled, nodes, told)
        return self.bundle.result()

    def _gather(self) -> tuple[list[Node], float]:
        try:
            return gather(self.cluster, self.storage, reporter=self.reporter, stop=self.stop)
        except UsageError:
            raise
        except XferError as ended:  # stopped, or not grown in time
            go_on = f"go on with: xfer run --resume {self.bundle.folder}"
            ended.hint = f"{ended.hint}; {go_on}" if ended.hint else go_on
            raise

    def _train(self, cpus: float, gpus: float, extracted: tuple[int, float]) -> list[int]:
        """Ray Train's part, in a thread, while words from the workers are passed on. The sizes of the groups that worked."""
        desk = open_desk()
        failures: list[BaseException] = []

        def fit() -> None:
            from ray.exceptions import RayError
            from ray.train import TrainingFailedError

            try:
                self._trainer(desk, cpus, gpus, extracted).fit()
            except (RayError, TrainingFailedError, RuntimeError, ValueError, OSError) as error:
                failures.append(error)

        fitting = threading.Thread(target=fit, daemon=True, name="xfer-fit")
        fitting.start()
        asked = False
        while fitting.is_alive():
            fitting.join(POLL_SECONDS)
            asked = self._look(desk, asked)
            if time.monotonic() - self._room_at > ROOM_SECONDS and self._is_stranded(desk, cpus, gpus):
                break
        self._look(desk, asked)
        return self._end(desk, failures)

    def _look(self, desk: Any, asked: bool) -> bool:
        import ray

        pass_on(ray.get(desk.heard.remote()), self.reporter)
        if self.stop() and not asked:
            ray.get(desk.stop.remote())
        return self.stop()

    def _is_stranded(self, desk: Any, cpus: float, gpus: float) -> bool:
        """Whether the run is over and Ray Train, which does not know, waits for nodes in place of lost ones: it does so for ever. While the
        run is not over that is told once, and a stop, which no worker is there to hear of, raises InterruptedRun."""
        import ray

        self._room_at = time.monotonic()
        lacked, fewest = self._lacks_room, self.cluster.workers[0]
        now = sum(room(node.cpus, node.gpus, cpus, gpus) for node in live_nodes())
        self._lacks_room = now < fewest
        if not self._lacks_room:
            return False
        if ray.get(desk.state.remote())[0]:
            return True
        if self.stop():
            raise InterruptedRun("stopped while it waited for nodes in place of lost ones")
        if not lacked:
            self.reporter.warn(
                f"nodes were lost, and the others have room for {now} of {fewest} workers with {words(cpus, gpus)} each: the run waits for "
                f"more; or stop it, and share out anew what is left: xfer run --resume {self.bundle.folder}"
            )
        return False

    def _end(self, desk: Any, failures: list[BaseException]) -> list[int]:
        import ray

        over, error, starts = ray.get(desk.end.remote())
        if error is not None:
            raise error
        if not over:
            cause = failures[0] if failures else None
            raise XferError(
                f"the workers were lost more often than cluster.max_failures = {self.cluster.max_failures} allows: {first_words(cause)}",
                hint=f"what was done is kept; go on with: xfer run --resume {self.bundle.folder}",
            ) from cause
        return list(starts)

    def _trainer(self, desk: Any, cpus: float, gpus: float, extracted: tuple[int, float]) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        fewest, most = self.cluster.workers
        scaling = ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]  # its own annotation lags behind
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        )
        # Ray Train keeps nothing for us (bundle and checkpoints are our own), but wants a folder of a name that no earlier run had.
        place = self._scratch.name if self.storage is None or self.storage.is_url else str(self.storage.path)
        run = RunConfig(
            name=f"ray-train-{self.plan.name}-{self.bundle.folder.name}-{os.getpid()}",
            storage_path=place,
            failure_config=FailureConfig(max_failures=self.cluster.max_failures),
        )
        orders = Orders(
            plan=self.plan.model_dump_json(),
            bundle=str(self.bundle.folder),
            storage=self.storage,
            mirrored=self.mirrored,
            drivers_cache=os.environ.get(CACHE_VARIABLE),
            threads=max(1, int(cpus)),
            extracted=extracted,
        )
        config = {"orders": orders, "desk": desk}
        if self.plan.backend == "tensorflow":
            from ray.train.tensorflow import TensorflowTrainer

            return TensorflowTrainer(work, train_loop_config=config, scaling_config=scaling, run_config=run)
        from ray.train.torch import TorchTrainer

        return TorchTrainer(work, train_loop_config=config, scaling_config=scaling, run_config=run)

    def _figures(self, filled: dict[str, Figures], nodes: list[Node], starts: list[int]) -> None:
        """How the run was spread, beside its result."""
        write_json(
            self.bundle.folder / FIGURES,
            {
                "nodes": [{"label": node.label, "cpus": node.cpus, "gpus": node.gpus} for node in nodes],
                "groups": starts,
                "extraction": {title: asdict(figures) for title, figures in filled.items()},
            },
        )


def first_words(error: BaseException | None) -> str:
    """Of what went wrong, without a trace."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] if error is not None else []
    return lines[-1].strip() if lines else "Ray gives no reason"
