"""Recipes whose source is a file or a folder: what is a fault, and when the model is described anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from xfer import plugins
from xfer.compile.compiler import check, compile_plan
from xfer.errors import RecipeError
from xfer.recipe.loader import read

RECIPE = """\
source:
  model: {model}
target:
  dataset: sklearn/digits
transfer:
  type: model
freeze:
  - train: head
    epochs: 1
  - train: {train}
    epochs: 1
runtime:
  cache: cache
"""


@pytest.fixture
def keras() -> Any:
    from xfer.sources import keras_library

    return keras_library.keras()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(keras: Any, name: str, *layers: Any, side: int = 16) -> None:
    keras.Sequential([keras.Input((side, side, 3)), *layers, keras.layers.Conv2D(4, 3, name="conv")]).save(name)


def recipe(model: str, *, train: str = "all", more: str = "") -> Path:
    file = Path("r.yaml")
    file.write_text(RECIPE.format(model=model, train=train) + more)
    return file


def faults(file: Path) -> list[str]:
    with pytest.raises(RecipeError) as error:
        compile_plan(read(file, ()))
    return [str(fault) for fault in error.value.faults]


def test_the_plan_holds_the_absolute_path_and_what_the_file_says(keras: Any, place: Path) -> None:
    save(keras, "model.keras")
    plan = compile_plan(read(recipe("file:model.keras"), ()))
    assert (plan.source.model, plan.source.name, plan.backend) == ("file:model.keras", str(place / "model.keras"), "tensorflow")
    weights = plan.source.weights
    assert (weights.kind, weights.location, weights.file, weights.url) == ("tag", "its own", str(place / "model.keras"), None)
    assert (plan.source.preprocess.crop, plan.source.preprocess.values, plan.model.input_size) == (16, "0..1", 16)
    overrides = ("source.preprocess.range=-1..1", "source.weights=none", "target.image_size=20")
    changed = compile_plan(read(recipe("file:model.keras"), overrides))
    assert (changed.source.preprocess.values, changed.source.weights.kind, changed.model.image_size) == ("-1..1", "none", 20)


def test_a_changed_file_is_described_anew(keras: Any, place: Path) -> None:
    save(keras, "model.keras")
    assert compile_plan(read(recipe("file:model.keras"), ())).model.input_size == 16
    assert len(list(Path("cache/models").iterdir())) == 1
    assert compile_plan(read(recipe("file:model.keras"), ())).model.input_size == 16
    assert len(list(Path("cache/models").iterdir())) == 1
    save(keras, "model.keras", side=20)
    os.utime("model.keras", ns=(1, 1))
    assert compile_plan(read(recipe("file:model.keras"), ())).model.input_size == 20


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("file:modl.keras", "r.yaml:2:3: source.model: no file or folder {place}/modl.keras; did you mean 'model.keras'?"),
        ("file:https://host/model.keras", "r.yaml:2:3: source.model: file:https://host/model.keras is behind a URL; copy it to this machine and name the copy"),  # noqa: E501
        ("file:r.yaml", "r.yaml:2:3: source.model: {place}/r.yaml is no weight file that xfer knows (it opens with b'source:\\\\n'). "),
        ("file:saved", "r.yaml:2:3: source.model: {place}/saved is a SavedModel: name it savedmodel:{place}/saved"),
        ("savedmodel:saved", "r.yaml:1:1: source.trust: a SavedModel is a program, which may read and write files when it is loaded; where you know who made it, set 'trust: true' beside source.model"),  # noqa: E501
    ],
)  # fmt: skip
def test_models_that_cannot_be_used(model: str, fault: str, keras: Any, place: Path) -> None:
    save(keras, "model.keras")
    Path("saved").mkdir()
    Path("saved/saved_model.pb").write_bytes(b"x")
    found = faults(recipe(model))
    assert [line.startswith(fault.format(place=place).replace("\\\\", "\\")) for line in found] == [True], found


def test_weights_of_another_name(keras: Any, place: Path) -> None:
    save(keras, "model.keras")
    with pytest.raises(RecipeError) as error:
        compile_plan(read(recipe("file:model.keras"), ("source.weights=imagenet",)))
    assert [str(fault) for fault in error.value.faults] == [
        f"command line: source.weights=imagenet: file:{place}/model.keras brings its own weights, so there is no tag 'imagenet'; "
        "leave source.weights out, give a path to a weight file, or 'none' for random weights"
    ]


def test_a_savedmodel_that_nothing_of_can_be_trained(keras: Any, place: Path) -> None:
    import tensorflow as tf

    function = tf.function(lambda images: tf.reduce_mean(images, (1, 2)), input_signature=[tf.TensorSpec((None, 8, 8, 3))])
    tf.saved_model.save(tf.Module(), "saved", signatures=function)
    trusted = ("source.trust=true",)
    with pytest.raises(RecipeError) as error:
        compile_plan(read(recipe("savedmodel:saved"), trusted))
    (fault,) = error.value.faults
    assert (fault.line, fault.path) == (10, "freeze[1].train")
    assert fault.message == (
        "savedmodel:saved has no tensor that can be trained (no graph, so the only cuts are pixels and pooled, and its output is taken as "
        "the features: it is a SavedModel without trainable variables: its features can be used, but nothing of it can be trained); only "
        "the new head can: train: head"
    )
    plan = compile_plan(read(recipe("savedmodel:saved", train="head"), trusted))
    assert (plan.source.trust, plan.source.weights.location, plan.source.weights.file) == (True, "its own", None)


LAYER = """
import keras

xfer_plugins = {}

@keras.saving.register_keras_serializable(package="here")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain
"""


def test_a_layer_from_a_plugin_file_is_known_to_the_process_that_describes_the_model(keras: Any, place: Path) -> None:
    """`xfer check` asks another process, which has nothing but the recipe's word for it."""
    Path("layers.py").write_text(LAYER)
    scale = sys.modules[plugins.load_local(LAYER, stem="layers")].Scale  # type: ignore[attr-defined]
    save(keras, "model.keras", scale(name="scale"))
    file = recipe("file:model.keras", train="scale", more="plugins: [./layers.py]\n")
    assert check(read(file, ())) == ()
    assert len(list(Path("cache/models").iterdir())) == 1
