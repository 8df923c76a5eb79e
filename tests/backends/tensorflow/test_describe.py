from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from xfer.backends.tensorflow.describe import describe
from xfer.backends.tensorflow.segments import Segments
from xfer.errors import UsageError
from xfer.plan.model_map import ModelMap

Describe = Callable[..., ModelMap]


def names(found: ModelMap) -> list[str]:
    return [group.name for group in found.groups]


def test_inverted_residual_blocks_are_the_groups(build_keras: Any) -> None:
    network = build_keras("MobileNetV2", 96, include_top=True)
    found = describe(network, model="keras/MobileNetV2", library="keras 3", input_size=224, image_size=96)
    blocks = [f"block_{number}" for number in range(1, 17)]
    assert found.stages == {
        "stage0": ("Conv1", "expanded_conv_depthwise", "expanded_conv_project"),
        "stage1": tuple(blocks[:2]),
        "stage2": tuple(blocks[2:5]),
        "stage3": tuple(blocks[5:12]),
        "stage4": (*blocks[12:], "Conv_1"),
    }
    assert [(cut.name, cut.shape, cut.layout) for cut in (*found.cuts[:3], *found.cuts[-2:])] == [
        ("pixels", (96, 96, 3), "pixels"),
        ("Conv1", (48, 48, 32), "hwc"),
        ("expanded_conv_depthwise", (48, 48, 32), "hwc"),
        ("block_16", (3, 3, 320), "hwc"),
        ("pooled", (1280,), "vector"),
    ]
    assert [tensor.name for tensor in found.classifier] == ["predictions/kernel", "predictions/bias"]
    assert (found.backend, found.traced, found.note, found.input_size, found.image_size) == ("tensorflow", True, None, 224, 96)
    assert found.n_parameters == 2_223_872
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    assert found.group("Conv1").norm == tuple(f"bn_Conv1/{name}" for name in norm)
    assert [tensor.name for tensor in found.group("Conv1").tensors] == ["Conv1/kernel", *found.group("Conv1").norm]
    assert {tensor.kind for tensor in found.group("Conv1").tensors[3:]} == {"buffer"}


def test_blocks_that_are_models_inside_a_model(build_keras: Any, describe_own: Describe) -> None:
    found = describe_own(build_keras("ConvNeXtTiny", 64), 64)
    prefix = "convnext_tiny"
    assert names(found)[:6] == [f"{prefix}_stem_conv", *(f"{prefix}_stage_0_block_{n}" for n in range(3))] + [
        f"{prefix}_downsampling_conv_0",
        f"{prefix}_stage_1_block_0",
    ]
    assert names(found)[-1] == "layer_normalization"
    assert (len(found.groups), len(found.cuts)) == (23, 24)
    assert [len(groups) for groups in found.stages.values()] == [4, 4, 10, 5]


def normalised(x: Any, **options: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False, **options)(x)))


def residual(x: Any, number: int | None = None) -> Any:
    """A block whose layers have names, or none."""
    given = [f"res{number}_{part}" if number is not None else None for part in ("one", "bn", "two", "sum")]
    y = layers.BatchNormalization(name=given[1])(layers.Conv2D(8, 3, padding="same", name=given[0])(x))
    return layers.Add(name=given[3])([x, layers.Conv2D(8, 1, name=given[2])(layers.ReLU()(y))])


def small(*, head: bool = True) -> Any:
    """Automatic names only."""
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(x)
    x = layers.MaxPooling2D()(normalised(x))
    x = residual(residual(normalised(x, strides=2)))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x) if head else x)


