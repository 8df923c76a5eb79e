"""Draws inside a network are keyed by (seed, phase, step), never by how often something was drawn before."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from xfer.backends.tensorflow import randomness


class Inside(keras.layers.Layer):
    """A composite layer with dropout of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.drop = keras.layers.Dense(6), keras.layers.Dropout(0.5)

    def call(self, x, training=False):
        return self.drop(self.dense(x), training=training)


class OneSeed(keras.layers.Layer):
    """A layer that draws with a generator of its own, twice a call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seed_generator = keras.random.SeedGenerator(5)

    def call(self, x, training=False):
        if not training:
            return x
        return x + keras.random.normal(tf.shape(x), seed=self.seed_generator) * keras.random.uniform(tf.shape(x), seed=self.seed_generator)


class NoSeed(keras.layers.Layer):
    """A layer that draws with no generator of its own: then Keras takes one that all such layers share."""

    def call(self, x, training=False):
        return x + keras.random.normal(tf.shape(x)) if training else x


def network() -> keras.Model:
    x = entry = keras.Input((6,))
    for layer in (keras.layers.Dropout(0.5), Inside(), OneSeed(), keras.layers.GaussianDropout(0.3), NoSeed()):
        x = layer(x)
    return keras.Model(entry, x)


class Bench:
    """The network in train mode in one graph, its generators started from what is fed, as in the trainer's step."""

    def __init__(self, model: keras.Model) -> None:
        self.found = randomness.generators(model)
        spec = [tf.TensorSpec([None, 6], tf.float32), tf.TensorSpec([len(self.found), 2], tf.uint32)]

        def run(x, values):
            randomness.start(self.found, values)
            return model(x, training=True)

        self.run = tf.function(run, autograph=False, input_signature=spec)

    def __call__(self, seed: int, phase: int, step: int, number: int = 0) -> np.ndarray:
        values = randomness.seeds(seed, phase, step, n_steps=number + 1, n_generators=len(self.found))[number]
        drawn: np.ndarray = self.run(tf.ones([64, 6]), tf.constant(values)).numpy()
        return drawn


def test_all_generators_are_found_once():
    model = network()
    found = randomness.generators(model)
    names = [model.layers[1], model.layers[2].drop, model.layers[3], model.layers[4]]
    assert [id(each) for each in found[:-1]] == [id(layer.seed_generator) for layer in names]
    assert found[-1] not in found[:-1]
    assert len(randomness.generators(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))) == 1  # Keras' own


def test_a_shared_layer_has_one_generator():
    drop, entry = keras.layers.Dropout(0.5), keras.Input((6,))
    assert len(randomness.generators(keras.Model(entry, drop(keras.layers.Dense(6)(drop(entry)))))) == 2


@pytest.mark.parametrize("layer", [keras.layers.Dropout(0.5), Inside(), OneSeed(), keras.layers.GaussianDropout(0.3), NoSeed()],
                         ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_each_kind_of_layer_draws_anew_in_each_step_and_the_same_in_the_same(layer):
    entry = keras.Input((6,))
    bench = Bench(keras.Model(entry, layer(entry)))
    first, second, again = bench(1, 0, 7), bench(1, 0, 8), bench(1, 0, 7)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_the_same_key_draws_the_same_whatever_was_drawn_before():
    bench = Bench(network())
    first = bench(1, 0, 7)
    for step in range(3):
        bench(1, 2, step)
    assert np.array_equal(bench(1, 0, 7), first)


def test_the_same_key_draws_the_same_in_another_network_that_is_built_alike():
    """As in the process that resumes: Keras gives its layers other seeds and names."""
    one, other = network(), network()
    one_weights = one.get_weights()
    other.set_weights(one_weights)
    assert np.array_equal(Bench(one)(1, 0, 7), Bench(other)(1, 0, 7))


def test_each_part_of_the_key_counts():
    bench = Bench(network())
    keys = [(1, 0, 7), (2, 0, 7), (1, 1, 7), (1, 0, 8), (1, 0, 7, 1), (1, 7, 0)]
    assert len({bench(*key).tobytes() for key in keys}) == len(keys)


def test_seeds():
    made = randomness.seeds(3, 1, 20, n_steps=2, n_generators=5)
    assert (made.shape, made.dtype) == ((2, 5, 2), np.uint32)
    assert len(np.unique(made)) == 20  # no generator and no step of a method has another's
    assert np.array_equal(made[:1], randomness.seeds(3, 1, 20, n_steps=1, n_generators=5))
    assert randomness.seeds(3, 1, 20, n_steps=2, n_generators=0).shape == (2, 0, 2)


def test_parts_of_a_batch_have_seeds_of_their_own():
    made = [randomness.seeds(3, 1, 20, part=part, n_steps=1, n_generators=4) for part in (None, 0, 1, 2)]
    assert len(np.unique(made)) == 4 * 4 * 2


def test_draws_are_spread_evenly_over_steps():
    """Seeds of steps in a row must not give dropout that is alike."""
    x, entry = keras.layers.Dropout(0.5), keras.Input((6,))
    bench = Bench(keras.Model(entry, x(entry)))
    kept = np.stack([bench(0, 0, step) > 0 for step in range(200)])
    assert abs(kept.mean() - 0.5) < 0.01
    assert np.abs(kept.mean(axis=0) - 0.5).max() < 0.2
    together = np.corrcoef(kept.reshape(200, -1).astype(float))
    assert np.abs(together[np.triu_indices(200, 1)]).max() < 0.25
