from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from xfer.backends.tensorflow.layers import batch_norms
from xfer.backends.tensorflow.segments import Segments
from xfer.errors import UsageError
from xfer.plan.model_map import ModelMap

Describe = Callable[..., ModelMap]


def test_prefix_and_suffix_equal_the_whole(
    build_keras: Any, describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any
) -> None:
    network = build_keras("MobileNetV2", 96)
    found = describe_own(network, 96)
    assert_covers(network, found)
    assert_segments_equal_whole(network, found, at_most=1)


def residual(x: Any, width: int, *, drop: float = 0.0) -> Any:
    y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x))
    y = layers.Dropout(drop)(layers.ReLU()(y))
    return layers.Add()([x, layers.Conv2D(width, 1)(y)])


def own(*, drop: float = 0.3) -> Any:
    """A small network with automatic names."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    for _ in range(3):
        x = residual(x, 8, drop=drop)
    x = layers.Dropout(drop)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def test_both_modes_of_a_network_with_dropout(describe_own: Describe, assert_segments_equal_whole: Any, assert_covers: Any) -> None:
    network = own()
    found = describe_own(network, 16)
    assert [cut.name for cut in found.cuts] == ["pixels", "conv2d", "add", "add_1", "pooled"]
    assert_covers(network, found)
    assert_segments_equal_whole(network, found)
    suffix, x = Segments(network, found).between("conv2d", "pooled"), tf.random.normal((2, 8, 8, 8))
    np.testing.assert_array_equal(suffix(x), suffix(x, training=False))
    assert not np.array_equal(suffix(x, training=True), suffix(x, training=True))


def test_each_operation_is_asked_with_its_group() -> None:
    network = own()
    segments = Segments(network, described(network))
    asked: list[tuple[str | None, str]] = []

    def training(group: str | None, operation: Any) -> bool:
        asked.append((group, type(operation).__name__))
        return group == "add_2" and not isinstance(operation, layers.Dropout)

    norms = batch_norms(segments.network)
    before = [np.asarray(norm.moving_mean) for norm in norms]
    segments.between("add", "pooled")(tf.random.normal((2, 8, 8, 8)), training=training)
    block = ["Conv2D", "BatchNormalization", "ReLU", "Dropout", "Conv2D", "Add"]
    assert asked == [*(("add_1", name) for name in block), *(("add_2", name) for name in block), ("add_2", "GlobalAveragePooling2D")]
    changed = [not np.array_equal(norm.moving_mean, value) for norm, value in zip(norms, before, strict=True)]
    assert changed == [False, False, True]


def described(network: Any, size: int = 16) -> ModelMap:
    from xfer.backends.tensorflow.describe import describe

    return describe(network, model="own", library="own 1", input_size=size, image_size=size)


def test_flags_stay_as_they_are() -> None:
    network = own()
    network.layers[1].trainable = network.layers[3].trainable = False
    flags = [layer.trainable for layer in network._flatten_layers()]
    segments = Segments(network, described(network))
    segments.between("pixels", "pooled")(tf.zeros((1, 16, 16, 3)), training=True)
    assert [layer.trainable for layer in network._flatten_layers()] == flags


def test_a_segment_works_in_a_graph_and_gives_gradients() -> None:
    network = own(drop=0.0)
    segments = Segments(network, described(network))
    suffix = segments.between("add", "pooled")
    x = tf.random.normal((2, 8, 8, 8))
    traced = tf.function(lambda x, training: suffix(x, training=training))
    np.testing.assert_allclose(traced(x, False), suffix(x), rtol=1e-5, atol=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(traced(x, True))
    kernels = [layer.kernel.value for layer in segments.network.layers if isinstance(layer, layers.Conv2D)]
    assert [gradient is not None for gradient in tape.gradient(loss, kernels)] == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(precision: str) -> None:
    network = own()
    segments = Segments(network, described(network))
    before = segments.between("pixels", "pooled")(tf.ones((2, 16, 16, 3)))
    for layer in segments.network._flatten_layers():
        layer.dtype_policy = keras.DTypePolicy(f"mixed_{precision}")
    rows = segments.between("pixels", "add")(tf.ones((2, 16, 16, 3)))
    after = segments.between("add", "pooled")(rows)
    assert (rows.dtype.name, after.dtype.name) == (precision, precision)
    whole = segments.between("pixels", "pooled")(tf.ones((2, 16, 16, 3)))
    np.testing.assert_array_equal(tf.cast(after, tf.float32), tf.cast(whole, tf.float32))
    np.testing.assert_allclose(tf.cast(after, tf.float32), before, rtol=0.05, atol=0.05)
    assert {variable.dtype for variable in network.weights} == {"float32"}


def test_a_segment_shares_the_networks_variables() -> None:
    network = own()
    segments = Segments(network, described(network))
    assert segments.between("add", "pooled") is segments.between("add", "pooled")
    whole, x = segments.between("pixels", "pooled"), tf.ones((1, 16, 16, 3))
    before = whole(x)
    network.layers[1].bias.assign(tf.ones(8))
    assert not np.array_equal(whole(x), before)
    nothing = segments.between("add", "add")
    assert nothing.is_identity
    assert nothing(x) is x
    assert nothing.signature() == ""
    assert not whole.is_identity


def test_tokens_and_maps_are_averaged_at_the_end(describe_own: Describe) -> None:
    tokens = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 8, 8), layers.Reshape((4, 4)), layers.LayerNormalization()])
    for network in (tokens, keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3, 2)])):
        found = describe_own(network, 16)
        assert found.cuts[-1].shape == (4,)
        x = tf.random.normal((2, 16, 16, 3))
        output = np.asarray(network(x))
        expected = output.reshape(2, -1, 4).mean(1)
        np.testing.assert_allclose(Segments(network, found).between("pixels", "pooled")(x), expected, rtol=1e-5, atol=1e-6)


class Chatty(layers.Layer):
    """Takes arguments of all kinds, gives two tensors, and holds dropout without taking `training` itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.drop = layers.Dropout(0.5)

    def call(self, x: Any, others: Any, *, scale: Any, shift: float = 0.0) -> Any:
        return self.drop(x * scale + others["y"]) + shift, others["z"][0]