def test_a_network_of_ones_own(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    layers.Conv2D(1, 1), layers.Add(), layers.BatchNormalization()
    network = small()
    found = describe_own(network)
    assert_covers(network, found)
    assert names(found) == ["conv2d", "conv2d_1", "add", "add_1"]
    assert [tensor.name for tensor in found.group("add").tensors] == [
        *("conv2d_2/kernel", "conv2d_2/bias"),
        *(f"batch_normalization_2/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        *("conv2d_3/kernel", "conv2d_3/bias"),
    ]
    assert [(cut.name, cut.shape) for cut in found.cuts] == [
        ("pixels", (32, 32, 3)),
        ("conv2d", (16, 16, 8)),  # behind the pooling that has no tensors
        ("conv2d_1", (8, 8, 8)),
        ("add", (8, 8, 8)),
        ("pooled", (8,)),  # before the dropout
    ]
    assert_segments_equal_whole(network, found)
    assert describe_own(small()) == found


def test_a_base_inside_a_sequential_model(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    x = inputs = keras.Input((None, None, 3))
    for number in range(3):
        x = residual(layers.Conv2D(8, 3, strides=2, padding="same", name=f"down{number}")(x), number)
    base = keras.Model(inputs, x, name="base")
    base.trainable = False
    network = keras.Sequential([base, layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(7), layers.Softmax()])
    found = describe_own(network)
    base.trainable = True  # kinds don't depend on it
    assert_covers(network, found)
    assert names(found) == ["down0", "res0", "down1", "res1", "down2", "res2"]
    assert [tensor.name for tensor in found.classifier] == ["dense/kernel", "dense/bias"]
    assert_segments_equal_whole(network, found, at_most=2)


def test_a_flattened_map_and_hidden_layers(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    network = keras.Sequential([keras.Input((32, 32, 3))])
    for number in (1, 2):
        for letter in ("a", "b"):
            network.add(layers.Conv2D(4, 3, padding="same", activation="relu", name=f"block{number}_conv_{letter}"))
        network.add(layers.MaxPooling2D(4, name=f"block{number}_pool"))
    for layer in (layers.Flatten(), layers.Dense(16, activation="relu", name="fc1"), layers.Dropout(0.5)):
        network.add(layer)
    network.add(layers.Dense(5, activation="softmax", name="scores"))
    found = describe_own(network)
    assert_covers(network, found)
    assert names(found) == ["block1", "block2", "fc1"]
    assert [(cut.name, cut.shape, cut.layout) for cut in found.cuts[1:]] == [
        ("block1", (8, 8, 4), "hwc"),
        ("block2", (2, 2, 4), "hwc"),  # not the same numbers in a row
        ("pooled", (16,), "vector"),
    ]
    assert_segments_equal_whole(network, found)


class Positions(layers.Layer):
    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal", name="table")

    def call(self, x: Any) -> Any:
        return x + self.table


def transformer(blocks: int = 4, size: int = 32) -> Any:
    x = inputs = keras.Input((size, size, 3))
    x = layers.Reshape((-1, 8))(layers.Conv2D(8, 8, strides=8, name="patches")(x))
    x = Positions(name="positions")(x)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(8)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="last")(x))
    return keras.Model(inputs, layers.Dense(5)(x))


def test_a_transformer_has_the_tokens_and_four_equal_runs(
    describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any
) -> None:
    network = transformer()
    found = describe_own(network)
    assert_covers(network, found)
    blocks = [f"add_{number}" for number in range(1, 8, 2)]
    assert found.stages == {
        "stage0": ("patches", "positions"),
        "stage1": (blocks[0],),
        "stage2": (blocks[1],),
        "stage3": (blocks[2],),
        "stage4": (blocks[3], "last"),
    }
    assert {(cut.shape, cut.layout) for cut in found.cuts[1:-1]} == {((16, 8), "tokens")}
    assert_segments_equal_whole(network, found, at_most=2)


def test_an_image_size_that_the_network_cannot_take() -> None:
    with pytest.raises(UsageError) as raised:
        describe(transformer(1), model="own", library="own 1", input_size=32, image_size=48)
    assert raised.value.message.startswith("own can't take images of 48 pixels a side: ")
    assert raised.value.hint == "leave target.image_size out, or set it to 32, the size that the network was made for"


def test_images_that_are_too_small_in_the_networks_own_words() -> None:
    network = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 20, name="large")])
    with pytest.raises(UsageError) as raised:
        describe(network, model="own", library="own 1", input_size=16, image_size=16)
    assert raised.value.message == (
        "own can't take images of 16 pixels a side: Computed output size would be zero or negative. Received `inputs shape="
        "(None, 16, 16, 3)`, `kernel shape=(20, 20, 3, 4)`, `dilation_rate=[1 1]`, `strides=(1, 1)`, `padding=valid`."
    )
    assert raised.value.hint is None


def test_a_network_that_was_built_for_other_images_than_the_native_ones() -> None:
    found = describe(transformer(4, size=48), model="own", library="own 1", input_size=32, image_size=48)
    assert found.cut("positions").shape == (36, 8)
    assert [group.stage for group in found.groups] == ["stage0", "stage0", "stage1", "stage2", "stage3", "stage4", "stage4"]


