"""SGD, Adam and AdamW by torch's definitions, with state by tensor name so that phases can carry it.

Keras' own Adam adds epsilon before the second moment is corrected for its start (the "epsilon hat" of Kingma & Ba 2015, section 2) and
couples weight decay in other ways. TensorFlow's fused kernels are used with numbers that make them torch's: with the corrections
c1 = 1 - b1^t and c2 = 1 - b2^t, lr · sqrt(c2) / c1 · m / (sqrt(v) + epsilon · sqrt(c2)) is torch's update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from xfer.ops.schedules import factor
from xfer.plan.plan import PhasePlan

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm
MOMENTUM, MEAN, SQUARE, COUNT = "momentum_buffer", "exp_avg", "exp_avg_sq", "step"


class PhaseOptimizer:
    """The optimizer of one phase. `variables` maps tensor names to float32 variables, `group_of` to group names."""

    def __init__(self, phase: PhasePlan, variables: Mapping[str, Any], group_of: Mapping[str, str], *, steps_per_epoch: int) -> None:
        self.plan = phase.optimizer
        self.variables = dict(variables)
        self.steps = steps_per_epoch * phase.max_epochs
        self.warmup_steps = self.plan.warmup_epochs * steps_per_epoch
        self.position = {name: index for index, name in enumerate(self.variables)}
        self.rates = tf.constant([phase.learning_rates[group_of[name]] for name in self.variables], tf.float64)
        self.counts = tf.Variable(np.zeros(len(self.variables), np.int64), trainable=False)  # updates that each has had
        fields = (MEAN, SQUARE) if self.plan.name != "sgd" else (MOMENTUM,) if self.plan.momentum else ()
        self.slots = {
            name: {field: tf.Variable(tf.zeros_like(variable), trainable=False) for field in fields}
            for name, variable in self.variables.items()
        }

    def multiplier(self, step: int, *, scale: float) -> float:
        """What all rates are multiplied with at the phase's `step`."""
        return scale * factor(self.plan.schedule, step, steps=self.steps, warmup_steps=self.warmup_steps)

    # inside a step's graph

    def apply(self, gradients: Mapping[str, Any], multiplier: Any) -> None:
        """One update of the variables that have a gradient; `multiplier` is a float64 scalar."""
        gradients = {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items()}
        if self.plan.clip_norm:
            gradients = clipped(gradients, self.plan.clip_norm)
        touched = [0] * len(self.position)
        for name in gradients:
            touched[self.position[name]] = 1
        self.counts.assign_add(tf.constant(touched, tf.int64))
        update = self._sgd if self.plan.name == "sgd" else self._adam
        update(gradients, self.rates * multiplier)

    def _each(self, numbers: Any) -> list[Any]:
        """float32 scalars, one for each variable, of float64 [n_variables]."""
        return tf.unstack(tf.cast(numbers, tf.float32), len(self.position))  # type: ignore[no-any-return]

    def _sgd(self, gradients: Mapping[str, Any], all_rates: Any) -> None:
        rates = self._each(all_rates)
        for name, gradient in gradients.items():
            variable, rate = self.variables[name], rates[self.position[name]]
            if self.plan.weight_decay:
                gradient = gradient + self.plan.weight_decay * variable
            if not self.plan.momentum:
                tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
                continue
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle, accum=self.slots[name][MOMENTUM].handle, lr=rate, grad=gradient, momentum=self.plan.momentum
            )

    def _adam(self, gradients: Mapping[str, Any], all_rates: Any) -> None:
        first, second = (float(np.float32(beta)) for beta in self.plan.betas)  # as the kernel sees them
        counts = tf.cast(self.counts, tf.float64)
        roots = tf.sqrt(1 - second**counts)
        rates = self._each(all_rates * roots / (1 - first**counts))
        epsilons, kept = self._each(self.plan.epsilon * roots), self._each(1 - all_rates * self.plan.weight_decay)
        nothing = tf.zeros([], tf.float32)
        for name, gradient in gradients.items():
            variable, at = self.variables[name], self.position[name]
            if self.plan.weight_decay and self.plan.name == "adamw":
                variable.assign(variable * kept[at])
            elif self.plan.weight_decay:
                gradient = gradient + self.plan.weight_decay * variable
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self.slots[name][MEAN].handle,
                v=self.slots[name][SQUARE].handle,
                beta1_power=nothing,  # the corrections are in the rate already
                beta2_power=nothing,
                lr=rates[at],
                beta1=first,
                beta2=second,
                epsilon=epsilons[at],
                grad=gradient,
            )

    # state

    def state(self) -> dict[str, np.ndarray]:
        """`<tensor name>/<field>` to array, for tensors that have been updated."""
        saved: dict[str, np.ndarray] = {}
        counts = self.counts.numpy()
        for name, slots in self.slots.items():
            if not counts[self.position[name]]:
                continue
            saved.update({f"{name}/{field}": slot.numpy() for field, slot in slots.items()})
            saved[f"{name}/{COUNT}"] = np.array(counts[self.position[name]], np.float32)
        return saved

    def load_state(self, saved: Mapping[str, np.ndarray]) -> None:
        """Take over the state of the tensors that are trained here, where it is this kind of optimizer's; others start fresh."""
        counts = self.counts.numpy()
        for key, value in saved.items():
            name, _, field = key.rpartition("/")
            if name not in self.variables:
                continue
            if field in self.slots[name]:
                self.slots[name][field].assign(value)
            elif field == COUNT and all(f"{name}/{slot}" in saved for slot in self.slots[name]):
                counts[self.position[name]] = int(value)
        self.counts.assign(counts)


def clipped(gradients: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """All gradients times min(1, limit / norm), the norm taken over all of them together (Pascanu et al. 2013)."""
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients.values()]))
    share = tf.minimum(1.0, limit / (norm + CLIP_EPSILON))
    return {name: gradient * share for name, gradient in gradients.items()}
