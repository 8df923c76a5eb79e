"""Runs a Plan to its end inside a bundle: features, phases, baselines, the one opening of the test set, the result."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from xfer.backends.backend import Backend, Network, Team, backend_named
from xfer.data.store import FeatureStore
from xfer.engine.baselines import Baselines, fit_baselines
from xfer.engine.bundle import Bundle, ending, load_plugins
from xfer.engine.downloads import fetch_dataset
from xfer.engine.files import room_for, write_atomic, write_json
from xfer.engine.inputs import Inputs, OpenStore, Stop, contents_digest
from xfer.engine.reporter import Reporter
from xfer.engine.target import Target
from xfer.engine.team import ALONE, from_first, gathered
from xfer.engine.training import PhaseRunner, Progress, predict
from xfer.engine.training_rows import TrainingRows
from xfer.engine.views import View
from xfer.errors import DataError, InterruptedRun, MemoryFullError, UsageError, XferError
from xfer.ops.metrics import classification, intervals
from xfer.plan.plan import InputPlan, PhasePlan
from xfer.sources.fetching import download
from xfer.sources.model_paths import model_content, model_path, refuse_another


class Run:
    """One run of a bundle, new or resumed. `execute` returns `result.json`'s content.

    In a `team` each rank has a Run; the first one's bundle is written, the others' are followers. `open_store` makes feature stores that
    the ranks fill together; `notice` says whether a node is about to go, so that a checkpoint is due, and is asked on all ranks alike;
    `extracted` is how many images others computed for this run before it began, and the seconds that took."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        reporter: Reporter,
        stop: Stop,
        team: Team = ALONE,
        backend: Backend | None = None,
        open_store: OpenStore = FeatureStore,
        notice: Callable[[], bool] = lambda: False,
        extracted: tuple[int, float] = (0, 0.0),
    ) -> None:
        self.bundle, self.plan, self.reporter, self.stop = bundle, bundle.plan, reporter, stop
        self.team, self.open_store, self.notice, self.extracted = team, open_store, notice, extracted
        self.started = time.monotonic()
        self.earlier = bundle.result().get("timing", {})
        self.backend: Backend = backend or backend_named(self.plan.backend)
        self.network: Network
        self.target: Target
        self.contents = ""
        self._inputs: dict[str, Inputs] = {}
        self._quarantined = False
        self.progress = Progress()

    def execute(self) -> dict[str, Any]:
        """Runs to the end; on any error, the result says what happened before the error goes on."""
        from_first(self.team, self.bundle.hold)
        if (done := from_first(self.team, self.bundle.result)).get("status") == "finished":
            return done  # killed after its last write, while the report was made: there is nothing left to do here
        self._result("running")
        try:
            self._prepare()
            self._baselines()
            self._phases()
            result = self._finish()
        except InterruptedRun as error:
            error.hint = f"go on with: xfer run --resume {self.bundle.folder}"
            self._result("interrupted", error=error.message)
            raise
        except XferError as error:
            self._result("failed", error=error.message)
            raise
        except BaseException as error:
            self._unforeseen(error)
            raise
        return result

    def _unforeseen(self, error: BaseException) -> None:
        """Note how the run ended that nobody had thought of; raises MemoryFullError where it was that."""
        if isinstance(error, MemoryError) or self.backend.is_memory_full(error):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            sizes = f"target.batch_size ({self.plan.data.batch_size})", f"runtime.extraction_batch ({self.plan.runtime.extraction_batch})"
            full = MemoryFullError(
                f"{self.plan.runtime.device} has too little memory: {first}",
                hint=f"start anew with a smaller {' or '.join(sizes)}; what fits of the features that were computed is used again",
            )
            self._result("failed", error=full.message)
            raise full from error
        status, words = ending(error)
        self._result(status, error=words)
        error.add_note(f"what the run had is kept; when the cause is gone, go on with: xfer run --resume {self.bundle.folder}")

    # before the first phase

    def _prepare(self) -> None:
        load_plugins(self.plan)
        lock = from_first(self.team, self.bundle.lock)
        refuse_another(self.plan.source, lock.get("model"), bundle=self.bundle.folder)
        weights = download(self.plan.source.weights, say=self.reporter.note)
        self.target = Target.open(self.plan.data, dataset=fetch_dataset(self.plan.data, say=self.reporter.note))
        for note in self.target.dataset.notes:
            self.reporter.warn(f"target: {note}")
        self.network = self.backend.build(self.plan, threads=lock.get("threads"))
        self.device = self.backend.device(self.plan.runtime.device)
        self.versions = self.backend.versions()
        self.contents = contents_digest(self.target, cache=Path(self.plan.runtime.cache))
        self._alike()
        if lock:
            self._compare(lock, weights)
        else:
            self.bundle.keep_model(model_path(self.plan.source))
            self.bundle.write_lock(self._lock(weights))

    def _alike(self) -> None:
        """Ranks that read other images, or compute on another kind of device, must not train together."""
        images, kinds = zip(*gathered(self.team, (self.contents, self.device.kind)), strict=True)
        odd = [rank for rank, contents in enumerate(images) if contents != images[0]]
        if odd:
            raise DataError(
                f"worker {odd[0]} reads other images than worker 0 under the same names",
                hint="every node must see the same files: put the data on storage that all of them share, or copy it anew",
            )
        if len(set(kinds)) > 1:
            raise UsageError(
                f"the workers compute on different devices: {', '.join(sorted(set(kinds)))}",
                hint="features of one run come from one kind of device: choose it with runtime.device, or leave the other nodes out",
            )

    def _lock(self, weights_file: Path | None) -> dict[str, Any]:
        return {
            "versions": {"python": platform.python_version(), "xfer": version("xfer-runner"), **self.versions},
            "device": self.device.name,
            "device_kind": self.device.kind,
            "threads": self.device.threads,
            "seed": self.plan.seed,
            "weights": {"location": self.plan.source.weights.location, "sha256": sha256(weights_file) if weights_file else None},
            "model": model_content(self.plan.source),
            "data": {"listing": self.plan.data.listing, "contents": self.contents},
            "plan": hashlib.sha256(self.plan.model_dump_json().encode()).hexdigest(),
        }

    def _compare(self, lock: dict[str, Any], weights_file: Path | None) -> None:
        """A resumed run must go on from the same weights, over the same data; other differences are said, since the last digits may
        differ."""
        if weights_file is not None and lock["weights"]["sha256"] != sha256(weights_file):
            raise UsageError(
                f"{weights_file} changed since the run began, so it can't go on from the same weights",
                hint="put the file back that the run had, or start a new run with the recipe",
            )
        if lock["data"]["contents"] != self.contents:
            raise UsageError(
                "the images changed since the run began, so it can't go on with the same numbers", hint="start a new run with the recipe"
            )
        now = {"python": platform.python_version(), "xfer": version("xfer-runner"), **self.versions, "device": self.device.kind}
        then = {**lock["versions"], "device": lock["device_kind"]}
        differing = [f"{name} {then[name]} → {now.get(name)}" for name in then if then[name] != now.get(name)]
        if differing:
            self.reporter.warn(f"resumed under other conditions, the last digits may differ: {', '.join(differing)}")

    # phases

    def inputs(self, place: InputPlan, view: View | None = None, *, rows: np.ndarray | None = None) -> Inputs:
        """The input at a place, prepared for `rows` (all, where they aren't given): missing ones computed, unreadable images left
        out."""
        key = place.model_dump_json() + (view.key if view else "")
        if key not in self._inputs:
            self._inputs[key] = self._input(place, view)
        made = self._inputs[key]
        bad = made.prepare(self.target.all_rows if rows is None else rows, reporter=self.reporter, stop=self.stop, team=self.team)
        if set(bad) - set(self.target.bad) or not self._quarantined:
            self.target.quarantine(bad, self.bundle)
            self._quarantined = True
        return made

    def _input(self, place: InputPlan, view: View | None) -> Inputs:
        return Inputs(
            self.plan,
            place,
            self.target,
            self.network,
            versions=self.versions,
            device=self.device,
            contents=self.contents,
            view=view,
            open_store=self.open_store,
        )

    def _baselines(self) -> Baselines:
        """Made before anything trains, or found where an earlier part of this run left them."""
        found = from_first(self.team, self.bundle.baselines)
        if found is None:
            features = self.inputs(self.plan.baseline)
            made = from_first(self.team, lambda: fit_baselines(features, self.target))
            self.bundle.keep_baselines({**asdict(made), "bad": self.target.bad})
            return made
        # A phase that draws from canvases reads no clean training image, so it would not hear of the unreadable ones again.
        self.target.quarantine({int(row): reason for row, reason in found.get("bad", {}).items()}, self.bundle)
        self._quarantined = True
        return Baselines(found["majority"], found["strength"], {int(row): guess for row, guess in found["guesses"].items()})

    def _phases(self) -> None:
        saved = from_first(self.team, self.bundle.latest)
        state: dict[str, np.ndarray] | None = None
        if saved is not None:
            state, progress = saved
            self.progress = Progress(**progress)
            self.bundle.keep_metrics_before(
                self.progress.phase + self.progress.finished, 0 if self.progress.finished else self.progress.epoch
            )
            self.network.load_state(state)  # the weights first: the store's keys are made of them
        else:
            self.bundle.keep_metrics_before(0, 0)
        if self.progress.finished and state is not None:
            self._settle(self.plan.phases[self.progress.phase], state)
            self._next()
            state = None
        for phase in self.plan.phases[self.progress.phase :]:
            runner = PhaseRunner(
                self.plan,
                phase,
                network=self.network,
                inputs=self.inputs(phase.input, rows=self._clean_rows(phase)),
                training=TrainingRows(self.plan, phase, opened=self._training_input, make=self._input),
                target=self.target,
                bundle=self.bundle,
                reporter=self.reporter,
                stop=self.stop,
                team=self.team,
                notice=self.notice,
            )
            self.progress.done.append(runner.run(self.progress, state))
            self.progress.finished = True
            self.bundle.checkpoint(self.network.state(), asdict(self.progress))
            if from_first(self.team, self.stop):
                raise InterruptedRun("stopped after the phase was finished and saved")
            self._next()
            state = None

    def _training_input(self, place: InputPlan, view: View | None) -> Inputs:
        """Only training images are augmented."""
        return self.inputs(place, view, rows=None if view is None else self.target.rows("train"))

    def _clean_rows(self, phase: PhasePlan) -> np.ndarray | None:
        """Where training draws anew from canvases, no clean row of a training image is ever read."""
        if phase.augment is None or phase.augment.views is not None:
            return None
        return np.concatenate([self.target.rows("val"), self.target.rows("test")])

    def _settle(self, phase: PhasePlan, state: dict[str, np.ndarray]) -> None:
        """Put a finished phase's weights, and the optimizer state that the next may carry, back."""
        self.network.begin_phase(phase, steps_per_epoch=1, class_weights=None)
        self.network.load_state(state)
        self.network.end_phase(best={}, statistics=None)

    def _next(self) -> None:
        self.progress = Progress(phase=self.progress.phase + 1, done=self.progress.done)

    # after the last phase

    def _finish(self) -> dict[str, Any]:
        phase, baselines = self.plan.phases[-1], self._baselines()
        last = self.inputs(phase.input, rows=self._clean_rows(phase))
        validation = self.target.rows("val")
        metrics: dict[str, Any] = {}
        if len(validation):
            metrics["val"] = classification(predict(self.network, last, validation, team=self.team), self.target.labels(validation))
        baseline: dict[str, Any] = {"majority": None, "probe": None, "probe_l2": baselines.strength}
        rows = self.target.rows("test")
        if len(rows):
            probabilities = predict(self.network, last, rows, team=self.team)
            guesses = np.array([baselines.guesses[row] for row in rows.tolist()])
            rows, labels = self.target.open_test(self.bundle, reason="the run's own test, after everything was chosen")
            between = intervals(probabilities, labels, seed=self.plan.seed)
            metrics["test"] = {**classification(probabilities, labels), "interval": {name: list(pair) for name, pair in between.items()}}
            baseline["majority"], baseline["probe"] = float(np.mean(labels == baselines.majority)), float(np.mean(labels == guesses))
            self._predictions(rows, labels, probabilities)
        self._model()
        return self._result("finished", metrics=metrics, baseline=baseline)

    def _predictions(self, rows: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        classes = np.array(self.plan.data.classes, dtype=object)
        if self.team.rank:
            return
        table = pa.table(
            {
                "path": [self.target.dataset.keys[row] for row in rows],
                "split": ["test"] * len(rows),
                "label": classes[labels].tolist(),
                "predicted": classes[probabilities.argmax(1)].tolist(),
                "probabilities": pa.array(list(probabilities), type=pa.list_(pa.float64())),
            }
        )
        write_atomic(self.bundle.folder / "predictions.parquet", lambda path: pq.write_table(table, path))

    def _model(self) -> None:
        if self.team.rank:
            return
        folder = self.bundle.folder / "model"
        with room_for(folder):
            self.network.save(folder)
        write_json(folder / "labels.json", list(self.plan.data.classes))
        write_json(folder / "preprocessing.json", self.plan.source.preprocess.model_dump(mode="json"))

    def _result(self, status: str, *, error: str | None = None, **parts: Any) -> dict[str, Any]:
        before = self.extracted if not self.earlier else (0, 0.0)
        extract = sum(inputs.seconds for inputs in self._inputs.values()) + before[1] + self.earlier.get("extract_seconds", 0.0)
        total = time.monotonic() - self.started + before[1] + self.earlier.get("total_seconds", 0.0)
        train = sum(entry["seconds"] for entry in self.progress.done)
        target = getattr(self, "target", None)
        n_bad = len(target.bad) if target else 0
        result = {
            "status": status,
            "name": self.plan.name,
            "backend": self.plan.backend,
            "metrics": parts.get("metrics", {}),
            "baseline": parts.get("baseline", {}),
            "phases": self.progress.done,
            "timing": {"total_seconds": total, "extract_seconds": extract, "train_seconds": train},
            "data": {
                "images": self.plan.data.images - n_bad,
                "classes": len(self.plan.data.classes),
                "quarantined": n_bad,
                "computed": sum(inputs.computed for inputs in self._inputs.values()) + before[0],
            },
            "error": error,
        }
        self.bundle.write_result(result)
        return result


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
