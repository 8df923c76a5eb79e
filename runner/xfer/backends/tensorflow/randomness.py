"""Dropout and its like inside a network: every draw is keyed by (seed, phase, step), never by how often something was drawn before."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator


def generators(network: Any) -> list[Any]:
    """The seed generators of all layers, in the network's order, and the one that layers draw from which have none of their own."""
    found: dict[int, Any] = {}
    for layer in network._flatten_layers():
        for generator in layer._seed_generators:
            found.setdefault(id(generator), generator)
    return [*found.values(), global_seed_generator()]


def seeds(seed: int, phase: int, step: int, *, n_steps: int, n_generators: int, part: int | None = None) -> np.ndarray:
    """uint32 [n_steps, n_generators, 2]: what each generator starts from at each of a method's steps on one batch. A batch that is one
    `part` of a larger one has draws of its own, which are not those of the whole."""
    place = () if part is None else (part,)
    made = np.zeros((n_steps, n_generators, 2), np.uint32)
    for number in range(n_steps if n_generators else 0):
        words = np.random.SeedSequence((seed, phase, step, number, *place)).generate_state(2 * n_generators, np.uint32)
        made[number] = words.reshape(n_generators, 2)
    return made


def start(found: list[Any], values: Any) -> None:
    """Inside a step's graph: give the generators their states, uint32 [n_generators, 2]."""
    for index, generator in enumerate(found):
        generator.state.assign(tf.cast(values[index], generator.state.dtype))
