"""A Keras model of one's own as a source."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xfer.errors import UsageError, WeightsError
from xfer.plan.preprocess import Preprocess
from xfer.sources.keras_file import KerasFileSource
from xfer.sources.source import Tag

LAMBDA_HINT = (
    "where the model was made, put a class in its place that is registered with @keras.saving.register_keras_serializable(), "
    "and save it again"
)


@pytest.fixture
def keras() -> Any:
    from xfer.sources import keras_library

    return keras_library.keras()


@pytest.fixture
def source() -> KerasFileSource:
    return KerasFileSource()


@pytest.fixture
def network(keras: Any) -> Callable[..., Any]:
    """A small one for images of `side` pixels, behind other layers."""

    def make(*first: Any, side: int | None = 12, channels: int = 3) -> Any:
        x = inputs = keras.Input((side, side, channels))
        for layer in first:
            x = layer(x)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(x))
        return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))

    return make


def refusal(source: KerasFileSource, file: Path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        source.build(str(file), pretrained=True)
    assert error.value.path == "source.model"
    return error.value


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_model_as_it_was_saved(name: str, source: KerasFileSource, network: Callable[..., Any], tmp_path: Path) -> None:
    theirs, file = network(), tmp_path / name
    theirs.save(file)
    found = source.build(str(file), pretrained=True)
    assert [layer.name for layer in found.layers] == [layer.name for layer in theirs.layers]
    assert all(np.array_equal(a, b) for a, b in zip(found.get_weights(), theirs.get_weights(), strict=True))
    fresh = source.build(str(file), pretrained=False)
    assert [layer.name for layer in fresh.layers] == [layer.name for layer in theirs.layers]
    assert not np.array_equal(fresh.get_weights()[0], theirs.get_weights()[0])


def test_what_is_said_of_it(source: KerasFileSource, network: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network().save(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "model.keras")
    assert (source.backend, source.provider, source.models(), source.tags("model.keras")) == ("tensorflow", "file", [], ["its own"])
    assert source.library().startswith("keras ")
    assert source.located("model.keras") == place
    assert source.tag("model.keras", "DEFAULT") == source.tag(place, "its own") == Tag("its own", None, place)
    assert source.input_size("model.keras") == 12
    assert source.preprocess("model.keras", None) == Preprocess(resize=12, crop=12, mean=(0.0,) * 3, std=(1.0,) * 3, scale=255.0)
    tensors = {"a": 1}
    assert source.adapt("model.keras", tensors) is tensors
    with pytest.raises(WeightsError) as error:
        source.tag("model.keras", "imagenet")
    assert error.value.message == (
        "file:model.keras brings its own weights, so there is no tag 'imagenet'; leave source.weights out, give a path to a weight file, "
        "or 'none' for random weights"
    )


def test_where_a_name_leads(source: KerasFileSource, tmp_path: Path) -> None:
    import xfer

    assert source.located("pkg://xfer/plan/plan.py") == str(Path(xfer.__file__).parent / "plan/plan.py")
    for name, message in (
        ("https://me:word@host/model.keras", "file:https://host/model.keras is behind a URL; copy it to this machine and name the copy"),
        ("", "the path is empty"),
    ):
        with pytest.raises(UsageError) as error:
            source.located(name)
        assert error.value.message == message


def test_another_file_has_another_stamp(source: KerasFileSource, network: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    network().save(file)
    first = source.stamp(str(file))
    assert source.stamp(str(file)) == first
    assert source.input_size(str(file)) == 12
    network(side=16).save(file)
    os.utime(file, ns=(1, 1))
    assert source.stamp(str(file)) != first
    assert source.input_size(str(file)) == 16


def test_one_that_prepares_its_input_takes_0_to_255(
    source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path
) -> None:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((12, 12, 3)), layers.RandomFlip(), layers.Rescaling(1 / 255)])
    shaken = keras.Sequential([keras.Input((12, 12, 3)), layers.RandomFlip(), layers.RandomRotation(0.1)])
    cases = [
        ([], 255.0),
        ([layers.Rescaling(1 / 127.5, offset=-1)], 1.0),
        ([layers.RandomFlip(), layers.Resizing(10, 10), layers.Normalization(mean=[1, 2, 3], variance=[1, 1, 1])], 1.0),
        ([inner], 1.0),
        ([shaken, layers.Rescaling(1 / 255)], 1.0),
        ([shaken], 255.0),
        ([lambda x: x / 127.5], 1.0),
        ([keras.applications.vgg16.preprocess_input], 1.0),
        ([layers.ReLU(), layers.Rescaling(1 / 255)], 255.0),
    ]
    for number, (first, scale) in enumerate(cases):
        network(*first).save(tmp_path / f"{number}.keras")
        assert source.preprocess(str(tmp_path / f"{number}.keras"), None).scale == scale, number


def test_one_that_reads_whole_numbers_takes_0_to_255(source: KerasFileSource, keras: Any, tmp_path: Path) -> None:
    inputs = keras.Input((12, 12, 3), dtype="uint8")
    keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs)).save(tmp_path / "model.keras")
    assert source.preprocess(str(tmp_path / "model.keras"), None).scale == 1


def test_any_size(source: KerasFileSource, network: Callable[..., Any], tmp_path: Path) -> None:
    network(side=None).save(tmp_path / "model.keras")
    assert source.input_size(str(tmp_path / "model.keras")) == 224


def test_what_reads_no_image(source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    flat = keras.Sequential([keras.Input((7,)), keras.layers.Dense(2)])
    wide = keras.Sequential([keras.Input((8, 9, 3)), keras.layers.Conv2D(2, 3)])
    for model, read in ((network(channels=1), "12 x 12 x 1"), (flat, "7"), (wide, "8 x 9 x 3")):
        model.save(file)
        with pytest.raises(WeightsError) as error:
            source.input_size(str(file))
        assert (error.value.message, error.value.path) == (
            f"{file} can't be used: its model reads {read}, not square RGB images (side x side x 3)", "source.model",
        )  # fmt: skip
    first, second = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    keras.Model([first, second], keras.layers.Add()([first, second]), name="both").save(file)
    with pytest.raises(WeightsError) as error:
        source.preprocess(str(file), None)
    assert error.value.message == "'both' can't be used: it has 2 inputs (left, right), not one image"


# Code in files


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_lambda_is_refused_unrun(ending: str, source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path) -> None:
    file = tmp_path / f"model.{ending}"
    network(keras.layers.Lambda(lambda x: (__import__("os").environ.update(XFER_RAN="1"), x)[1])).save(file)
    assert os.environ.pop("XFER_RAN") == "1"
    error = refusal(source, file)
    assert error.message == f"{file} is refused: it holds a lambda, Python code that lies in the file; nothing of it was run"
    assert error.hint == LAMBDA_HINT
    assert "XFER_RAN" not in os.environ


def test_a_savedmodel_in_a_file_is_refused(source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path) -> None:
    network().save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(held["config.json"])
    config["config"]["layers"][1]["class_name"] = "TFSMLayer"
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in {**held, "config.json": json.dumps(config)}.items():
            archive.writestr(name, content)
    error = refusal(source, tmp_path / "model.keras")
    assert error.message == (
        f"{tmp_path}/model.keras is refused: it holds a SavedModel, a program that lies elsewhere; nothing of it was run"
    )


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_layers_of_keras_applications(
    ending: str, source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path
) -> None:
    """ConvNeXt's and InceptionResNetV2's, which Keras itself does not find by the name that HDF5 files have."""
    from keras.src.applications import convnext, inception_resnet_v2

    scaled = [convnext.LayerScale(0.5, 3), convnext.StochasticDepth(0.1)]
    saved = network(*scaled, lambda x: inception_resnet_v2.CustomScaleLayer(0.2)([x, x]))
    saved.save(tmp_path / f"model.{ending}")
    pixels = np.random.default_rng(0).random((2, 12, 12, 3))
    assert np.array_equal(source.build(str(tmp_path / f"model.{ending}"), pretrained=True)(pixels), saved(pixels))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_layer_that_keras_does_not_know(
    ending: str, source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path
) -> None:
    class Mine(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    file = tmp_path / f"model.{ending}"
    network(Mine()).save(file)
    error = refusal(source, file)
    assert error.message == f"{file} can't be loaded: Keras does not know its 'Mine'"
    assert error.hint == (
        "register the class with @keras.saving.register_keras_serializable() in a file beside the recipe, which says xfer_plugins = {} "
        "too, and name the file in the recipe, plugins: [./layers.py], or after xfer layers: --plugin layers.py"
    )
    keras.saving.register_keras_serializable(package="known")(Mine)
    network(Mine()).save(file)
    assert source.build(str(file), pretrained=True).count_params() > 0


@pytest.mark.parametrize("written", ["TFOpLambda", "SlicingOpLambda"])
def test_operations_that_keras_2_wrote(
    written: str, source: KerasFileSource, network: Callable[..., Any], keras: Any, tmp_path: Path
) -> None:
    import h5py

    file = tmp_path / "model.h5"
    network(keras.layers.Identity()).save(file)
    with h5py.File(file, "r+") as root:
        root.attrs["model_config"] = root.attrs["model_config"].replace('"Identity"', f'"{written}"')
    error = refusal(source, file)
    assert error.message == (
        f"{file} can't be loaded: Keras 2 wrote operations of TensorFlow into it ('{written}'), which Keras 3 does not read"
    )
    assert error.hint == (
        "its weights can be read: name the network that they are of, and the file as its weights: source.model: keras/NAME, "
        f"source.weights: {file}, or {{path: {file}, part: NAME}} for a model inside it"
    )


# Files that are something else


def test_files_that_are_no_models(source: KerasFileSource, network: Callable[..., Any], tmp_path: Path) -> None:
    import h5py

    model = network()
    model.save_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.keras")
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.keras").read_bytes())
    (tmp_path / "cut.keras").write_bytes((tmp_path / "a.keras").read_bytes()[:-100])
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"x")
    (tmp_path / "empty.keras").write_bytes(b"")
    with h5py.File(tmp_path / "broken.h5", "w") as root:
        root.attrs["model_config"] = "{"
    weights = "name the model that they are of, and the file as its weights: source.model: keras/NAME, source.weights: {}"
    for name, message, hint in (
        ("a.weights.h5", "holds weights alone, not a model", weights),
        ("b.h5", "is a .keras archive, and Keras goes by the ending: rename it to b.keras", None),
        ("cut.keras", "is truncated or damaged: it opens as a zip archive, and its end is missing", None),
        ("a.pth", "holds torch's weights, not a Keras model", "name a model, and the file as its weights: source.weights: {}"),
        ("saved", f"is a SavedModel: name it savedmodel:{tmp_path}/saved", None),
        ("empty.keras", "is empty (0 bytes): a download or copy of it failed", None),
    ):
        error = refusal(source, tmp_path / name)
        assert error.message == f"{tmp_path / name} {message}"
        assert error.hint == (hint.format(tmp_path / name) if hint else None)
    assert refusal(source, tmp_path).message == f"{tmp_path} is a folder, not a model file"
    assert refusal(source, tmp_path / "broken.h5").message.startswith(
        f"{tmp_path}/broken.h5 is truncated or damaged: it can't be read as a Keras model (Expecting property name"
    )
    with pytest.raises(WeightsError) as missing:
        source.stamp(str(tmp_path / "b.keras"))
    assert missing.value.message == f"no file or folder {tmp_path}/b.keras; did you mean 'a.keras'?"


def test_weights_that_are_damaged_within_a_whole_archive(source: KerasFileSource, network: Callable[..., Any], tmp_path: Path) -> None:
    network().save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in {**held, "model.weights.h5": held["model.weights.h5"][:1000]}.items():
            archive.writestr(name, content)
    assert refusal(source, tmp_path / "model.keras").message.startswith(f"{tmp_path}/model.keras can't be loaded as a Keras model: ")
