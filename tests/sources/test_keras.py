"""keras.applications as a source: names, sizes, preprocessing, and where Keras keeps its weights."""

from __future__ import annotations

import gc
import inspect
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from xfer.errors import MissingExtraError, UsageError, WeightsError
from xfer.plan.preprocess import Preprocess
from xfer.sources import keras_library
from xfer.sources.keras import KerasSource
from xfer.sources.source import Tag

STORE = "https://storage.googleapis.com/tensorflow/keras-applications"
SIZES = {
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380, "EfficientNetB5": 456,
    "EfficientNetB6": 528, "EfficientNetB7": 600, "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480, "InceptionV3": 299, "InceptionResNetV2": 299,
    "Xception": 299, "NASNetLarge": 331,
}  # fmt: skip
FAMILIES = {  # one of each module of keras.applications
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2",
    "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "VGG19", "Xception",
}  # fmt: skip


@pytest.fixture
def source() -> KerasSource:
    return KerasSource()


def prepared(preprocess: Preprocess, pixels: np.ndarray) -> np.ndarray:
    """The docstring of Preprocess, for images of the right size already."""
    ordered = pixels[..., ::-1] if preprocess.channels == "bgr" else pixels
    return (ordered / preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)


def test_models_are_those_that_keras_applications_has(source: KerasSource) -> None:
    import keras

    there = {
        name for name, function in inspect.getmembers(keras.applications, callable)
        if {"weights", "include_top"} <= set(inspect.signature(function).parameters)
    }  # fmt: skip
    assert source.models() == sorted(there)
    assert len(there) >= 38
    assert source.library() == f"keras {metadata.version('keras')}"


@pytest.mark.parametrize("absent", ["keras", "tensorflow"])
def test_a_library_that_is_not_installed(source: KerasSource, absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == absent:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("xfer.sources.keras_library.version", version)
    for ask in (source.library, source.models):
        with pytest.raises(MissingExtraError) as error:
            ask()
        assert error.value.message == f"{absent} is not installed"
        assert error.value.hint == "pip install 'xfer-runner[tensorflow]'"


def test_names_that_there_are_not(source: KerasSource) -> None:
    for name, message in (
        ("mobilenetv2", "keras has no application 'mobilenetv2'; did you mean 'MobileNetV2'?"),
        ("zzzzzzzzzz", "keras has no application 'zzzzzzzzzz'"),
    ):
        for ask in (source.input_size, source.tags, lambda name: source.tag(name, "imagenet"), lambda name: source.preprocess(name, None)):
            with pytest.raises(UsageError) as error:
                ask(name)
            assert (error.value.message, error.value.hint) == (message, "xfer list models shows all names")


def test_native_sizes(source: KerasSource) -> None:
    assert {name: source.input_size(name) for name in source.models()} == {name: SIZES.get(name, 224) for name in source.models()}


def test_preprocessing_is_what_each_familys_own_function_does(source: KerasSource) -> None:
    import keras

    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    families = {getattr(keras.applications, name).__module__: name for name in source.models()}
    assert len(families) == len(FAMILIES)
    for module, name in families.items():
        theirs = getattr(keras.applications, module.rpartition(".")[2]).preprocess_input(pixels.copy())
        found = source.preprocess(name, None)
        assert np.abs(prepared(found, pixels) - np.asarray(theirs)).max() <= 1e-5, name
        assert (found.resize, found.crop, found.interpolation, found.stretch) == (source.input_size(name),) * 2 + ("bilinear", False)
    assert source.preprocess("MobileNetV2", "imagenet") == Preprocess(resize=224, crop=224, mean=(0.5,) * 3, std=(0.5,) * 3, scale=255.0)
    caffe = Preprocess(resize=224, crop=224, mean=(103.939, 116.779, 123.68), std=(1.0,) * 3, scale=1.0, channels="bgr")
    assert source.preprocess("ResNet50", None) == caffe
    assert source.preprocess("DenseNet121", None) == Preprocess(resize=224, crop=224)


def test_networks_are_built_without_a_classifier_and_named_the_same_every_time(source: KerasSource) -> None:
    first, second = (source.build("MobileNetV3Small", pretrained=True, image_size=64) for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [layer.name for layer in first.layers[:3]] == ["input_layer", "rescaling", "conv"]
    assert first.output_shape == (None, 2, 2, 576)


def test_convnext_s_features_are_what_its_classifier_reads(source: KerasSource) -> None:
    """Normalised averages, not the average of what is normalised."""
    keras = keras_library.keras()
    keras.utils.set_random_seed(0)
    whole = keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3))
    ours = source.build("ConvNeXtTiny", pretrained=False, image_size=32)
    for layer, value in zip(ours.weights, whole.weights[: len(ours.weights)], strict=True):
        layer.assign(value)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    features = keras.Model(whole.input, whole.get_layer("convnext_tiny_head_layernorm").output)(images)
    np.testing.assert_allclose(ours(images), features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "smallest"), [("MobileNetV2", 32), ("Xception", 71), ("InceptionV3", 75)])
