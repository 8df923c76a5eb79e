"""What kind of thing an operation is: a normalisation, a linear layer, dropout."""

from __future__ import annotations

from typing import Any

import keras

_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
_NO_NORMS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Normalization)
_DROPOUTS = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_RECTIFIERS = {"relu", "relu6", "leaky_relu", "leakyrelu", "prelu", "elu", "celu", "selu", "gelu", "silu", "swish", "mish"}
_RECTIFIERS |= {"softplus", "hard_silu", "hardsilu", "hard_swish", "glu", "threshold", "squareplus"}


def is_norm(layer: Any) -> bool:
    """A normalisation layer: one of Keras', or one that is called so and holds no other layers. Input normalisation (`Normalization`)
    is none: nothing trains it, and it keeps no statistics of a batch."""
    if isinstance(layer, _NORMS):
        return True
    called = any("Norm" in kind.__name__ and not kind.__module__.startswith("keras.") for kind in type(layer).__mro__)
    return called and isinstance(layer, keras.Layer) and not isinstance(layer, _NO_NORMS) and not layer._layers


def batch_norms(network: Any) -> list[Any]:
    """The batch normalisation layers of a network, inner ones too, in its own order."""
    return [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def is_linear(operation: Any) -> bool:
    """A linear layer over the channels, or a convolution that is one: 1x1 and not grouped."""
    if isinstance(operation, keras.layers.Dense):
        return True
    if type(operation) is not keras.layers.Conv2D:
        return False
    return set(operation.kernel_size) == {1} and operation.groups == 1 and set(operation.strides) == {1}


def is_dropout(operation: Any) -> bool:
    """An operation without weights that drops values or whole samples, or adds noise, at random."""
    if isinstance(operation, _DROPOUTS):
        return True
    named = any(word in type(operation).__name__.lower() for word in ("drop", "stochasticdepth"))
    return named and isinstance(operation, keras.Layer) and not operation.weights


def drops(operation: Any) -> bool:
    """Dropout that is switched on."""
    rates = [getattr(operation, name, None) for name in ("rate", "drop_prob", "stddev")]
    return is_dropout(operation) and next((rate for rate in rates if isinstance(rate, int | float)), None) != 0


def rectifies(operation: Any) -> bool:
    """An activation that hidden layers have and class scores don't."""
    function = getattr(operation, "activation", None)
    name = getattr(function, "__name__", type(function).__name__ if function is not None else type(operation).__name__)
    return str(name).lower() in _RECTIFIERS


def holds_attention(operation: Any) -> bool:
    """Whether positions attend to each other in it."""
    inside = operation._flatten_layers() if isinstance(operation, keras.Layer) else ()
    return any("Attention" in type(layer).__name__ for layer in inside)
