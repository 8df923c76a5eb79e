from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from xfer.backends.tensorflow.graph import flatten, functional, graph_of, named_tensors, named_variables
from xfer.errors import UsageError


def base(size: int | None = 16, **names: str) -> Any:
    x = inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(4, 3)(x)
    return keras.Model(inputs, x, **names)


def whole(inside: Any) -> Any:
    return keras.Sequential([inside, layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(5)])


def test_names_do_not_depend_on_what_the_process_made_before() -> None:
    first = list(named_variables(whole(base())))
    layers.Dense(3)
    assert list(named_variables(whole(base()))) == first
    assert first == [
        *("stem/kernel", "stem/bias"),
        *(f"batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        *("conv2d/kernel", "conv2d/bias", "dense/kernel", "dense/bias"),
    ]


def test_kinds_are_what_keras_made_trainable_whatever_the_flags_say() -> None:
    frozen = base()
    frozen.trainable = False
    for network in (frozen, keras.Model.from_config(frozen.get_config())):
        assert not network.trainable_variables
        kinds = {tensor.name: (tensor.kind, tensor.norm) for tensor in named_tensors(network)}
        assert kinds["batch_normalization/gamma"] == ("parameter", True)
        assert kinds["batch_normalization/moving_mean"] == ("buffer", True)
        assert kinds["stem/kernel"] == ("parameter", False)


def test_a_nested_model_is_expanded_and_shares_its_variables() -> None:
    network = whole(base(None))
    flat = flatten(network, image_size=20)
    assert flat.input_shape == (None, 20, 20, 3)
    assert [type(layer).__name__ for layer in flat.layers] == [
        *("InputLayer", "Conv2D", "BatchNormalization", "Conv2D"),
        *("GlobalAveragePooling2D", "Dropout", "Dense"),
    ]
    ours, theirs = named_variables(flat), named_variables(network)
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in ours)
    images = np.random.default_rng(0).normal(size=(2, 20, 20, 3)).astype(np.float32)
    np.testing.assert_array_equal(flat(images), network(images))


def test_a_flat_network_of_the_right_size_is_returned_as_it_is() -> None:
    network = base(16)
    assert flatten(network, image_size=16) is network
    assert flatten(network, image_size=18) is not network
    again = flatten(flatten(whole(network), image_size=18), image_size=18)
    assert graph_of(again).network is again


def test_nested_layers_of_the_same_name_get_their_models_name() -> None:
    one, other = base(name="left"), base(name="right")
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(3, 1, name="stem")(inputs)
    network = keras.Model(inputs, layers.Add()([one(x), other(x)]))
    before = list(named_variables(network))
    assert [name for name in before if name.endswith("kernel")] == [
        *("stem/kernel", "left_stem/kernel", "conv2d/kernel"),
        *("right_stem/kernel", "conv2d_1/kernel"),
    ]
    flat = flatten(network, image_size=16)
    assert list(named_variables(flat)) == before
    assert list(named_variables(network)) == before
    assert len({layer.name for layer in flat.layers}) == len(flat.layers)


def test_two_models_whose_automatic_names_clash() -> None:
    one = base(name="left")
    other = keras.Model.from_config(one.get_config())
    inputs = keras.Input((16, 16, 3))
    network = keras.Model(inputs, layers.Add()([one(inputs), keras.Model(other.inputs[0], other.outputs[0], name="right")(inputs)]))
    before = list(named_variables(network))
    assert [name for name in before if "kernel" in name] == ["stem/kernel", "conv2d/kernel", "right_stem/kernel", "conv2d_1/kernel"]
    assert list(named_variables(flatten(network, image_size=16))) == before


def test_a_model_that_is_called_twice_is_expanded_twice() -> None:
    inside = base(name="inside")
    inputs = keras.Input((16, 16, 3))
    network = keras.Model(inputs, layers.Concatenate()([inside(inputs), inside(layers.Rescaling(2.0)(inputs))]))
    flat = flatten(network, image_size=16)
    assert [call.name for call in graph_of(flat).calls].count("stem") == 2
    assert len(named_variables(flat)) == len(network.weights) == 8
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(flat(images), network(images))


