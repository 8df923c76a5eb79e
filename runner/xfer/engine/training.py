"""One phase: epochs over stored or streamed rows, validation after each, checkpoints between steps, the proof at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from xfer.backends.backend import Batch, Network, StepRecord, Team
from xfer.data.order import epoch_order
from xfer.engine.bundle import Bundle
from xfer.engine.inputs import Inputs, Stop
from xfer.engine.reporter import Reporter
from xfer.engine.target import Target
from xfer.engine.team import ALONE, Agreement, from_first, part_of, summed_rows
from xfer.engine.training_rows import TrainingRows
from xfer.errors import FrozenChangedError, InterruptedRun
from xfer.ops.metrics import classification
from xfer.ops.schedules import factor
from xfer.plan.plan import PhasePlan, Plan, UntilPlan
from xfer.recipe.quantities import parse_seconds

EVALUATION_BATCH = 256
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.1, 3  # schedule: plateau divides the rate by ten after three epochs without a better val.loss


@dataclass
class Progress:
    """Where a phase is: all that a resume needs beside the tensors. `epoch` and `step` are what comes next."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    finished: bool = False
    record: dict[str, list] = field(default_factory=dict)
    seconds: float = 0.0
    trained_images: int = 0
    best: float | None = None
    best_epoch: int = -1
    scale: float = 1.0
    plateau_best: float | None = None
    plateau_epochs: int = 0
    frozen_before: dict[str, str] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)  # results of finished phases