def test_shapes_are_for_the_images_asked_for_and_stages_for_the_native_ones() -> None:
    network = small()
    here, native = (describe(network, model="own", library="own 1", input_size=64, image_size=size) for size in (20, 64))
    assert here.stages == native.stages
    assert list(here.stages) == ["stage0", "stage1"]
    assert (here.cut("add").shape, native.cut("add").shape) == ((5, 5, 8), (16, 16, 8))
    assert (here.input_size, here.image_size, here.cuts[0].shape) == (64, 20, (20, 20, 3))


def test_padding_makes_no_row_larger(build_keras: Any, describe_own: Describe) -> None:
    assert describe_own(build_keras("MobileNet", 32), 32).cut("conv_pw_1").shape == (16, 16, 64)


def two_streams(blocks: int = 9) -> Any:
    """Each cell reads the two before it, as in NASNet."""
    x = inputs = keras.Input((16, 16, 3))
    before = x = layers.Conv2D(4, 1, name="stem")(x)
    for number in range(blocks):
        parts = [layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(before)]
        parts += [layers.BatchNormalization()(part) for part in parts]
        before, x = x, layers.Conv2D(4, 1)(layers.Concatenate(name=f"cell{number}" if number % 2 else None)(parts))
    return keras.Model(inputs, layers.LayerNormalization(name="last")(layers.Add(name="both")([before, x])))


def test_many_layers_between_two_cuts_are_divided(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    network = two_streams()
    found = describe_own(network, 16)
    assert_covers(network, found)
    assert names(found)[:4] == ["stem", "concatenate", "cell1", "concatenate_1"]
    assert names(found)[-2:] == ["both", "last"]
    assert [(cut.name, cut.groups_before) for cut in found.cuts] == [("pixels", 0), ("stem", 1), ("both", 10), ("pooled", 11)]
    assert_segments_equal_whole(network, found, at_most=1)


def test_a_network_in_which_no_tensor_passes_alone(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    x = inputs = keras.Input((16, 16, 3))
    for number in range(24):
        x = layers.Conv2D(8, 1, name=f"conv{number}")(layers.Concatenate()([inputs, layers.LayerNormalization()(x), x]))
    network = keras.Model(inputs, layers.Add()([keras.ops.mean(x, (1, 2)), keras.ops.max(x, (1, 2))]) + keras.ops.mean(inputs))
    found = describe_own(network, 16)
    assert_covers(network, found)
    assert (found.traced, [cut.name for cut in found.cuts]) == (True, ["pixels", "pooled"])
    assert found.note == (
        "it has no classifying layer: its output is taken as the features; "
        "nowhere between its groups a single tensor passes, so the only cuts are pixels and pooled"
    )


def test_several_outputs(describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    x = inputs = keras.Input((32, 32, 3))
    x = residual(layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x), 0)
    early = layers.Dense(5, name="early")(layers.Dense(6, name="hidden")(layers.GlobalAveragePooling2D()(x)))
    late = layers.Dense(5, name="late")(layers.GlobalAveragePooling2D()(residual(x, 1)))
    network = keras.Model(inputs, [late, early])
    found = describe_own(network)
    assert_covers(network, found)
    assert names(found) == ["stem", "res0", "res1"]
    assert {tensor.name for tensor in found.classifier} == {f"{n}/{v}" for n in ("late", "early", "hidden") for v in ("kernel", "bias")}
    assert found.note == "it has several outputs (late, early): the first, late, is taken"
    assert_segments_equal_whole(network, found)


def test_classifying_layers_side_by_side(describe_own: Describe, assert_covers: Any) -> None:
    x = inputs = keras.Input((32, 32, 3))
    x = residual(layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x), 0)
    early = layers.Dense(5, name="early")(layers.GlobalAveragePooling2D()(x))
    late = layers.Dense(5, name="late")(layers.GlobalAveragePooling2D(name="pool")(residual(x, 1)))
    network = keras.Model(inputs, layers.Average()([early, late]))
    found = describe_own(network)
    assert_covers(network, found)
    assert found.note == "it has several classifying layers (early, late): the features are those that late reads"
    assert {tensor.name for tensor in found.classifier} == {f"{n}/{v}" for n in ("late", "early") for v in ("kernel", "bias")}


def test_a_classifier_that_is_a_convolution_is_averaged(describe_own: Describe, assert_segments_equal_whole: Any) -> None:
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Dropout(0.5)(layers.Conv2D(8, 3, strides=4, name="stem")(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 1, activation="relu", name="scores")(x))
    network = keras.Model(inputs, layers.Softmax()(x))
    found = describe_own(network)
    assert names(found) == ["stem"]
    assert found.cuts[-1].shape == (8,)
    assert [tensor.name for tensor in found.classifier] == ["scores/kernel", "scores/bias"]
    assert_segments_equal_whole(network, found)


def test_a_hidden_layer_at_the_end_is_no_classifier(describe_own: Describe) -> None:
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Flatten()(layers.Conv2D(8, 3, strides=8, name="stem")(x))
    found = describe_own(keras.Model(inputs, layers.Dense(6, activation="relu", name="features")(x)))
    assert (names(found), found.cuts[-1].shape, found.classifier) == (["stem", "features"], (6,), ())
    assert found.note == "it has no classifying layer: its output is taken as the features"


def test_groups_never_take_names_that_mean_something_else(describe_own: Describe, assert_covers: Any) -> None:
    x = inputs = keras.Input((16, 16, 3))
    for name in ("head", "all", "pixels", "pooled", "head_1"):
        x = layers.Conv2D(4, 3, padding="same", name=name)(x)
    network = keras.Model(inputs, x)
    found = describe_own(network, 16)
    assert_covers(network, found)
    assert names(found) == ["head_2", "all_1", "pixels_1", "pooled_1", "head_1"]


def test_normalisation_of_the_input_belongs_to_the_first_layer(describe_own: Describe, assert_covers: Any) -> None:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0)(layers.Normalization(name="normal")(layers.Rescaling(1 / 255)(x)))
    network = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(layers.Conv2D(4, 3, name="stem")(x)))
    found = describe_own(network, 16)
    assert_covers(network, found)
    assert [tensor.name for tensor in found.group("stem").tensors[:3]] == ["normal/mean", "normal/variance", "normal/count"]
    assert found.group("stem").norm == ()
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "pooled"]


