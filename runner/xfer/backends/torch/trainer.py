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
from xfer.backends.steps import labels_weigh, refuse_divergence, stops, tensors_seen, under, updated_by
from xfer.backends.torch.assembly import Assembly
from xfer.backends.torch.average import Average
from xfer.backends.torch.hardware import threads
from xfer.backends.torch.modes import trained_batch_norms, training_modes
from xfer.backends.torch.optimizer import PhaseOptimizer
from xfer.backends.torch.segments import Segments
from xfer.backends.torch.shared_statistics import SharedStatistics
from xfer.backends.torch.team import TorchTeam
from xfer.methods.method import EVERYTHING, Step
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
        self.weights = class_weights
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).float().to(parts.device)
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
        self.tensors = tensors_seen(self.parameters, own=parts.own, source=parts.source, groups=parts.group_of)
        self.average = Average(self._averaged(), phase.optimizer.average) if phase.optimizer.average is not None else None
        self.norms = trained_batch_norms(parts.segments, parts.owner, phase.train) if phase.norm == "train" else []
        self._momenta = [(module, module.momentum) for module in self.norms]
        if phase.optimizer.norm_momentum is not None:
            for module, _ in self._momenta:
                module.momentum = phase.optimizer.norm_momentum

    def close(self) -> None:
        """Give normalisation layers their own momentum back."""
        for module, momentum in self._momenta:
            module.momentum = momentum

    # what is where

    def _chain(self, segments: Segments) -> Chain:
        """The suffix in pieces: each module gives what lies at these taps."""
        (_, taps), *later = places = stops(self.parts.plan, self.phase)
        pieces: Chain = [(taps, nn.Identity())] if taps else []
        return pieces + [(taps, segments.between(begin, end)) for (begin, _), (end, taps) in zip(places, later, strict=False)]

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
                look = self._look(x, labels, masks, step, batch)
                loss = each.loss(look)
            updates = updated is None or bool(updated)  # else nothing of what the step names may train in this phase
            if updates:
                self.scaler.scale(loss if self.team is None else loss * batch.share).backward(inputs=updated)
            if self.team is not None:
                told = self._exchanged(self.team, self._told(look, loss), batch)
                first = first or told
            if updates:
                self.optimizer.step(step, scale=scale, scaler=self.scaler)
            first = first or self._told(look, loss)
        if self.average is not None:
            self.average.update(step)
        assert first is not None
        return first

    def _seed(self, step: int, number: int, batch: Batch) -> None:
        """Dropout inside the network is drawn anew from (seed, phase, step), never from how often something was drawn before."""
        if isinstance(self.suffix, nn.Identity):
            return  # nothing in it is random; the head's masks are keyed by image
        place = (self.team.rank,) if self.team is not None and batch.is_part else ()  # each rank draws for its own rows
        words = np.random.SeedSequence((self.parts.plan.seed, self.phase.index, step, number, *place)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))

    def _told(self, look: Look, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return loss.detach(), (look.logits.detach().argmax(1) == look.labels).sum()

    def _exchanged(self, team: TorchTeam, told: tuple[torch.Tensor, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The global batch's loss and number of hits; by the same exchange the gradients, of each rank's share of the loss, become the
        global batch's. Rows that every rank computes count once."""
        loss, hits = told[0] * batch.share, told[1] * batch.row_weight
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        team.sum_together([*gradients, loss, hits])
        return loss, hits

    def _shared_statistics(self, batch: Batch) -> contextlib.AbstractContextManager[object]:
        if self.team is None or not (self.norms or self.parts.plan.method.rewrites_statistics):
            return contextlib.nullcontext()
        return SharedStatistics(self.team, batch.row_weight)

    def _look(self, x: torch.Tensor, labels: torch.Tensor, masks: list[torch.Tensor] | None, step: int, batch: Batch) -> Look:
        return Look(
            labels,
            self._compute(x, self.chain, masks),
            progress=step / max(1, self.optimizer.steps),
            tensors=self.tensors,
            teach=lambda: self._teach(x),
            cross_entropy=lambda logits, labels: self._cross_entropy(logits, labels, batch),
        )

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        smoothing, weights = self.phase.optimizer.label_smoothing, self.class_weights
        if self.team is None or self.weights is None:
            return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        summed = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
        return summed / labels_weigh(batch, self.weights)

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
        modules = self.norms
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