class PhaseRunner:
    """Runs a phase from `progress` to its end. `best` holds the weights that `until` will restore."""

    def __init__(
        self,
        plan: Plan,
        phase: PhasePlan,
        *,
        network: Network,
        inputs: Inputs,
        training: TrainingRows,
        target: Target,
        bundle: Bundle,
        reporter: Reporter,
        stop: Stop,
        team: Team = ALONE,
        notice: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.phase, self.network, self.inputs, self.training = plan, phase, network, inputs, training
        self.target, self.bundle, self.reporter, self.stop, self.team = target, bundle, reporter, stop, team
        self.together = team.size > 1 and not whole_on_each(plan, phase)
        self.rows = target.rows("train")
        self.batch_size = plan.data.batch_size
        self.steps_per_epoch = training.steps(len(self.rows), self.batch_size)
        self.every_steps, self.every_seconds = checkpoint_interval(plan.runtime.checkpoint)
        self.best: dict[str, np.ndarray] = {}
        self._saved_at, self._steps_since = time.monotonic(), 0
        self._ends_here = Agreement(team, lambda: stop() or time.monotonic() - self._saved_at > self.every_seconds, everywhere=notice)

    def run(self, progress: Progress, state: dict[str, np.ndarray] | None) -> dict[str, Any]:
        """The phase's entry of `result.json`. `state` is a checkpoint's, where the phase is resumed."""
        self.network.begin_phase(
            self.phase, steps_per_epoch=self.steps_per_epoch, class_weights=self._class_weights(), together=self.together
        )
        if state is not None:
            self.network.load_state({name: value for name, value in state.items() if not name.startswith("best/")})
            self.best = {name.removeprefix("best/"): value for name, value in state.items() if name.startswith("best/")}
        if not progress.frozen_before:
            progress.frozen_before = self.network.digests(self.phase.frozen)
        self.reporter.start(f"phase {self.phase.name}", self.phase.max_epochs * len(self.rows))
        self.reporter.advance(progress.epoch * len(self.rows) + progress.step * self.batch_size)
        while progress.epoch < self.phase.max_epochs and not self._stops(progress):
            self._epoch(progress)
        self.reporter.done()
        self.network.end_phase(best=self.best, statistics=self._statistics(progress) if self.phase.reestimate_norm else None)
        self._made_equal()
        return self._finish(progress)

    def _made_equal(self) -> None:
        """What every rank computed by itself may differ in its last bits between processors: the first one's counts."""
        if self.team.size > 1:
            self.network.load_state(self.team.broadcast(self.network.state()))

    def _statistics(self, progress: Progress) -> Iterator[np.ndarray]:
        """The training images once more, in the dataset's order."""
        sizes = self.training.sizes(len(self.rows), self.batch_size)
        return (values for _, values in self.training.batches(self.rows, sizes, epoch=progress.epoch))

    def _epoch(self, progress: Progress) -> None:
        images_before = progress.trained_images
        order = epoch_order(
            self.rows,
            seed=self.plan.seed,
            phase=self.phase.index,
            epoch=progress.epoch,
            mode=self.phase.shuffle,
            shard_rows=self.plan.runtime.shard_rows,
        )
        seconds_before = progress.seconds
        while progress.step < self.steps_per_epoch:
            began = time.monotonic()
            first = progress.step
            record = self.network.train(
                self._batches(order, progress),
                epoch=progress.epoch,
                first_step=progress.epoch * self.steps_per_epoch + first,
                scale=progress.scale,
            )
            for name, values in asdict(record).items():
                progress.record.setdefault(name, []).extend(values)
            progress.seconds += time.monotonic() - began
            if progress.step < self.steps_per_epoch:
                self._save(progress)
                self._interrupt()
        train = StepRecord(**progress.record)
        seconds = progress.seconds - seconds_before
        self._record(progress, train, seconds=seconds, images=progress.trained_images - images_before)
        progress.epoch, progress.step, progress.record = progress.epoch + 1, 0, {}
        ended = progress.epoch >= self.phase.max_epochs or self._stops(progress)
        if not ended and (self._steps_since >= self.every_steps or self._ends_here.now()):
            self._save(progress)
            self._interrupt()

    def _batches(self, order: np.ndarray, progress: Progress) -> Iterator[Batch]:
        """Batches from `progress.step` on; ends early where a checkpoint is due or the run is asked to stop."""
        left = order[progress.step * self.batch_size :]
        for batch in self._spread(left, epoch=progress.epoch) if self.together else self._own(left, epoch=progress.epoch):
            yield batch
            progress.step += 1
            progress.trained_images += batch.total
            self._steps_since += 1
            self.reporter.advance(batch.total)
            if self._steps_since >= self.every_steps or self._ends_here():
                return

    def _own(self, left: np.ndarray, *, epoch: int) -> Iterator[Batch]:
        for rows, inputs in self.training.batches(left, self.training.sizes(len(left), self.batch_size), epoch=epoch):
            yield Batch(rows, inputs, self.target.labels(rows))

    def _spread(self, left: np.ndarray, *, epoch: int) -> Iterator[Batch]:
        """This rank's parts of the batches that one process would train on."""
        sizes = self.training.sizes(len(left), self.batch_size)
        whole = np.split(left, np.cumsum(sizes)[:-1])
        parts = [part_of(batch, self.team) for batch in whole]
        rows = np.concatenate([part for part, _ in parts])
        mine = self.training.batches(rows, [len(part) for part, _ in parts], epoch=epoch)
        for (own, inputs), (_, share), batch in zip(mine, parts, whole, strict=True):
            yield Batch(own, inputs, self.target.labels(own), share, self.target.labels(batch))

    def _record(self, progress: Progress, train: StepRecord, *, seconds: float, images: int) -> None:
        """One line of metrics per split, and what `until` and `plateau` make of it."""
        common = {"phase": self.phase.name, "phase_index": self.phase.index, "epoch": progress.epoch}
        multiplier = progress.scale * self._scheduled(progress.epoch)
        rates = {group: rate * multiplier for group, rate in self.phase.learning_rates.items()}
        speed = images / seconds if seconds > 0 else 0.0
        line = {
            **common,
            "split": "train",
            "loss": train.loss,
            "accuracy": train.accuracy,
            "lr": rates,
            "seconds": seconds,
            "images_per_second": speed,
        }
        self.bundle.append_metrics(line)
        validation = self.target.rows("val")
        told = {
            **common,
            "epochs": self.phase.max_epochs,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "images_per_second": speed,
        }
        if len(validation):
            with self.network.evaluated():
                probabilities = predict(self.network, self.inputs, validation, team=self.team)
                metrics = classification(probabilities, self.target.labels(validation))
                self._judge(progress, metrics)
            self.bundle.append_metrics({**common, "split": "val", **metrics})
            told.update({f"val_{name}": value for name, value in metrics.items()})
        self.reporter.epoch(told)

    def _scheduled(self, epoch: int) -> float:
        """What the schedule multiplies the rates with at the epoch's first step."""
        optimizer, per_epoch = self.phase.optimizer, self.steps_per_epoch
        return factor(
            optimizer.schedule,
            epoch * per_epoch,
            steps=self.phase.max_epochs * per_epoch,
            warmup_steps=optimizer.warmup_epochs * per_epoch,
        )

    def _judge(self, progress: Progress, metrics: dict[str, float]) -> None:
        if self.phase.optimizer.schedule == "plateau":
            if progress.plateau_best is None or metrics["loss"] < progress.plateau_best:
                progress.plateau_best, progress.plateau_epochs = metrics["loss"], 0
            else:
                progress.plateau_epochs += 1
            if progress.plateau_epochs >= PLATEAU_PATIENCE:
                progress.scale, progress.plateau_epochs = progress.scale * PLATEAU_FACTOR, 0
        until = self.phase.until
        if until is not None:
            value = metrics[until.metric.partition(".")[2]]
            if better(value, progress.best, until):
                progress.best, progress.best_epoch = value, progress.epoch
                self.best = self.network.tensors()

    def _stops(self, progress: Progress) -> bool:
        until = self.phase.until
        return until is not None and progress.best_epoch >= 0 and progress.epoch - 1 - progress.best_epoch >= until.patience

    def _finish(self, progress: Progress) -> dict[str, Any]:
        after = self.network.digests(self.phase.frozen)
        changed = tuple(name for name in self.phase.frozen if after[name] != progress.frozen_before[name])
        result = {
            "name": self.phase.name,
            "train": list(self.phase.train),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch + 1 if progress.best_epoch >= 0 else None,
            "seconds": progress.seconds,
            "images_per_second": progress.trained_images / progress.seconds if progress.seconds > 0 else 0.0,
            "trainable_parameters": self.phase.trainable_parameters,
            "frozen_tensors": len(self.phase.frozen),
            "frozen_changed": len(changed),
            "input": {"cut": self.phase.input.cut, "mode": self.phase.input.mode},
            "distance": self.network.distances(),
        }
        if changed:
            raise FrozenChangedError(
                f"phase '{self.phase.name}': {len(changed)} frozen tensors changed, the first is {changed[0]}",
                tensors=changed,
                hint="this is a fault of xfer or of a plugin, not of your recipe: please report it with the bundle",
            )
        return result

    def _save(self, progress: Progress) -> None:
        state = {**self.network.state(), **{f"best/{name}": value for name, value in self.best.items()}}
        self.bundle.checkpoint(state, asdict(progress))
        self._saved_at, self._steps_since = time.monotonic(), 0

    def _interrupt(self) -> None:
        if from_first(self.team, self.stop):
            raise InterruptedRun("stopped after the step was finished and saved")

    def _class_weights(self) -> np.ndarray | None:
        """'balanced': n / (classes * count) per class, as scikit-learn defines it."""
        if self.phase.optimizer.class_weights == "none":
            return None
        counts = np.bincount(self.target.labels(self.rows), minlength=len(self.plan.data.classes))
        return (len(self.rows) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def whole_on_each(plan: Plan, phase: PhasePlan) -> bool:
    """Whether every rank computes all of a phase's batches: where only a head trains, from stored features, a step takes less time
    than an exchange."""
    drawn = phase.augment is not None and phase.augment.views is None
    return phase.input.mode == "stored" and not drawn and (phase.input.pooled or phase.input.cut == plan.head.at)


def predict(network: Network, inputs: Inputs, rows: np.ndarray, *, team: Team = ALONE) -> np.ndarray:
    """Probabilities float64 [n, classes] of rows, in their order. The ranks of a team take turns at batches, so that none is computed
    in another composition than alone."""
    n_classes = len(inputs.run.data.classes)
    firsts = range(0, len(rows), EVALUATION_BATCH)[team.rank :: team.size]
    own = np.concatenate([rows[:0], *(rows[first : first + EVALUATION_BATCH] for first in firsts)])
    parts = [
        network.logits(values, start=inputs.place.cut, pooled=inputs.place.pooled) for _, values in inputs.batches(own, EVALUATION_BATCH)
    ]
    return softmax(summed_rows(team, dict(zip(firsts, parts, strict=True)), len(rows), n_classes))


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities from logits [n, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def better(value: float, best: float | None, until: UntilPlan) -> bool:
    """Whether `value` improves on `best` by more than `min_delta`."""
    if best is None:
        return True
    gain = value - best if until.mode == "max" else best - value
    return gain > until.min_delta


def checkpoint_interval(text: str) -> tuple[float, float]:
    """(steps, seconds) between checkpoints; a bare number is steps."""
    return (float(text), float("inf")) if text.isdigit() else (float("inf"), parse_seconds(text))