def test_dropout_between_two_groups_stays_with_the_later_one(describe_own: Describe) -> None:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Dropout(0.5)(layers.ReLU()(layers.Conv2D(4, 3, name="stem")(x)))
    network = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(layers.MaxPooling2D()(x)))
    found = describe_own(network, 16)
    assert found.cut("stem").shape == (14, 14, 4)  # not behind the pooling, which lies behind the dropout
    prefix = Segments(network, found).between("pixels", "stem")
    rows = np.asarray(prefix(np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32), training=True))
    assert (rows >= 0).all()  # the activation is below the cut


def test_channels_that_are_not_last_make_no_cut(describe_own: Describe) -> None:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 4, strides=4, name="patches")(x))
    x = layers.Dense(16, name="mixing")(layers.Permute((2, 1))(x))
    x = layers.Dense(6, name="channels")(layers.Permute((2, 1))(x))
    found = describe_own(keras.Model(inputs, layers.LayerNormalization(name="last")(x)), 16)
    assert [(cut.name, cut.shape) for cut in found.cuts[1:-1]] == [("patches", (16, 6)), ("mixing", (16, 6))]


def test_shuffled_channels_are_where_they_were(describe_own: Describe) -> None:
    x = inputs = keras.Input((16, 16, 3))
    for number in range(3):
        x = layers.Conv2D(6, 1, name=f"conv{number}")(x)
        x = layers.Reshape((16, 16, 6))(keras.ops.transpose(layers.Reshape((16, 16, 2, 3))(x), (0, 1, 2, 4, 3)))
    x = keras.ops.swapaxes(keras.ops.transpose(x, (0, 2, 1, 3)), 1, 2)
    found = describe_own(keras.Model(inputs, layers.Conv2D(4, 3, name="last")(x)), 16)
    assert [(cut.name, cut.layout) for cut in found.cuts[1:-1]] == [(f"conv{number}", "hwc") for number in range(3)]


