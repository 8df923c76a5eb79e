"""One phase's training on torch: the method's steps over batches, the optimizer, the averages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xfer.backends.backend import Batch, StepRecord
from xfer.backends.seen import Computed, Look
from xfer.backends.steps import refuse_divergence, stops, under, updated_by
from xfer.backends.torch.assembly import Assembly
from xfer.backends.torch.average import Average
from xfer.backends.torch.hardware import threads
from xfer.backends.torch.modes import trained_batch_norms, training_modes
from xfer.backends.torch.optimizer import PhaseOptimizer
from xfer.backends.torch.segments import Segments
from xfer.backends.torch.shared_statistics import SharedStatistics
from xfer.backends.torch.team import TorchTeam
from xfer.methods.method import EVERYTHING, Step
from xfer.plan.model_map import HEAD
from xfer.plan.plan import PhasePlan

SMALL_HEAD = 4_000_000  # parameters
Chain = list[tuple[tuple[str, ...], nn.Module]]  # modules in order, each with the taps at its end


class Trainer:
    """Trains what the phase says; everything else in the network is as it was, to the bit."""

    def __init__(
        self,
        parts: Assembly,
        phase: PhasePlan,
        *,
        steps_per_epoch: int,
        class_weights: np.ndarray | None,
        team: TorchTeam | None = None,
    ) -> None:
        """With a `team`, batches are parts of global ones, and gradients are exchanged at each step."""
        self.parts, self.phase, self.team = parts, phase, team
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).float().to(parts.device)
        self._class_weights_on_host = class_weights if class_weights is not None else np.ones(0, np.float32)
        self.steps = parts.method.steps()
        trainable = set(phase.trainable)
        self.parameters: dict[str, nn.Parameter] = {}
        for name, tensor in parts.named.items():
            if tensor.is_floating_point():
                tensor.requires_grad_(name in trainable)
            if name in trainable:
                assert isinstance(tensor, nn.Parameter)
                self.parameters[name] = tensor
        self.optimizer = PhaseOptimizer(phase, self.parameters, parts.group_of, steps_per_epoch=steps_per_epoch)
        self.scaler = torch.amp.GradScaler(parts.device.type, enabled=parts.compute_dtype == torch.float16)
        self.suffix = parts.suffix(phase.input.cut, pooled=phase.input.pooled)
        self.chain = self._chain(parts.segments)
        self.teaching = [] if parts.teacher is None else [(taps, piece.eval()) for taps, piece in self._chain(parts.teacher)]
        self.updated = [self._updated(step) for step in self.steps]
        self.tensors = self._tensors()
        self.average = Average(self._averaged(), phase.optimizer.average) if phase.optimizer.average is not None else None
        self.learns_statistics = bool(self._batch_norms()) or parts.plan.method.rewrites_statistics
        self._momenta = [(module, module.momentum) for module in self._batch_norms()]
        if phase.optimizer.norm_momentum is not None:
            for module, _ in self._momenta:
                module.momentum = phase.optimizer.norm_momentum

    def close(self) -> None:
        """Give normalisation layers their own momentum back."""
        for module, momentum in self._momenta:
            module.momentum = momentum

    # what is where

    def _batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return trained_batch_norms(self.parts.segments, self.parts.owner, self.phase.train) if self.phase.norm == "train" else []

    def _chain(self, segments: Segments) -> Chain:
        """The suffix in pieces: each module gives what lies at these taps."""
        (_, taps), *later = places = stops(self.parts.plan, self.phase)
        pieces: Chain = [(taps, nn.Identity())] if taps else []
        return pieces + [(taps, segments.between(begin, end)) for (begin, _), (end, taps) in zip(places, later, strict=False)]

    def _tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        parts = self.parts
        trained = {name: p for name, p in self.parameters.items() if name in parts.source}
        head = {name.removeprefix(f"{HEAD}."): p for name, p in self.parameters.items() if parts.group_of[name] == HEAD}
        return {"own": parts.own, "trained": trained, "source": {name: parts.source[name] for name in trained}, "head": head}

    def _averaged(self) -> dict[str, torch.Tensor]:
        """All that may change in this phase."""
        frozen = set(self.phase.frozen)
        return {name: self.parts.named[name] for name in self.parts.changing if name not in frozen}

    def _updated(self, step: Step) -> list[nn.Parameter] | None:
        """The parameters that a step updates; None for all."""
        if EVERYTHING in step.updates:
            return None
        return [self.parameters[name] for name in updated_by(step, self.parameters, self.parts.group_of)]

    # training

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord:
        """Takes the steps of these batches; the record says what each gave."""
        record = StepRecord()
        losses: list[torch.Tensor] = []
        correct: list[torch.Tensor] = []
        self._train_mode()
        random = torch.get_rng_state()
        with torch.enable_grad(), threads(small_threads(self.suffix, self.parts)):
            for step, batch in enumerate(batches, start=first_step):
                loss, hits = self._batch(batch, epoch=epoch, step=step, scale=scale)
                losses.append(loss)
                correct.append(hits)
                record.counts.append(batch.total)
        torch.set_rng_state(random)
        if losses:
            record.losses = torch.stack(losses).double().tolist()
            record.correct = torch.stack(correct).round().long().tolist()
        refuse_divergence(record, self.phase, epoch=epoch)
        return record

    def _train_mode(self) -> None:
        parts, phase = self.parts, self.phase
        pieces = nn.ModuleList(piece for _, piece in self.chain)
        training_modes(parts.segments, pieces, parts.owner, phase.train, norm=phase.norm, statistics=parts.plan.method.rewrites_statistics)

    def _batch(self, batch: Batch, *, epoch: int, step: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, number of correct predictions) as the first of the method's steps sees them."""
        labels = torch.from_numpy(batch.labels).to(self.parts.device)
        x = self.parts.rows(batch.inputs, start=self.phase.input.cut)
        masks = self.parts.head.masks(batch.rows, phase=self.phase.index, epoch=epoch)
        first: tuple[torch.Tensor, torch.Tensor] | None = None
        for number, (each, updated) in enumerate(zip(self.steps, self.updated, strict=True)):
            self._seed(step, number, batch)
            with self._shared_statistics(batch):
                look = self._look(x, labels, masks, step, weights_sum=self._weights_sum(batch))
                loss = each.loss(look)
            told = loss.detach(), (look.logits.detach().argmax(1) == labels).sum()
            if self.team is not None:
                told = told[0] * batch.share, told[1] * batch.row_weight
            if updated is None or updated:  # nothing of what it names may train in this phase
                self.scaler.scale(loss if self.team is None else loss * batch.share).backward(inputs=updated)
                self._exchange(told)
                self.optimizer.step(step, scale=scale, scaler=self.scaler)
            else:
                self._exchange(told)
            first = first or told
        if self.average is not None:
            self.average.update(step)
        assert first is not None
        return first

    def _seed(self, step: int, number: int, batch: Batch) -> None:
        """Dropout inside the network is drawn anew from (seed, phase, step), never from how often something was drawn before."""
        if isinstance(self.suffix, nn.Identity):
            return  # nothing in it is random; the head's masks are keyed by image
        parted = self.team is not None and len(batch.labels) < batch.total  # each rank draws for its own rows
        key = (self.parts.plan.seed, self.phase.index, step, number) + ((self.team.rank,) if parted and self.team else ())
        words = np.random.SeedSequence(key).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))

    def _exchange(self, told: tuple[torch.Tensor, torch.Tensor]) -> None:
        """In a team: gradients, loss and hits become the sums over the ranks."""
        if self.team is not None:
            gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
            self.team.sum_together([*gradients, *told])

    def _shared_statistics(self, batch: Batch) -> contextlib.AbstractContextManager[object]:
        learns = self.team is not None and self.learns_statistics
        return SharedStatistics(self.team, batch.row_weight) if learns and self.team else contextlib.nullcontext()

    def _weights_sum(self, batch: Batch) -> float | None:
        """What the sum of the rows' class weights is divided by where a batch is spread: the global batch's sum of them, of which this
        rank's loss, weighted by its share, holds the part of its rows."""
        if self.team is None or self.class_weights is None or batch.labels_all is None:
            return None
        return float(self._class_weights_on_host[batch.labels_all].sum()) * len(batch.labels) / batch.total

    def _look(
        self, x: torch.Tensor, labels: torch.Tensor, masks: list[torch.Tensor] | None, step: int, *, weights_sum: float | None
    ) -> Look:
        return Look(
            labels,
            self._compute(x, self.chain, masks),
            progress=step / max(1, self.optimizer.steps),
            tensors=self.tensors,
            teach=lambda: self._teach(x),
            cross_entropy=lambda logits, labels: self._cross_entropy(logits, labels, weights_sum),
        )

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, weights_sum: float | None) -> torch.Tensor:
        smoothing, weights = self.phase.optimizer.label_smoothing, self.class_weights
        if weights_sum is None:
            return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        summed = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
        return summed / weights_sum

    def _compute(self, x: torch.Tensor, chain: Chain, masks: list[torch.Tensor] | None) -> Computed:
        taps = {}
        for names, module in chain:
            x = self.parts.through(x, module)
            taps.update(dict.fromkeys(names, x))
        features = self.parts.vectors(x, pooled=self.phase.input.pooled)
        return Computed(features, self.parts.head(features, masks), taps)

    def _teach(self, x: torch.Tensor) -> Computed:
        """What the copy with the source's weights makes of the same rows."""
        assert self.parts.teacher is not None, f"method {self.parts.plan.method.name} asks for a teacher and does not declare one"
        with torch.no_grad():
            return self._compute(x, self.teaching, None)

    # after the last step

    @torch.no_grad()
    def reestimate(self, batches: Iterable[np.ndarray]) -> None:
        """Statistics of the trained groups' batch normalisation anew, as the mean over these batches with the weights as they are now
        (Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3: precise BN)."""
        modules = self._batch_norms()
        self.parts.base.eval()
        self.suffix.eval()
        before = [module.momentum for module in modules]
        for module in modules:
            module.reset_running_stats()
            module.momentum, module.training = None, True  # None: the plain mean over the batches
        for values in batches:
            self.parts.through(self.parts.rows(values, start=self.phase.input.cut), self.suffix)
        for module, momentum in zip(modules, before, strict=True):
            module.momentum, module.training = momentum, False

    # state

    def state(self) -> dict[str, np.ndarray]:
        """The optimizer's numbers and the averages, by 'optimizer/…' and 'average/…'."""
        state = {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        if self.average is not None:
            state.update({f"average/{name}": value for name, value in self.average.state().items()})
        if self.scaler.is_enabled():
            state["scaler/scale"] = np.array(self.scaler.state_dict()["scale"], np.float64)
            state["scaler/growth"] = np.array(self.scaler.state_dict()["_growth_tracker"], np.int64)
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.optimizer.load_state(under(state, "optimizer/"))
        if self.average is not None:
            self.average.load_state(under(state, "average/"))
        if self.scaler.is_enabled() and "scaler/scale" in state:
            found = self.scaler.state_dict() | {
                "scale": float(state["scaler/scale"]),
                "_growth_tracker": int(state["scaler/growth"]),
            }
            self.scaler.load_state_dict(found)


def small_threads(suffix: nn.Module, parts: Assembly) -> int | None:
    """One thread where only a small head is computed, on the CPU."""
    small = isinstance(suffix, nn.Identity) and sum(p.numel() for p in parts.head.parameters()) < SMALL_HEAD
    return 1 if small and parts.device.type == "cpu" else None