def chatty() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1)(inputs)
    y = keras.ops.sigmoid(x) * 2 + np.arange(4, dtype=np.float32)
    x, z = Chatty()(x, {"y": y, "z": [y]}, scale=np.full(4, 2.0, np.float32), shift=1.0)
    x = layers.Conv2D(4, 1)(keras.ops.concatenate([x, z], axis=-1))
    return keras.Model(inputs, layers.Conv2D(4, 3)(x[:, 1:-1, 1:-1] / 2))


def test_arguments_of_calls_are_kept(describe_own: Describe, assert_segments_equal_whole: Any) -> None:
    network = chatty()
    found = describe_own(network, 8)
    assert [(cut.name, cut.shape) for cut in found.cuts[1:-1]] == [("conv2d", (8, 8, 4)), ("conv2d_1", (6, 6, 4))]
    assert_segments_equal_whole(network, found)
    suffix, x = Segments(network, found).between("conv2d", "pooled"), tf.ones((2, 8, 8, 4))
    assert not np.array_equal(suffix(x, training=True), suffix(x, training=True))  # reaches the dropout inside


def test_a_mask_that_goes_with_a_tensor_makes_no_cut(describe_own: Describe, assert_segments_equal_whole: Any) -> None:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((4, 4))(layers.Conv2D(4, 4, 4)(x))
    x = layers.Masking(0.0)(layers.ReLU()(x))
    x = layers.MultiHeadAttention(2, 2)(x, x)
    x = layers.Dense(4)(layers.Dense(4)(x))
    network = keras.Model(inputs, layers.LayerNormalization()(x))
    found = describe_own(network, 8)
    assert [cut.name for cut in found.cuts] == ["pixels", "conv2d", "pooled"]
    assert_segments_equal_whole(network, found)


def test_a_shared_layer_lies_in_the_group_of_its_first_call(describe_own: Describe, assert_segments_equal_whole: Any) -> None:
    shared = layers.Conv2D(4, 1, name="shared")
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, name="a")(x)
    x = layers.Conv2D(4, 1, name="b")(shared(x))
    x = layers.Conv2D(4, 3, name="d")(layers.Conv2D(4, 1, name="c")(shared(x)))
    network = keras.Model(inputs, x)
    found = describe_own(network, 8)
    assert [group.name for group in found.groups] == ["a", "shared", "b", "c", "d"]
    assert [(cut.name, cut.groups_before) for cut in found.cuts] == [("pixels", 0), ("a", 1), ("b", 3), ("c", 4), ("pooled", 5)]
    assert_segments_equal_whole(network, found)
    assert Segments(network, found).group_of["shared"] == "shared"