def test_a_network_with_no_weights_below_its_features(describe_own: Describe) -> None:
    network = keras.Sequential([keras.Input((16, 16, 3)), layers.GlobalAveragePooling2D(), layers.Dense(5)], name="net")
    with pytest.raises(UsageError) as raised:
        describe_own(network, 16)
    assert raised.value.message == "'net' has no weights below its features: there is nothing to transfer"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int8"])
def test_variables_that_are_not_float32(describe_own: Describe, dtype: str) -> None:
    """They would not fit a float32 input; quantized ones would be read as if they were the weights."""
    x = inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="stem")(x))
    policy = None if dtype == "int8" else dtype
    network = keras.Model(inputs, layers.Dense(5, name="fc")(layers.Dense(6, name="hidden", activation="relu", dtype=policy)(x)))
    if dtype == "int8":
        network.get_layer("hidden").quantize("int8")
    with pytest.raises(UsageError) as raised:
        describe_own(network, 16)
    assert raised.value.message == f"own can't be used: its 'hidden/kernel' is {dtype}, and variables must be float32"
    assert raised.value.hint == (
        "save it as it was before model.quantize(), or made under keras.config.set_dtype_policy('float32') "
        "(the mixed policies have such variables too)"
    )


def test_variables_of_mixed_policies_are_float32(describe_own: Describe) -> None:
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="stem", dtype="mixed_bfloat16")(x)
    assert names(describe_own(keras.Model(inputs, layers.Conv2D(4, 3, name="last", dtype="mixed_float16")(x)), 16)) == ["stem", "last"]


def test_penalties_and_constraints_of_layers_are_said_to_be_unheeded(describe_own: Describe) -> None:
    """Those of the classifier go with it."""
    unheeded = "regularizers or constraints, which are not applied: a recipe has optimizer.weight_decay"
    block = keras.Sequential([layers.DepthwiseConv2D(3, depthwise_constraint="non_neg")], name="block")

    def network(penalty: str | None, *inside: Any) -> Any:
        x = inputs = keras.Input((16, 16, 3))
        x = layers.Conv2D(4, 3, name="stem", kernel_regularizer=penalty)(x)
        for layer in inside:
            x = layer(x)
        top = layers.Dense(5, name="fc", kernel_regularizer="l2", bias_constraint="non_neg")
        return keras.Model(inputs, top(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="last")(x))))

    assert describe_own(network(None), 16).note is None
    assert describe_own(network("l2"), 16).note == f"its layer 'stem' has {unheeded}"
    assert describe_own(network("l2", block), 16).note == f"its layer 'stem' and 1 more have {unheeded}"


def test_rows_that_are_no_images_make_no_cut(describe_own: Describe) -> None:
    """Windows in the batch's dimension: the symbolic shape doesn't tell them from images."""
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(6, 1, name="stem")(x)
    x = keras.ops.reshape(x, (-1, 64, 6))
    x = layers.Dense(6, name="inside")(x)
    x = keras.ops.reshape(x, (-1, 16, 16, 6))
    found = describe_own(keras.Model(inputs, layers.Conv2D(4, 3, name="last")(x)), 16)
    assert [(cut.name, cut.shape) for cut in found.cuts[1:-1]] == [("stem", (16, 16, 6)), ("inside", (16, 16, 6))]


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.fc = layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization(), layers.Dense(6, name="fc")

    def call(self, x: Any, training: Any = None) -> Any:
        return self.fc(keras.ops.mean(self.bn(self.stem(x), training=training), (1, 2)))


def test_a_subclassed_model(describe_own: Describe, assert_covers: Any) -> None:
    network = Subclassed()
    found = describe_own(network)
    assert_covers(network, found)
    assert (found.traced, names(found)) == (False, ["stem", "batch_normalization", "fc"])
    assert [(cut.name, cut.shape) for cut in found.cuts] == [("pixels", (32, 32, 3)), ("pooled", (6,))]
    assert len(found.group("batch_normalization").norm) == 4
    assert found.note == (
        "no graph, so the only cuts are pixels and pooled, and its output is taken as the features: "
        "it is a Subclassed, which has no graph of layers"
    )
    network.fc.kernel_regularizer = keras.regularizers.L2(0.1)
    assert (describe_own(network).note or "").startswith(f"{found.note}; its layer 'fc' has regularizers or constraints")


