"""A TensorFlow SavedModel as a source."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfer.errors import WeightsError
from xfer.plan.preprocess import Preprocess
from xfer.sources.savedmodel import SavedModelSource
from xfer.sources.source import Tag

PIXELS = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tf() -> Any:
    from xfer.sources import keras_library

    keras_library.keras()
    import tensorflow

    return tensorflow


@pytest.fixture
def source() -> SavedModelSource:
    return SavedModelSource()


@pytest.fixture
def hub(tf: Any, tmp_path: Path) -> Path:
    """As TF Hub's reusable models are: callable with `training`, with lists of variables. In training it adds 1."""

    class Reusable(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.stateless_normal((3, 4), (1, 2)), name="stem/kernel")
            self.mean = tf.Variable(tf.ones(4), trainable=False, name="stem/mean")

        @tf.function
        def __call__(self, images: Any, training: bool = False) -> Any:
            return tf.reduce_mean(images, (1, 2)) @ self.kernel - self.mean + (1.0 if training else 0.0)

    module = Reusable()
    for training in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec((None, 8, 8, 3)), training=training)
    tf.saved_model.save(module, str(tmp_path / "hub"))
    return tmp_path / "hub"


def features(network: Any, **settings: Any) -> np.ndarray:
    return np.asarray(network(PIXELS, **settings))


def test_one_of_tf_hub(hub: Path, tf: Any, source: SavedModelSource) -> None:
    network = source.build(str(hub), pretrained=True)
    held = tf.saved_model.load(str(hub))
    assert np.allclose(features(network), held(PIXELS, training=False))
    assert np.allclose(features(network, training=True), features(network) + 1)
    assert [(v.name, tuple(v.shape)) for v in network.trainable_variables] == [("stem_kernel", (3, 4))]
    assert [(v.name, tuple(v.shape)) for v in network.non_trainable_variables] == [("stem_mean", (4,))]
    assert network.note == "a SavedModel"


@pytest.mark.parametrize(
    ("modes", "why"),
    [
        ([False], "without a train mode"),
        ([False, True], "whose train mode draws random numbers that can't be drawn again"),
    ],
)
def test_one_whose_train_mode_cannot_be_used(modes: list[bool], why: str, tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    """Dropout in a SavedModel has no seed that a step could set: TensorFlow refuses it where operations must be deterministic."""

    class Dropping(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.ones((3, 4)), name="kernel")

        @tf.function
        def __call__(self, images: Any, training: bool = False) -> Any:
            rows = tf.reduce_mean(images, (1, 2)) @ self.kernel
            return tf.cond(tf.reduce_sum(rows) > -1, lambda: dropped(rows), lambda: rows) if training else rows

    def dropped(rows: Any) -> Any:
        """As tf.nn.dropout does it where the process has no seed; this one may have been given one."""
        return tf.where(tf.raw_ops.RandomUniform(shape=tf.shape(rows), dtype=tf.float32) < 0.5, 2 * rows, 0.0)

    module = Dropping()
    for training in modes:
        module.__call__.get_concrete_function(tf.TensorSpec((None, 8, 8, 3)), training=training)
    tf.saved_model.save(module, str(tmp_path / "dropping"))
    network = source.build(str(tmp_path / "dropping"), pretrained=True)
    assert network.note == f"a SavedModel {why}: what of it is trained computes as in eval mode"
    assert np.array_equal(features(network, training=True), features(network))
    assert [variable.name for variable in network.trainable_variables] == ["kernel"]


def test_its_variables_are_the_graphs_own(hub: Path, tf: Any, source: SavedModelSource) -> None:
    network = source.build(str(hub), pretrained=True)
    before = features(network)
    kernel = network.trainable_variables[0]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(PIXELS, training=True))
    gradient = tape.gradient(loss, kernel.value)
    assert np.allclose(gradient, PIXELS.mean((1, 2)).sum(0)[:, None] * np.ones((3, 4)), rtol=1e-5)
    kernel.assign(kernel.numpy() * 0)
    assert np.allclose(features(network), -1)
    assert not np.allclose(before, -1)


def test_one_that_keras_exported(tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs)))
    model.export(tmp_path / "exported", verbose=False)
    network = source.build(str(tmp_path / "exported"), pretrained=True)
    assert np.allclose(features(network), model(PIXELS), atol=1e-6)
    assert [len(network.trainable_variables), len(network.non_trainable_variables)] == [4, 2]


def test_one_with_signatures_alone(tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    """Of several outputs the one that publishers call the features; bytes as input."""
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((3, 2)), name="kernel")

    def classify(images: Any) -> dict[str, Any]:
        means = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))
        return {"logits": tf.zeros((tf.shape(images)[0], 9)), "default": means @ module.kernel}

    function = tf.function(classify, input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="pixels")])
    other = tf.function(lambda text: {"length": tf.strings.length(text)}, input_signature=[tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "signed"), signatures={"aside": other, "classify": function})
    network = source.build(str(tmp_path / "signed"), pretrained=True)
    assert source.preprocess(str(tmp_path / "signed"), None).scale == 1  # 0..1 would be cut to zeros
    assert np.allclose(np.asarray(network(PIXELS * 255)), np.floor(PIXELS * 255).mean((1, 2)) @ np.ones((3, 2)), rtol=1e-5)
    assert [v.name for v in network.trainable_variables] == ["kernel"]
    assert source.input_size(str(tmp_path / "signed")) == 224


