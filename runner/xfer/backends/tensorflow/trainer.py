"""One phase's training on TensorFlow: the method's steps over batches in one graph, the optimizer, the averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from xfer.backends.backend import Batch, StepRecord
from xfer.backends.seen import Computed, Look
from xfer.backends.steps import refuse_divergence, stops, tensors_seen, under, updated_by
from xfer.backends.tensorflow import randomness
from xfer.backends.tensorflow.assembly import Assembly
from xfer.backends.tensorflow.average import Average
from xfer.backends.tensorflow.loss import cross_entropy
from xfer.backends.tensorflow.modes import Mode, learning_norms, mode_of, set_layers
from xfer.backends.tensorflow.optimizer import PhaseOptimizer
from xfer.backends.tensorflow.scaler import Scaler
from xfer.backends.tensorflow.segments import Segments
from xfer.backends.tensorflow.statistics import live
from xfer.backends.tensorflow.team import PLACE, DeviceTeam, Part, place_of
from xfer.ops.schedules import decay_at
from xfer.plan.plan import PhasePlan

CHUNK_BATCHES = 64  # that a small head trains on in one call: Python between two steps would cost more than they do
CHUNK_BYTES = 64 * 2**20
Chain = list[tuple[tuple[str, ...], Any]]  # segments in order (None: nothing to compute), each with the taps at its end
Fed = dict[str, Any]  # one batch, or a chunk of them, as tensors


class Trainer:
    """Trains what the phase says; everything else in the network is as it was, to the bit. With a `team` each batch is this rank's part of
    a global one, and every update is that of the global batch: the same on all ranks."""

    def __init__(
        self,
        parts: Assembly,
        phase: PhasePlan,
        *,
        steps_per_epoch: int,
        class_weights: np.ndarray | None,
        team: DeviceTeam | None = None,
    ) -> None:
        self.parts, self.phase, self.team = parts, phase, team
        self.weights = class_weights
        self.class_weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        self.steps = parts.method.steps()
        network, group_of = parts.segments.network, parts.segments.group_of
        self.mode: Mode = mode_of(phase.train, norm=phase.norm)
        self.norms = learning_norms(network, group_of, phase.train, norm=phase.norm, statistics=False)
        self.learning = learning_norms(network, group_of, phase.train, norm=phase.norm, statistics=parts.plan.method.rewrites_statistics)
        set_layers(network, self.learning)
        trainable = set(phase.trainable)
        self.variables = {name: variable for name, variable in parts.named.items() if name in trainable}
        with tf.device(parts.place):
            self.optimizer = PhaseOptimizer(phase, self.variables, parts.group_of, steps_per_epoch=steps_per_epoch)
            self.scaler = Scaler(enabled=parts.compute_dtype == tf.float16)
            self.average = Average(self._averaged(), phase.optimizer.average) if phase.optimizer.average is not None else None
        self.chain = self._chain(parts.segments)
        self.only_head = all(segment is None for _, segment in self.chain)
        self.generators = [] if self.only_head else randomness.generators(network)
        self.teaching = [] if parts.teacher is None else self._chain(parts.teacher)
        self.updated = [updated_by(step, self.variables, parts.group_of) for step in self.steps]
        self.tensors = tensors_seen(self.variables, own=parts.own, source=parts.source, groups=parts.group_of)
        self._momenta = [(layer, layer.momentum) for layer in self.norms]
        if phase.optimizer.norm_momentum is not None:
            for layer, _ in self._momenta:
                layer.momentum = 1 - phase.optimizer.norm_momentum  # torch's share of the new value, Keras' of the old one
        one = self._signature()
        many = {name: tf.TensorSpec([None, *spec.shape], spec.dtype) for name, spec in one.items()}
        self._one = tf.function(self._batch, autograph=False, input_signature=[one])
        self._many = tf.function(self._loop, autograph=False, input_signature=[many])

    def close(self) -> None:
        """Give normalisation layers their own momentum back."""
        for layer, momentum in self._momenta:
            layer.momentum = momentum

    # what is where

    def _chain(self, segments: Segments) -> Chain:
        """The suffix in pieces: each gives what lies at these taps."""
        (_, taps), *later = places = stops(self.parts.plan, self.phase)
        return [(taps, None)] + [(taps, segments.between(begin, end)) for (begin, _), (end, taps) in zip(places, later, strict=False)]

    def _signature(self) -> Fed:
        """One batch's tensors. Its size is left open, so that the last, smaller one needs no graph of its own."""
        place, width = self.phase.input, sum(self.parts.head.widths) if self.parts.head.dropout else 0
        together = {} if self.team is None else {name: tf.TensorSpec([], tf.float32) for name in PLACE}
        return together | {
            "inputs": tf.TensorSpec([None, *place.shape], place.dtype),
            "labels": tf.TensorSpec([None], tf.int64),
            "masks": tf.TensorSpec([None, width], tf.float32),
            "rate": tf.TensorSpec([], tf.float64),
            "progress": tf.TensorSpec([], tf.float32),
            "weight": tf.TensorSpec([], tf.float32),
            "seeds": tf.TensorSpec([len(self.steps), len(self.generators), 2], tf.uint32),
        }

    def _averaged(self) -> dict[str, Any]:
        """All that may change in this phase."""
        frozen = set(self.phase.frozen)
        return {name: self.parts.named[name] for name in self.parts.changing if name not in frozen}

    # training

    def train(self, batches: Iterable[Batch], *, epoch: int, first_step: int, scale: float) -> StepRecord:
        """Takes the steps of these batches; the record says what each gave."""
        record = StepRecord()
        step = first_step
        with tf.device(self.parts.place):
            looped = self.only_head and self.team is None
            for chunk in chunks(batches, CHUNK_BATCHES if looped else 1):
                fed = self._fed(chunk, epoch=epoch, step=step, scale=scale)
                if looped:
                    losses, correct = self._many(fed)
                else:
                    losses, correct = (value[None] for value in self._one({name: value[0] for name, value in fed.items()}))
                record.losses += losses.numpy().astype(np.float64).tolist()
                record.correct += correct.numpy().tolist()
                record.counts += [batch.total for batch in chunk]
                step += len(chunk)
        refuse_divergence(record, self.phase, epoch=epoch)
        return record

    def _fed(self, chunk: list[Batch], *, epoch: int, step: int, scale: float) -> Fed:
        """A chunk of k batches of one size as tensors [k, …]."""
        parts, phase, numbers = self.parts, self.phase, range(step, step + len(chunk))
        decay = phase.optimizer.average or 0.0
        inputs = np.stack([batch.inputs for batch in chunk]) if len(chunk) > 1 else chunk[0].inputs[None]
        masks = [parts.head.masks(batch.rows, phase=phase.index, epoch=epoch) for batch in chunk]
        drawn = [
            randomness.seeds(
                parts.plan.seed,
                phase.index,
                number,
                part=self.team.rank if self.team is not None and batch.is_part else None,
                n_steps=len(self.steps),
                n_generators=len(self.generators),
            )
            for number, batch in zip(numbers, chunk, strict=True)
        ]
        return self._together(chunk) | {
            "inputs": parts.tensor(inputs, str(inputs.dtype)),
            "labels": tf.constant(np.stack([batch.labels for batch in chunk]), tf.int64),
            "masks": tf.constant(np.stack(masks)),
            "rate": tf.constant([self.optimizer.multiplier(number, scale=scale) for number in numbers], tf.float64),
            "progress": tf.constant([number / max(1, self.optimizer.steps) for number in numbers], tf.float32),
            "weight": tf.constant([1 - decay_at(decay, number) for number in numbers], tf.float32),
            "seeds": tf.constant(np.stack(drawn)),
        }

    def _together(self, chunk: list[Batch]) -> Fed:
        """What these batches are of their global ones; nothing where they are whole."""
        if self.team is None:
            return {}
        places = [place_of(batch, self.weights) for batch in chunk]
        return {name: tf.constant([place[name] for place in places], tf.float32) for name in PLACE}

    def _loop(self, fed: Fed) -> tuple[Any, Any]:
        """The steps of a chunk in turn: (losses float32 [k], correct int64 [k])."""
        n_batches = tf.shape(fed["labels"])[0]
        losses = tf.TensorArray(tf.float32, n_batches)
        correct = tf.TensorArray(tf.int64, n_batches)

        def body(index: Any, losses: Any, correct: Any) -> tuple[Any, Any, Any]:
            loss, hits = self._batch({name: value[index] for name, value in fed.items()})
            return index + 1, losses.write(index, loss), correct.write(index, hits)

        _, losses, correct = tf.while_loop(
            lambda index, *_: index < n_batches, body, (tf.constant(0), losses, correct), parallel_iterations=1
        )
        return losses.stack(), correct.stack()

    def _batch(self, fed: Fed) -> tuple[Any, Any]:
        """(loss, number of correct predictions) as the first of the method's steps sees them."""
        first: tuple[Any, Any] | None = None
        for number, (each, updated) in enumerate(zip(self.steps, self.updated, strict=True)):
            randomness.start(self.generators, fed["seeds"][number])
            watched = {name: self.variables[name] for name in updated}
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(watched.values()))
                look = self._look(fed)
                loss = each.loss(look)
                scaled = self.scaler.scaled(loss if self.team is None else loss * tf.cast(fed["share"], loss.dtype))
            found = tape.gradient(scaled, watched) if watched else {}  # none where nothing of what the step names may train in this phase
            gradients = {name: gradient for name, gradient in found.items() if gradient is not None}
            if self.team is not None:
                gradients, told = self._exchanged(self.team, gradients, self._told(look, loss), fed)
                first = first or told
            self._update(gradients, fed["rate"])
            first = first or self._told(look, loss)  # last: a graph's order decides how it rounds, and resumed runs keep theirs
        if self.average is not None:
            self.average.update(fed["weight"])
        assert first is not None
        return first

    def _told(self, look: Look, loss: Any) -> tuple[Any, Any]:
        hits = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(look.logits, axis=1), look.labels), tf.int64))
        return tf.cast(loss, tf.float32), hits

    def _exchanged(
        self, team: DeviceTeam, gradients: dict[str, Any], told: tuple[Any, Any], fed: Fed
    ) -> tuple[dict[str, Any], tuple[Any, Any]]:
        """The global batch's gradients (each rank's are of its share of the loss), loss and number of hits, by one exchange. Rows that
        every rank computes count once."""
        mine = [fed["share"] * told[0], fed["share"] * fed["growth"] * tf.cast(told[1], tf.float32)]
        dense = [tf.ensure_shape(tf.convert_to_tensor(gradient), self.variables[name].shape) for name, gradient in gradients.items()]
        loss, hits, *summed = team.totals(mine + dense)
        return dict(zip(gradients, summed, strict=True)), (loss, tf.cast(tf.round(hits), tf.int64))

    def _update(self, gradients: dict[str, Any], rate: Any) -> None:
        if not gradients:
            return
        plain, finite = self.scaler.unscaled(gradients)
        if self.scaler.enabled:
            tf.cond(finite, lambda: self._applied(plain, rate), lambda: tf.constant(0))
        else:
            self.optimizer.apply(plain, rate)
        self.scaler.update(finite)

    def _applied(self, gradients: dict[str, Any], rate: Any) -> Any:
        self.optimizer.apply(gradients, rate)
        return tf.constant(1)

    def _look(self, fed: Fed) -> Look:
        part = None if self.team is None else Part(self.team, fed["share"], fed["growth"])
        with live(self.learning, part):
            computed = self._compute(fed, self.chain, self.mode, fed["masks"])
        return Look(
            fed["labels"],
            computed,
            progress=fed["progress"],
            tensors=self.tensors,
            teach=lambda: self._teach(fed),
            cross_entropy=lambda logits, labels: self._cross_entropy(logits, labels, total=fed.get("labels_weigh")),
        )

    def _cross_entropy(self, logits: Any, labels: Any, *, total: Any | None) -> Any:
        smoothing = self.phase.optimizer.label_smoothing
        return cross_entropy(logits, labels, class_weights=self.class_weights, label_smoothing=smoothing, total=total)

    def _compute(self, fed: Fed, chain: Chain, mode: Mode | bool, masks: Any | None) -> Computed:
        parts, taps = self.parts, {}
        x = fed["inputs"] if self.only_head else parts.entered(fed["inputs"], start=self.phase.input.cut)
        for names, segment in chain:
            x = x if segment is None else segment(x, training=mode)
            taps.update(dict.fromkeys(names, x))
        features = parts.vectors(x, pooled=self.phase.input.pooled)
        return Computed(features, parts.head(features, masks), taps)

    def _teach(self, fed: Fed) -> Computed:
        """What the copy with the source's weights makes of the same rows."""
        assert self.parts.teacher is not None, f"method {self.parts.plan.method.name} asks for a teacher and does not declare one"
        taught = self._compute(fed, self.teaching, False, None)
        stopped = {name: tf.stop_gradient(tap) for name, tap in taught.taps.items()}
        return Computed(tf.stop_gradient(taught.features), tf.stop_gradient(taught.logits), stopped)

    # after the last step

    def reestimate(self, batches: Iterable[np.ndarray]) -> None:
        """Statistics of the trained groups' batch normalisation anew, as the mean over these batches with the weights as they are now
        (Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3: precise BN)."""
        layers = self.norms
        momenta = [layer.momentum for layer in layers]

        def pass_on(values: Any, share: Any) -> None:
            for layer in layers:
                layer.momentum = share
            x = self.parts.entered(values, start=self.phase.input.cut)
            with live(layers):
                for _, segment in self.chain:
                    x = x if segment is None else segment(x, training=False)

        run = tf.function(pass_on, autograph=False, reduce_retracing=True)
        try:
            with tf.device(self.parts.place):
                for number, values in enumerate(batches):  # the share of what was there: 0, 1/2, 2/3, … make the plain mean
                    run(self.parts.tensor(values, str(values.dtype)), tf.constant(number / (number + 1), tf.float32))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum

    # state

    def state(self) -> dict[str, np.ndarray]:
        """The optimizer's numbers and the averages, by 'optimizer/…' and 'average/…'."""
        state = {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        if self.average is not None:
            state.update({f"average/{name}": value for name, value in self.average.state().items()})
        return state | self.scaler.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.optimizer.load_state(under(state, "optimizer/"))
        if self.average is not None:
            self.average.load_state(under(state, "average/"))
        self.scaler.load_state(state)


def chunks(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Runs of up to `most` batches of one size, in order."""
    taken: list[Batch] = []
    for batch in batches:
        full = len(taken) == most or (taken and (len(taken) + 1) * taken[0].inputs.nbytes > CHUNK_BYTES)
        if taken and (full or len(batch.labels) != len(taken[0].labels)):
            yield taken
            taken = []
        taken.append(batch)
    if taken:
        yield taken
