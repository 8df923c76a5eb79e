from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from xfer.backends.tensorflow.layers import batch_norms, drops, holds_attention, is_dropout, is_linear, is_norm, rectifies


class ScaleNorm(layers.Layer):
    pass


class PreNorm(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inside = layers.LayerNormalization(), layers.Dense(3)


class DropPath(layers.Layer):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob


def called(function: Any) -> Any:
    """The operation behind a function of keras.ops."""
    return function(keras.Input((3,)))._keras_history.operation


NORMS = [layers.BatchNormalization(), layers.LayerNormalization(), layers.GroupNormalization(1), layers.UnitNormalization(), ScaleNorm()]
OTHERS = [layers.Normalization(), layers.SpectralNormalization(layers.Dense(2)), layers.Dense(2), PreNorm(), called(keras.ops.relu)]


@pytest.mark.parametrize(("layer", "expected"), [*((layer, True) for layer in NORMS), *((layer, False) for layer in OTHERS)])
def test_normalisation(layer: Any, expected: bool) -> None:
    assert is_norm(layer) == expected


def test_batch_normalisation_inside_others() -> None:
    inner = layers.BatchNormalization()
    network = keras.Sequential([layers.BatchNormalization(name="first"), layers.TimeDistributed(inner)])
    assert batch_norms(network) == [network.layers[0], inner]


def test_linear_layers() -> None:
    linear = [layers.Dense(3), layers.Conv2D(3, 1)]
    others = [layers.Conv2D(3, 3), layers.Conv2D(4, 1, groups=2), layers.Conv2D(3, 1, strides=2), layers.DepthwiseConv2D(1)]
    assert [is_linear(layer) for layer in [*linear, *others]] == [True, True, False, False, False, False]


def test_dropout() -> None:
    every = [layers.Dropout(0.5), layers.SpatialDropout2D(0.1), layers.GaussianNoise(0.2), DropPath(0.1)]
    off = [layers.Dropout(0.0), DropPath(0.0)]
    assert [(is_dropout(layer), drops(layer)) for layer in [*every, *off]] == [(True, True)] * 4 + [(True, False)] * 2
    assert not is_dropout(layers.ReLU())


def test_activations_of_hidden_layers() -> None:
    hidden = [layers.ReLU(), layers.LeakyReLU(), layers.Activation("gelu"), layers.Dense(3, activation="silu"), called(keras.ops.relu6)]
    scores = [layers.Softmax(), layers.Activation("sigmoid"), layers.Dense(3, activation="softmax"), layers.Dense(3), layers.Flatten()]
    assert [rectifies(layer) for layer in [*hidden, *scores]] == [True] * 5 + [False] * 5


def test_attention() -> None:
    assert holds_attention(layers.MultiHeadAttention(1, 2))
    assert holds_attention(layers.TimeDistributed(layers.GroupQueryAttention(2, 2, 1)))
    assert not holds_attention(layers.Dense(3))
