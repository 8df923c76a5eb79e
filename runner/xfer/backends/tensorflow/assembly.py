"""A source network with its new head and the method's own tensors: the variables by their names, and the way through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xfer import plugins
from xfer.backends.backend import Device
from xfer.backends.plan_tensors import changing, groups_of, of_source, own_start
from xfer.backends.tensorflow.graph import named_variables
from xfer.backends.tensorflow.hardware import place
from xfer.backends.tensorflow.head import Head, pool
from xfer.backends.tensorflow.segments import Segments
from xfer.methods.method import Method
from xfer.plan.model_map import OWN, PIXELS
from xfer.plan.plan import Plan

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}
STORED_BITS = "uint16"  # how the store keeps bfloat16


class Assembly:
    """What a plan's network is made of, on its device. `named` holds every variable (tf.Variable) by its name in the plan, `source` the
    values that the parameters which some phase trains have in the source. `base` is the flattened network."""

    def __init__(self, plan: Plan, base: Any, device: Device) -> None:
        self.plan, self.base, self.place = plan, base, place(device)
        self.dtype = DTYPES[plan.runtime.precision]  # of rows in the store
        # Where the processor has no fast bfloat16, float32 is both faster and more exact: rows are then only kept in it.
        self.compute_dtype = tf.float32 if self.dtype == tf.bfloat16 and not device.fast_bfloat16 else self.dtype
        set_precision(base, self.compute_dtype.name)
        self.segments = Segments(base, plan.model)
        preprocess = plan.source.preprocess
        scale = np.array([s * preprocess.scale for s in preprocess.std], np.float32)
        shift = np.array([m * preprocess.scale for m in preprocess.mean], np.float32)
        self._scale, self._shift = tf.constant(1 / scale), tf.constant(-shift / scale)
        self.method: Method = plugins.load(plan.method.target)(**plan.method.options)
        with tf.device(self.place):
            self.head = Head(plan.head, seed=plan.seed)
            self.own = {name: tf.Variable(values) for name, values in own_start(self.method, plan).items()}
        self.named = self._named()
        self.group_of = groups_of(plan)
        self.changing = changing(plan, self.named)
        self.source = {name: tf.constant(self.named[name].numpy()) for name in of_source(self.changing, self.group_of)}
        self.teacher = self._copy() if plan.method.teacher else None

    def _named(self) -> dict[str, Any]:
        inside = named_variables(self.base)
        wanted = [tensor.name for group in self.plan.model.groups for tensor in group.tensors]
        named = {name: inside[name].value for name in wanted}
        named.update(self.head.variables)
        named.update({f"{OWN}.{name}": variable for name, variable in self.own.items()})
        return named

    def _copy(self) -> Segments:
        """A second network that keeps the source's weights."""
        twin = keras.models.clone_model(self.base)
        twin.set_weights(self.base.get_weights())
        set_precision(twin, self.compute_dtype.name)
        return Segments(twin, self.plan.model)

    # the way through

    def tensor(self, values: np.ndarray, dtype: str) -> Any:
        """Rows as they are stored, on the device. `dtype` is the stored one; uint16 holds bfloat16."""
        with tf.device(self.place):
            tensor = tf.constant(values)
        return tf.bitcast(tensor, tf.bfloat16) if dtype == STORED_BITS else tensor

    def entered(self, x: Any, *, start: str) -> Any:
        """Stored rows of cut `start` as a segment wants them: uint8 [B, H, W, 3] RGB becomes the network's float32 input."""
        if start != PIXELS:
            return tf.cast(x, self.compute_dtype)
        x = tf.cast(x, tf.float32)
        if self.plan.source.preprocess.channels == "bgr":
            x = tf.reverse(x, axis=[-1])
        return x * self._scale + self._shift

    def suffix(self, start: str, *, pooled: bool) -> Callable[..., Any] | None:
        """What lies between cut `start` and the head; None where that is nothing."""
        at = self.plan.head.at
        return None if pooled or start == at else self.segments.between(start, at)

    def vectors(self, x: Any, *, pooled: bool) -> Any:
        """The head's input, float32 [B, D], from what lies at its cut."""
        x = tf.cast(x, tf.float32)
        return x if pooled else pool(x, self.plan.head.layout)

    # numbers

    def distances(self) -> dict[str, float]:
        """Per group that some phase trains: ||w - w⁰|| / ||w⁰|| over its parameters, w⁰ their values in the source."""
        squares: dict[str, list[float]] = {}
        parameters = {tensor.name for group in self.plan.model.groups for tensor in group.parameters}
        for name, before in self.source.items():
            if name not in parameters:
                continue
            held = before.numpy().astype(np.float64)
            pair = squares.setdefault(self.group_of[name], [0.0, 0.0])
            pair[0] += float(np.square(self.named[name].numpy().astype(np.float64) - held).sum())
            pair[1] += float(np.square(held).sum())
        return {group: (moved / held) ** 0.5 if held else 0.0 for group, (moved, held) in squares.items()}

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        return {name: self.named[name].numpy() for name in names}

    def put(self, tensors: Mapping[str, np.ndarray]) -> None:
        for name, value in tensors.items():
            self.named[name].assign(np.asarray(value).reshape(self.named[name].shape))
        for layer in self.base._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # it computes with constants that are made of its variables


def set_precision(network: Any, dtype: str) -> None:
    """What the layers compute in; their variables stay float32 (Micikevicius et al. 2018, "Mixed precision training")."""
    policy = keras.DTypePolicy("float32" if dtype == "float32" else f"mixed_{dtype}")
    for layer in network._flatten_layers():
        layer.dtype_policy = policy