class Composite(layers.Layer):
    """Layers inside a layer, one of them with an automatic name, and variables of its own, one without a name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.second, self.drop = layers.Dense(4, name="inner"), layers.Dense(4), layers.Dropout(0.5)
        self.blocks = [layers.LayerNormalization(), layers.LayerNormalization()]

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(4,), name="scale")
        self.shift = self.add_weight(shape=(4,))
        for layer in (self.first, self.second, *self.blocks):
            layer.build(shape)
            shape = (*shape[:-1], 4)

    def call(self, x: Any) -> Any:
        x = self.second(self.first(x)) * self.scale + self.shift
        for block in self.blocks:
            x = block(x)
        return self.drop(x)


def composite() -> Any:
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, Composite(name="outer")(inputs))


def test_layers_inside_a_layer_add_their_names() -> None:
    layers.Dense(1), layers.LayerNormalization()
    network = composite()
    assert set(named_variables(network)) == {
        *("outer/scale", "outer/variable"),
        *("outer/inner/kernel", "outer/inner/bias", "outer/dense/kernel", "outer/dense/bias"),
        *(f"outer/layer_normalization{number}/{name}" for number in ("", "_1") for name in ("gamma", "beta")),
    }
    assert {id(v) for v in named_variables(network).values()} == {id(v) for v in network.weights}
    assert list(named_variables(composite())) == list(named_variables(network))


class Tied(layers.Layer):
    """Reads another layer's weights, backwards."""

    def __init__(self, other: Any) -> None:
        super().__init__(name="tied")
        self.kernel, self.bias = other.kernel, self.add_weight(shape=(3,), name="bias")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel)) + self.bias


def test_tied_variables_count_once() -> None:
    first = layers.Dense(4, name="first")
    inputs = keras.Input((8, 8, 3))
    x = first(inputs)
    network = keras.Model(inputs, Tied(first)(x))
    assert list(named_variables(network)) == ["first/kernel", "first/bias", "tied/bias"]
    assert len(network.weights) == 3


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = layers.Conv2D(4, 3, name="stem"), layers.Dense(5)

    def call(self, x: Any) -> Any:
        return self.fc(keras.ops.mean(self.stem(x), (1, 2)))


class Deciding(keras.Model):
    def call(self, x: Any, training: Any = None) -> Any:
        return super().call(x, training=training) * 2


def test_what_has_no_graph() -> None:
    network = Subclassed()
    network(np.zeros((1, 8, 8, 3), np.float32))
    assert functional(network) is None
    assert flatten(network, image_size=8) is network
    assert list(named_variables(network)) == ["stem/kernel", "stem/bias", "dense/kernel", "dense/bias"]
    assert functional(keras.Sequential([layers.Dense(3)])) is None
    inside = base()
    assert functional(Deciding(inside.inputs, inside.outputs)) is None
    assert functional(inside) is inside


def test_a_sequential_model_that_was_never_built_is_built() -> None:
    network = keras.Sequential([layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")])
    assert flatten(network, image_size=8).output_shape == (None, 4, 4, 4)
    assert list(named_variables(network)) == ["a/kernel", "a/bias", "b/kernel", "b/bias"]


def test_a_nested_model_without_a_graph_stays_a_layer() -> None:
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, Subclassed()(inputs))
    flat = flatten(network, image_size=8)
    assert [name for name in named_variables(flat) if "kernel" in name] == ["subclassed/stem/kernel", "subclassed/dense/kernel"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(16, 16, 1)], "'net' reads 16 x 16 x 1: only networks that read RGB images, channels last, can be used"),
        ([(3, None, None)], "'net' reads 3 x any x any: only networks that read RGB images, channels last, can be used"),
        ([(10,)], "'net' reads 10: only networks that read RGB images, channels last, can be used"),
        ([(16, 16, 3), (4,)], "'net' has 2 inputs (one, two): only networks that read one image can be used"),
    ],
)
def test_networks_that_read_something_else(shapes: list[Any], message: str) -> None:
    inputs = [keras.Input(shape, name=name) for shape, name in zip(shapes, ("one", "two"), strict=False)]
    flat = [layers.Flatten()(x) if None not in x.shape[1:] else keras.ops.mean(x, (2, 3)) for x in inputs]
    network = keras.Model(inputs, layers.Concatenate()(flat) if len(flat) > 1 else flat[0], name="net")
    with pytest.raises(UsageError) as raised:
        flatten(network, image_size=16)
    assert raised.value.message == message
