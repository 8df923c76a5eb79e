"""A Keras network becomes a portable graph: its flat graph, call by call, up to the pooled features."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from xfer.backends.graph_writer import Writer
from xfer.backends.tensorflow.graph import Call
from xfer.backends.tensorflow.network import TensorflowNetwork
from xfer.backends.tensorflow.portable_calls import CALLS
from xfer.backends.tensorflow.portable_moves import MOVES
from xfer.backends.tensorflow.portable_step import Held, Step, kind_of, last
from xfer.backends.tensorflow.segments import AVERAGED
from xfer.plan.model_map import PIXELS
from xfer.plan.portable import NotPortableError, Portable


def export(network: TensorflowNetwork) -> tuple[Portable, dict[str, np.ndarray]]:
    """A built network's source as data, with its tensors; raises NotPortableError naming what only Keras has."""
    plan, derived = network.parts.plan, network.parts.segments.derived
    if derived is None:
        reason = (plan.model.note or "").rpartition(": ")[2]
        raise NotPortableError(f"both backends can't hold {plan.source.model}: its graph is not known: {reason}")
    writer, end = Writer(plan.source.model), derived.cuts[-1]
    features = _written(writer, derived.flow.calls, derived.graph.input, end.tensor, plan.model.image_size)
    portable = writer.finish(
        features.value,
        averaged=[features.axis(dimension) for dimension in AVERAGED.get(end.layout, ())],
        backend="tensorflow",
        input_size=plan.model.input_size,
        image_size=plan.model.image_size,
        preprocess=plan.source.preprocess,
    )
    return portable, writer.tensors


def _written(writer: Writer, calls: tuple[Call, ...], images: Any, end: Any, image_size: int) -> Held:
    values = {id(images): Held(writer.images(image_size), last(3))}
    handlers = {**CALLS, **MOVES}
    for call in calls:
        if getattr(call.operation, "weights", ()):
            writer.once(call.name, type(call.operation).__name__)
        step = Step(writer, call, call.name, tuple(values[id(tensor)] for tensor in call.reads))
        handler = handlers.get(kind_of(call.operation))
        if handler is None or len(call.gives) != 1:
            raise step.refuse()
        values[id(call.gives[0])] = handler(step)
    return values[id(end)]


def network_input(network: TensorflowNetwork, pixels: np.ndarray) -> np.ndarray:
    """What the network itself gets for uint8 [n, H, W, 3]: float32 [n, H, W, 3]."""
    found = network.parts.entered(tf.constant(pixels), start=PIXELS)
    return tf.cast(found, tf.float32).numpy()  # type: ignore[no-any-return]
