"""Which operation is called in train mode, and which batch normalisation learns: of whole groups, and inside composite layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from xfer.backends.tensorflow.modes import learning_norms, mode_of, set_layers, trained_batch_norms
from xfer.backends.tensorflow.statistics import live


class Block(keras.layers.Layer):
    """A convolution with normalisation of both kinds inside, and dropout."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.conv, self.norm = keras.layers.Conv2D(4, 1), keras.layers.BatchNormalization()
        self.layer_norm, self.drop = keras.layers.LayerNormalization(), keras.layers.Dropout(0.5)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.drop(self.layer_norm(self.norm(self.conv(x), training=training)), training=training)


def network() -> keras.Model:
    """Groups 'one' (a convolution and its normalisation), 'block' (a composite layer) and 'last'."""
    entry = keras.Input((4, 4, 3))
    x = keras.layers.Dropout(0.5, name="drop")(keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 1, name="one")(entry)))
    x = Block(name="block")(x)
    x = keras.layers.LayerNormalization(name="last_norm")(keras.layers.Conv2D(4, 1, name="last")(x))
    return keras.Model(entry, x)


GROUP_OF = {"one": "one", "norm": "one", "drop": "one", "block": "block", "last": "last", "last_norm": "last"}


def in_train_mode(model: keras.Model, trained: list[str], norm: str) -> set[str]:
    mode = mode_of(trained, norm=norm)
    return {layer.name for layer in model.layers if mode(GROUP_OF.get(layer.name), layer)}


@pytest.mark.parametrize(
    ("trained", "norm", "expected"),
    [
        (["one", "head"], "train", {"one", "norm", "drop"}),
        (["block", "last", "head"], "train", {"block", "last", "last_norm"}),
        (["one", "last"], "frozen", {"one", "drop", "last"}),
        (["block"], "frozen", {"block"}),  # batch normalisation inside it has its own flag
        (["head"], "train", set()),
    ],
)
def test_only_what_belongs_to_trained_groups_is_in_train_mode(trained, norm, expected):
    assert in_train_mode(network(), trained, norm) == expected


def test_what_belongs_to_no_group_is_in_eval_mode():
    assert not mode_of(["one"], norm="train")(None, keras.layers.Dropout(0.5))


def means(model: keras.Model) -> dict[str, np.ndarray]:
    """Of the normalisation in group 'one' and of that inside the composite layer."""
    return {"one": model.get_layer("norm").moving_mean.numpy(), "block": model.get_layer("block").norm.moving_mean.numpy()}


@pytest.mark.parametrize("how", ["one by one", "as a whole"])
@pytest.mark.parametrize(
    ("trained", "options", "expected"),
    [
        (["one"], {}, {"one"}),
        (["block", "head"], {}, {"block"}),
        (["one", "block"], {"norm": "frozen"}, set()),
        (["head"], {"statistics": True}, {"one", "block"}),
        (["one"], {"norm": "frozen", "statistics": True}, {"one", "block"}),
        (["last"], {}, set()),
    ],
)
def test_statistics_change_where_they_may(trained, options, expected, how):
    """Whether layers are called as a segment calls them, or a network without a graph as a whole in train mode."""
    model, options = network(), {"norm": "train", "statistics": False, **options}
    before, mode = means(model), mode_of(trained, norm=options["norm"])
    learning = learning_norms(model, GROUP_OF, trained, **options)
    set_layers(model, learning)
    x = tf.random.stateless_normal((8, 4, 4, 3), (1, 2)) + 1
    with live(learning):
        if how == "as a whole":
            model(x, training=bool(trained))
        for layer in model.layers[1:] if how == "one by one" else ():
            x = layer(x, training=mode(GROUP_OF[layer.name], layer))
    after = means(model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == expected
    norms = [model.get_layer("norm"), model.get_layer("block").norm]
    assert all(layer.trainable for layer in model._flatten_layers() if layer not in norms)  # nothing else gets a flag


def test_flags_are_set_anew_for_each_phase():
    model = network()
    for trained, expected in ((["one"], [True, False]), (["block"], [False, True]), (["head"], [False, False])):
        set_layers(model, trained_batch_norms(model, GROUP_OF, trained))
        assert [model.get_layer("norm").trainable, model.get_layer("block").norm.trainable] == expected


def test_batch_norms_of_trained_groups():
    model = network()
    norm, inner = model.get_layer("norm"), model.get_layer("block").norm
    assert trained_batch_norms(model, GROUP_OF, ["one", "last", "head"]) == [norm]
    assert trained_batch_norms(model, GROUP_OF, ["one", "block"]) == [norm, inner]
    assert trained_batch_norms(model, GROUP_OF, ["head"]) == []