def test_a_size_that_no_network_can_be_built_for(source: KerasSource, name: str, smallest: int) -> None:
    for pretrained in (True, False):
        with pytest.raises(UsageError) as error:
            source.build(name, pretrained=pretrained, image_size=smallest - 1)
        assert error.value.message == (
            f"keras/{name} can't be built for images of {smallest - 1} pixels a side: Input size must be at least {smallest}x{smallest}"
        )
        assert error.value.hint == f"leave target.image_size out, or set it to {source.input_size(name)}"


def test_a_network_for_keras_own_weights_is_the_one_that_keras_would_put_them_in(source: KerasSource) -> None:
    """EfficientNet has one more layer then."""
    with_weights, without = (source.build("EfficientNetB0", pretrained=pretrained, image_size=32) for pretrained in (True, False))
    counts = [sum(type(layer).__name__ == "Rescaling" for layer in network.layers) for network in (with_weights, without)]
    assert counts == [2, 1]


def test_weights_lie_where_keras_keeps_them(source: KerasSource, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mobilenet_1_0_{}_tf_no_top.h5"
    assert source.tags("MobileNet") == ["imagenet"]
    for size, file in ((None, 224), (128, 128), (100, 224)):  # there are none for 100 pixels: Keras takes those for 224
        found = source.tag("MobileNet", "DEFAULT", image_size=size)
        place = own_home / ".keras/models" / name.format(file)
        assert found == Tag("imagenet", f"{STORE}/mobilenet/{name.format(file)}", str(place))
    monkeypatch.setenv("KERAS_HOME", "kept")
    monkeypatch.chdir(own_home)
    assert source.tag("MobileNet", "imagenet", image_size=128).file == str(own_home / "kept/models" / name.format(128))
    assert list(own_home.rglob("*.h5")) == []


def test_a_digest_comes_with_the_file_where_keras_knows_it(source: KerasSource) -> None:
    from keras.src.applications.mobilenet_v3 import WEIGHTS_HASHES

    found = source.tag("MobileNetV3Small", "imagenet", image_size=33)
    assert found.digest == WEIGHTS_HASHES["small_224_1.0_float"][1]
    assert found.url == f"{STORE}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"


def test_keras_functions_are_as_they_were(source: KerasSource) -> None:
    """Keras is asked by putting other functions in their place for a moment, also when that ends in an error."""
    import keras
    from keras.src import layers
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    def functions() -> list[object]:
        return [file_utils.get_file, keras.Model.load_weights, imagenet_utils.obtain_input_shape, layers.Input]

    before = functions()
    source.tag("MobileNetV3Small", "imagenet", image_size=33)
    with pytest.raises(UsageError):
        source.build("MobileNetV2", pretrained=True, image_size=8)
    assert functions() == before


def test_an_unknown_tag(source: KerasSource) -> None:
    for tag, more in (
        ("imagenet1k", "did you mean 'imagenet'?"),
        ("IMAGENET1K_V1", "or give a path to a weight file, or 'none' for random weights"),
    ):
        for ask in (source.tag, source.preprocess):
            with pytest.raises(WeightsError) as error:
                ask("VGG16", tag)
            assert error.value.message == f"keras has no weights '{tag}' for 'VGG16'; there are DEFAULT, imagenet; {more}"


def test_tensors_of_its_files_keep_their_names(source: KerasSource) -> None:
    tensors = {"Conv1/kernel": np.ones(1)}
    assert source.adapt("MobileNetV2", tensors) is tensors


@pytest.mark.slow
def test_every_network_builds_and_says_where_its_weights_are(source: KerasSource) -> None:
    for name in source.models():
        found = source.tag(name, "DEFAULT", image_size=96)
        assert found.name == "imagenet"
        assert found.file is not None
        assert found.url is not None
        assert found.url.startswith("https://")
        assert (Path(found.file).parent.name, found.file.endswith(".h5"), found.url.endswith(".h5")) == ("models", True, True)
        assert len(found.digest or "0" * 32) in (32, 64)
        gc.collect()  # networks hold themselves
