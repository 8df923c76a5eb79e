"""A run spread over a cluster, from the driver's side: what it needs is checked, features are extracted by a pool, Ray Train's workers go
through the phases, and what they tell is passed on."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xfer.cluster.connect import connected, share
from xfer.cluster.desk import open_desk, pass_on
from xfer.cluster.extraction_pool import Figures, fill
from xfer.cluster.mirror import Mirror
from xfer.cluster.node_plan import CACHE_VARIABLE, for_workers
from xfer.cluster.seats import Node, live_nodes
from xfer.cluster.storage import Storage, require_shared
from xfer.cluster.worker import Orders, work
from xfer.engine.bundle import Bundle
from xfer.engine.files import write_json
from xfer.engine.inputs import Stop
from xfer.engine.reporter import Reporter
from xfer.errors import InterruptedRun, UsageError, XferError
from xfer.plan.plan import ClusterPlan, Plan

POLL_SECONDS = 0.3
FIGURES = "cluster.json"


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

    Raises UsageError before any work where the cluster lacks what was asked for, and what a run in one process raises.
    """
    cluster = bundle.plan.cluster
    assert cluster is not None
    words = bundle.folder / "ray.log"
    with connected(cluster.address, words=words) as logs:
        words.write_text(f"Ray's own logs: {logs}\n")
        reporter.note(f"what Ray says: {words}")
        return Launch(bundle, cluster, mirrored=mirrored, reporter=reporter, stop=stop).run()


class Launch:
    """One run on the Ray that this process is connected to."""

    def __init__(self, bundle: Bundle, cluster: ClusterPlan, *, mirrored: Storage | None, reporter: Reporter, stop: Stop) -> None:
        self.bundle, self.cluster, self.mirrored, self.reporter, self.stop = bundle, cluster, mirrored, reporter, stop
        self.storage = Storage.of(cluster.storage) if cluster.storage else None
        self.plan = for_workers(bundle.plan)
        self._scratch = tempfile.TemporaryDirectory(prefix="xfer-ray-train-", ignore_cleanup_errors=True)

    def run(self) -> dict[str, Any]:
        nodes = live_nodes()
        cpus, gpus = share(nodes, self.cluster)
        require_shared(self.storage, len(nodes))
        if self.storage is not None:
            self.storage.probe()
        if self.plan.runtime.device.partition(":")[2]:
            raise UsageError("runtime.device: a run on a cluster is given its devices by Ray", hint="write cuda, without a number")
        mirror = Mirror(self.bundle.folder, self.mirrored) if self.mirrored is not None else None
        if mirror is not None:
            mirror.push()
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
        if mirror is not None:
            mirror.fetch()
        self._figures(filled, nodes, told)
        return self.bundle.result()

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
        self._look(desk, asked)
        return self._end(desk, failures)

    def _look(self, desk: Any, asked: bool) -> bool:
        import ray

        pass_on(ray.get(desk.heard.remote()), self.reporter)
        if self.stop() and not asked:
            ray.get(desk.stop.remote())
        return self.stop()

    def _end(self, desk: Any, failures: list[BaseException]) -> list[int]:
        import ray

        over, error, starts = ray.get(desk.end.remote())
        if isinstance(error, InterruptedRun):
            error.hint = f"go on with: xfer run --resume {self.bundle.folder}"
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