def test_operations_without_weights_belong_to_the_group_that_they_lie_in() -> None:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0, name="rescale")(x)
    x = layers.ReLU(name="after_a")(layers.Conv2D(4, 1, name="a")(x))
    x = layers.Dropout(0.5, name="before_b")(x)
    x = layers.Conv2D(4, 1, name="b")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    network = keras.Model(inputs, layers.Dense(3, name="scores")(layers.Dropout(0.5, name="before_scores")(x)))
    segments = Segments(network, described(network))
    assert segments.group_of == {"rescale": "a", "a": "a", "after_a": "a", "before_b": "b", "b": "b", "pool": "b"}
    x = tf.ones((2, 16, 16, 3))
    prefix = segments.between("pixels", "a")
    np.testing.assert_array_equal(prefix(x, training=True), prefix(x, training=True))  # the dropout is above the cut


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop, self.fc = layers.Conv2D(4, 3, name="stem"), layers.Dropout(0.5), layers.Conv2D(6, 1, name="fc")

    def call(self, x: Any) -> Any:
        return {"maps": self.fc(self.drop(self.stem(x)))}


def test_a_network_without_a_graph_runs_as_a_whole() -> None:
    network = Subclassed()
    segments = Segments(network, described(network))
    whole, x = segments.between("pixels", "pooled"), tf.random.normal((2, 16, 16, 3))
    np.testing.assert_allclose(whole(x), tf.reduce_mean(network(x)["maps"], (1, 2)), rtol=1e-6)
    assert segments.group_of == {"stem": "stem", "fc": "fc"}
    assert not np.array_equal(whole(x, training=lambda group, _: group == "fc"), whole(x))
    np.testing.assert_array_equal(whole(x, training=lambda group, _: False), whole(x))
    np.testing.assert_allclose(tf.function(whole)(x), whole(x), rtol=1e-5, atol=1e-6)


class Wrapped(layers.Layer):
    """What a source makes of something that is no Keras model."""

    note = "a wrapper"

    def __init__(self) -> None:
        super().__init__(name="wrapped")
        self.scale = self.add_weight(shape=(3,), name="scale", initializer="ones")

    def call(self, x: Any, training: bool = False) -> Any:
        return tf.reduce_mean(x, (1, 2)) * self.scale + (1.0 if training else 0.0)


def test_a_layer_in_the_place_of_a_network() -> None:
    found = described(network := Wrapped())
    assert [(group.name, [tensor.name for tensor in group.tensors]) for group in found.groups] == [("own", ["scale"])]
    assert found.note == "no graph, so the only cuts are pixels and pooled, and its output is taken as the features: it is a wrapper"
    segments, x = Segments(network, found), tf.zeros((2, 16, 16, 3))
    whole = segments.between("pixels", "pooled")
    assert segments.group_of == {"wrapped": "own"}
    assert np.asarray(whole(x, training=lambda group, _: group == "own")).tolist() == [[1.0] * 3] * 2
    assert np.asarray(whole(x, training=lambda group, _: group != "own")).tolist() == [[0.0] * 3] * 2


def test_cuts_that_there_are_not() -> None:
    segments = Segments(network := own(), described(network))
    with pytest.raises(UsageError) as raised:
        segments.between("pixels", "add_7")
    assert raised.value.message == "own has no cut 'add_7'; its cuts are pixels, conv2d, add, add_1, pooled"
    with pytest.raises(UsageError) as raised:
        segments.between("add", "conv2d")
    assert raised.value.message == "own: the cut 'conv2d' lies below 'add'"


def test_signatures_tell_graphs_apart_and_not_processes() -> None:
    def signature(network: Any, start: str = "pixels", end: str = "add_1") -> str:
        return Segments(network, described(network)).between(start, end).signature()

    first = signature(own())
    layers.Conv2D(3, 3), layers.Add(), layers.ReLU()
    assert signature(own()) == first
    assert signature(own(drop=0.4)) != first
    assert signature(own(), end="add") != first
    assert signature(chatty(), end="pooled") == signature(chatty(), end="pooled")
    network = Subclassed()
    assert "Conv2D" in signature(network, end="pooled")
    trained = own()
    trained.layers[1].bias.assign(tf.ones(8))
    trained.trainable = False
    assert signature(trained) == first
    assert "0x" not in first  # no address in memory


def test_signatures_of_constants_and_functions() -> None:
    def signature(number: float, function: Any) -> str:
        x = inputs = keras.Input((8, 8, 3))
        x = layers.Lambda(function)(layers.Conv2D(3, 1, activation=function)(x) + np.full(3, number, np.float32))
        network = keras.Model(inputs, layers.Conv2D(3, 3)(x))
        return Segments(network, described(network, 8)).between("pixels", "pooled").signature()

    def twice(x: Any) -> Any:
        return x * 2

    def squared(x: Any) -> Any:
        return x * x

    assert signature(1.0, twice) == signature(1.0, twice)
    assert len({signature(1.0, twice), signature(2.0, twice), signature(1.0, squared)}) == 3