def test_one_without_variables(tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    function = tf.function(lambda images: tf.reduce_mean(images, (1, 2)), input_signature=[tf.TensorSpec((None, 8, 8, 3))])
    tf.saved_model.save(tf.Module(), str(tmp_path / "constant"), signatures=function)
    network = source.build(str(tmp_path / "constant"), pretrained=True)
    assert np.allclose(features(network), PIXELS.mean((1, 2)), atol=1e-6)
    assert network.variables == []
    assert network.note == "a SavedModel without trainable variables: its features can be used, but nothing of it can be trained"


def test_what_it_computes_is_part_of_its_description(tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    """Two graphs without variables differ in nothing else that can be seen."""
    contents = []
    for number in (1.0, 2.0):
        function = tf.function(
            lambda images, number=number: tf.reduce_mean(images, (1, 2)) * number, input_signature=[tf.TensorSpec((None, 8, 8, 3))]
        )
        folder = tmp_path / "one"
        tf.saved_model.save(tf.Module(), str(folder), signatures=function)
        contents.append(source.build(str(folder), pretrained=True).get_config()["content"])
    assert contents[0] != contents[1]


def test_what_is_said_of_it(hub: Path, source: SavedModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (source.backend, source.provider, source.models(), source.tags("hub")) == ("tensorflow", "savedmodel", [], ["its own"])
    assert source.library().startswith("keras ")
    assert source.located("hub") == str(hub)
    assert source.input_size("hub") == 8
    assert source.tag("hub", "DEFAULT") == source.tag("hub", "its own") == Tag("its own", None, None)
    assert source.preprocess("hub", None) == Preprocess(resize=8, crop=8, mean=(0.0,) * 3, std=(1.0,) * 3, scale=255.0)
    tensors = {"a": 1}
    assert source.adapt("hub", tensors) is tensors
    with pytest.raises(WeightsError) as error:
        source.tag("hub", "imagenet")
    assert error.value.message == "savedmodel:hub brings its own weights, so there is no tag 'imagenet'; leave source.weights out"
    with pytest.raises(WeightsError) as error:
        source.build("hub", pretrained=False)
    assert error.value.message == "savedmodel:hub can't be had without its own weights, or with others; leave source.weights out"
    assert "'trust: true' beside source.model" in source.needs_trust


# Archives and what is no SavedModel


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("deeper", [False, True])
def test_an_archive(kind: str, deeper: bool, hub: Path, source: SavedModelSource, tmp_path: Path) -> None:
    root = tmp_path / "packed"
    shutil.copytree(hub, root / "model" if deeper else root)
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, root)
    network = source.build(archive, pretrained=True)
    assert np.allclose(features(network), features(source.build(str(hub), pretrained=True)))
    assert source.input_size(archive) == 8
    assert len(list((tmp_path / "cache/savedmodels").iterdir())) == 1


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "..\\escaped"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_leads_out(kind: str, name: str, source: SavedModelSource, tmp_path: Path) -> None:
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w:gz") as packed_tar:
            member = tarfile.TarInfo(name)
            member.size = 1
            packed_tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(WeightsError) as error:
        source.build(str(archive), pretrained=True)
    assert error.value.message == f"{archive} is refused: its '{name}' would lie outside the folder that it is unpacked to"
    assert not list(tmp_path.rglob("escaped"))
    assert list((tmp_path / "cache/savedmodels").iterdir()) == []


def test_links_in_an_archive_are_left_out(hub: Path, source: SavedModelSource, tmp_path: Path) -> None:
    archive = tmp_path / "linked.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(hub, "model")
        link = tarfile.TarInfo("model/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        packed.addfile(link)
    source.build(str(archive), pretrained=True)
    assert list((tmp_path / "cache").rglob("link")) == []


def test_an_archive_that_wants_the_disk(source: SavedModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfer.sources.savedmodel.ROOM_BYTES", 1 << 16)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("saved_model.pb", bytes(1 << 23))
    with pytest.raises(WeightsError) as error:
        source.build(str(tmp_path / "bomb.zip"), pretrained=True)
    assert error.value.message == f"{tmp_path}/bomb.zip is refused: it unpacks to far more than it holds"


def test_what_is_no_savedmodel(tf: Any, source: SavedModelSource, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/saved_model.pb").write_bytes(b"not a protocol buffer")
    (tmp_path / "model.keras").write_bytes(b"x")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    text = tf.function(lambda text: {"length": tf.strings.length(text)}, input_signature=[tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(tf.Module(), str(tmp_path / "text"), signatures=text)
    tf.saved_model.save(tf.Module(), str(tmp_path / "nothing"))
    reads = "has nothing that reads one batch of RGB images (images x side x side x 3): "
    for name, message in (
        ("empty", "is no SavedModel: there is no saved_model.pb in it"),
        ("model.keras", "is no SavedModel: it must be a folder, or an archive of one (.zip, .tar, .tar.gz, .tgz)"),
        ("cut.zip", "is damaged: it can't be unpacked (File is not a zip file)"),
        ("text", f"{reads}its signatures are serving_default"),
        ("nothing", f"{reads}it has no signature"),
        ("broken", "can't be loaded as a SavedModel: "),
    ):
        with pytest.raises(WeightsError) as error:
            source.build(str(tmp_path / name), pretrained=True)
        assert error.value.path == "source.model"
        assert error.value.message.startswith(f"{tmp_path / name} {message}")
    with pytest.raises(WeightsError) as error:
        source.stamp(str(tmp_path / "gone"))
    assert error.value.message == f"no file or folder {tmp_path}/gone"


def test_a_changed_file_has_another_stamp(hub: Path, source: SavedModelSource) -> None:
    before = source.stamp(str(hub))
    assert source.stamp(str(hub)) == before
    os.utime(hub / "saved_model.pb", ns=(1, 1))
    assert source.stamp(str(hub)) != before