def test_a_subclassed_model_that_cannot_take_the_images() -> None:
    network = Subclassed()
    with pytest.raises(UsageError) as raised:
        describe(network, model="own", library="own 1", input_size=224, image_size=2)
    assert raised.value.message.startswith("own can't take images of 2 pixels a side: ")
    assert raised.value.hint == "leave target.image_size out, or set it to 224, the size that the network was made for"


class Strange(keras.Model):
    """What is no features: no tensor, a row for all images, or too many dimensions."""

    def __init__(self, what: str) -> None:
        super().__init__(name="strange")
        self.what = what

    def call(self, x: Any) -> Any:
        return {"none": [], "one": keras.ops.mean(x), "many": x[:, None, None]}[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "'strange' can't be used: its output holds no tensor"),
        ("one", "'strange' can't be used: its output has no row per image"),
        ("many", "own: its features have the shape [1, 1, 32, 32, 3]: neither a vector, tokens nor a map"),
    ],
)
def test_outputs_that_are_no_features(describe_own: Describe, what: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        describe_own(Strange(what))
    assert raised.value.message == message


class Bare(keras.Model):
    def call(self, x: Any) -> Any:
        return keras.ops.mean(x, (1, 2))


def test_a_network_that_lists_no_variables_is_one_group(describe_own: Describe) -> None:
    found = describe(Bare(), model="savedmodel/models/bare", library="own 1", input_size=32, image_size=32)
    assert [(group.name, group.tensors) for group in found.groups] == [("bare", ())]
    assert [(cut.name, cut.groups_before) for cut in found.cuts] == [("pixels", 0), ("pooled", 1)]


def test_describing_leaves_the_network_as_it_was() -> None:
    network = small()
    network.layers[2].trainable = False
    before = [np.asarray(variable) for variable in network.variables]
    flags, config = [layer.trainable for layer in network._flatten_layers()], network.get_config()
    describe(network, model="own", library="own 1", input_size=32, image_size=48)
    assert [layer.trainable for layer in network._flatten_layers()] == flags
    assert all(np.array_equal(variable, value) for variable, value in zip(network.variables, before, strict=True))
    assert network.get_config() == config


# Networks that nobody wrote: any run of these pieces, with names or without.
PIECES = ["conv", "norm", "residual", "named", "branches", "excite", "pool", "drop", "nested", "dense", "slice", "twice"]


def grown(pieces: list[str], top: str) -> Any:
    x = inputs = keras.Input((32, 32, 3))
    twice = layers.Conv2D(8, 1)
    x = layers.Conv2D(8, 3, padding="same")(x)
    for number, piece in enumerate(pieces):
        side = x.shape[1]
        if piece in ("pool", "slice") and side < 6:
            continue
        if piece == "conv":
            x = normalised(x)
        elif piece == "norm":
            x = layers.LayerNormalization()(x)
        elif piece in ("residual", "named"):
            x = residual(x, number if piece == "named" else None)
        elif piece == "branches":
            x = layers.Concatenate()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 3, padding="same")(layers.ReLU()(x))])
        elif piece == "excite":
            x = x * layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        elif piece == "pool":
            x = layers.MaxPooling2D()(x)
        elif piece == "drop":
            x = layers.Dropout(0.3)(x)
        elif piece == "nested":
            y = layers.Input((side, side, 8))
            x = keras.Model(y, residual(y), name=f"nested{number}")(x)
        elif piece == "dense":
            x = layers.Dense(8, activation="relu", name=f"mix_{number}")(x)
        elif piece == "twice":
            x = twice(layers.ReLU()(twice(x)))
        else:
            x = x[:, 1:-1, 1:-1]
    if top != "maps":
        x = layers.Flatten()(x) if top == "flat" else layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(5, activation="softmax")(layers.Dropout(0.5)(x))
    return keras.Model(inputs, x)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=7), st.sampled_from(["maps", "flat", "vector"]))
def test_whatever_the_network(
    describe_own: Describe, assert_covers: Any, assert_segments_equal_whole: Any, pieces: list[str], top: str
) -> None:
    network = grown(pieces, top)
    found = describe_own(network)
    assert_covers(network, found)
    assert_segments_equal_whole(network, found, at_most=1)
    again = grown(pieces, top)
    assert describe_own(again) == found
    ends = (found.cuts[0].name, found.cuts[-1].name)
    assert Segments(again, found).between(*ends).signature() == Segments(network, found).between(*ends).signature()
