"""torch -> portable -> Keras, Keras -> portable -> torch, and both ways back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer import plugins
from xfer.backends.tensorflow.describe import describe as describe_keras
from xfer.backends.tensorflow.graph import flatten
from xfer.backends.tensorflow.portable_export import export as export_keras
from xfer.backends.tensorflow.portable_network import build
from xfer.backends.tensorflow.portable_source import PortableSource
from xfer.backends.tensorflow.segments import Segments as KerasSegments
from xfer.backends.torch.describe import describe as describe_torch
from xfer.backends.torch.portable_export import export as export_torch
from xfer.backends.torch.portable_network import PortableNetwork
from xfer.backends.torch.segments import Segments as TorchSegments
from xfer.plan.model_map import PIXELS, POOLED
from xfer.plan.portable import NotPortableError, Portable, write
from xfer.plan.preprocess import Preprocess

Exported = tuple[Portable, dict[str, np.ndarray]]


def pictures(size: int) -> np.ndarray:
    """Normalised images, float32 [2, size, size, 3]."""
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def as_built(segments: Any, size: int) -> Any:
    """As much of a built network as an export reads."""
    source = SimpleNamespace(model=segments.model_map.model, preprocess=Preprocess(resize=size, crop=size))
    return SimpleNamespace(parts=SimpleNamespace(plan=SimpleNamespace(source=source, model=segments.model_map), segments=segments))


def on_torch(network: nn.Module, size: int) -> tuple[np.ndarray, Exported]:
    """Pooled features float32 [2, D], and the portable form."""
    segments = TorchSegments(network.eval(), describe_torch(network, model="own/torch", library="own 1", input_size=size, image_size=size))
    with torch.inference_mode():
        images = torch.from_numpy(pictures(size)).permute(0, 3, 1, 2)
        found = segments.between(PIXELS, POOLED).eval()(images)
    return found.numpy(), export_torch(as_built(segments, size))


def on_keras(network: Any, size: int) -> tuple[np.ndarray, Exported]:
    model_map = describe_keras(network, model="own/keras", library="own 1", input_size=size, image_size=size)
    segments = KerasSegments(flatten(network, image_size=size), model_map)
    found = segments.between(PIXELS, POOLED)(keras.ops.convert_to_tensor(pictures(size)))
    return np.asarray(found), export_keras(as_built(segments, size))


def from_portable(exported: Exported) -> nn.Module:
    portable, tensors = exported
    network = PortableNetwork(portable)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
    return network


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, over the largest feature where that is above 1."""
    assert one.shape == other.shape
    assert one.std() > 0
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


def build_torch(model: str, size: int) -> nn.Module:
    provider, _, name = model.partition("/")
    torch.manual_seed(0)
    network = plugins.load(plugins.find("sources", provider).target)().build(name, pretrained=False, image_size=size)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network


NETWORKS = [
    ("torchvision/resnet18", 64),
    ("torchvision/squeezenet1_1", 64),
    ("timm/tf_efficientnet_lite0", 65),
    ("torchvision/convnext_tiny", 64),
    ("torchvision/densenet121", 64),
    ("torchvision/mobilenet_v2", 64),
    ("torchvision/vgg11", 64),
    ("torchvision/googlenet", 96),
    ("torchvision/inception_v3", 160),
    ("torchvision/shufflenet_v2_x0_5", 64),
    ("torchvision/mnasnet0_5", 64),
    ("torchvision/mobilenet_v3_small", 64),
    ("torchvision/efficientnet_b0", 64),
    ("torchvision/regnet_y_400mf", 64),
    ("torchvision/alexnet", 96),
    ("torchvision/resnext50_32x4d", 64),
    ("timm/resnet18d", 64),
    ("timm/tf_mobilenetv3_small_minimal_100", 65),
    ("timm/tf_efficientnetv2_b0", 64),
    ("timm/convnext_atto", 64),
]


def test_from_torch_to_keras() -> None:
    one, exported = on_torch(build_torch("timm/tf_efficientnet_lite0", 65), 65)
    other, _ = on_keras(build(*exported), 65)
    assert difference(one, other) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), NETWORKS)
def test_from_torch_to_keras_and_back(model: str, size: int) -> None:
    one, exported = on_torch(build_torch(model, size), size)
    other, again = on_keras(build(*exported), size)
    back, _ = on_torch(from_portable(again), size)
    assert difference(one, other) < 1e-5
    assert difference(one, back) < 1e-5


def from_keras(network: Any, size: int) -> None:
    one, exported = on_keras(network, size)
    other, again = on_torch(from_portable(exported), size)
    back, _ = on_keras(build(*again), size)
    assert difference(one, other) < 1e-5
    assert difference(one, back) < 1e-5


class ManyOnTorch(nn.Module):
    """What only a torch network asks Keras for, at 33 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=2, padding=(1, 2), dilation=(1, 1))
        self.each = nn.Conv2d(8, 16, (3, 1), groups=8, stride=(2, 1))  # by channel, with two strides: no depthwise layer of TensorFlow's
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.groups = nn.GroupNorm(4, 8)
        self.largest = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.counted = nn.AvgPool2d(3, 1, padding=1)
        self.uncounted = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.adaptive = nn.AdaptiveAvgPool2d((3, 2))
        self.gelu = nn.GELU(approximate="tanh")
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
        self.register_buffer("table", torch.linspace(-1, 1, 6).reshape(3, 2))
        self.layer = nn.LayerNorm(8)
        self.whole = nn.LayerNorm([8, 3, 2])
        self.dense = nn.Linear(8, 5)
        self.tokens = nn.BatchNorm1d(6)
        self.out = nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(functional.leaky_relu(self.each(self.conv(x)), 0.2))
        x = self.groups(self.norm(x)) * self.scale
        x = self.largest(x) + functional.elu(self.uncounted(self.counted(x)))
        one, two = x.split([3, 5], dim=1)
        x = torch.cat([two, 1.0 - one / 2], dim=1)
        x = functional.pad(x, (0, 1, 2, 0, 1, 0))[:, 1:, ::1, :-1]
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.gelu(self.whole(self.adaptive(x) + self.table)) + x.amax((2, 3), keepdim=True) * torch.minimum(x, -x).mean((2, 3), True)
        x = functional.softmax(self.dense(x.flatten(2).transpose(1, 2)), dim=1)
        return self.out(self.tokens(functional.hardsigmoid(x)).reshape(-1, 30))


def test_every_kind_of_torch_operation() -> None:
    torch.manual_seed(0)
    network = ManyOnTorch()
    one, exported = on_torch(network, 33)
    other, again = on_keras(build(*exported), 33)
    back, _ = on_torch(from_portable(again), 33)
    assert difference(one, other) < 1e-5
    assert difference(one, back) < 1e-5


def many_on_keras() -> Any:
    """What only a Keras network asks torch for, at 33 pixels."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = layers.Input((33, 33, 3))
    x = layers.Rescaling([0.5, 1.0, 2.0], offset=[0.1, 0.2, 0.3])(images)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 4.0])(x)
    x = layers.SeparableConv2D(8, 3, strides=2, padding="same", depth_multiplier=2, activation="swish")(x)
    x = layers.BatchNormalization(scale=False, momentum=0.8)(x)
    x = layers.BatchNormalization(center=False, axis=-1)(x)
    x = layers.Conv2D(8, 3, groups=2, padding="same", dilation_rate=2, activation="leaky_relu")(x)
    x = layers.SpatialDropout2D(0.2)(layers.GroupNormalization(2)(x))
    x = layers.Dense(8, activation="gelu")(layers.LayerNormalization()(x))
    shortcut = layers.Cropping2D(((1, 0), (0, 1)))(layers.ZeroPadding2D(((1, 0), (0, 1)))(x))
    x = layers.Average()([x, shortcut, layers.LeakyReLU(0.3)(x)])
    x = layers.Maximum()([x, layers.Subtract()([x, layers.Softmax()(x)])])
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Activation("sigmoid")(layers.Conv2D(8, 1)(gate))
    x = layers.Multiply()([gate, x])
    x = keras.ops.relu6(x + 3.0) * (1.0 / 6.0) - keras.ops.mean(x, axis=(1, 2), keepdims=True)
    x = layers.Concatenate()([layers.AveragePooling2D(3, 2, padding="same")(x), layers.MaxPooling2D(3, 2, padding="same")(x)])
    x = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(x[:, 1:, :-1, :])
    x = layers.Permute((3, 1, 2))(x)
    x = layers.Reshape((16, 64))(x)
    x = layers.Dense(7, use_bias=False, activation="softmax")(keras.ops.transpose(x, (0, 2, 1)))
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(2.0 - x)))


def test_every_kind_of_keras_operation() -> None:
    from_keras(many_on_keras(), 33)


def test_a_channel_multiplier_stays_in_its_order() -> None:
    """Keras keeps the outputs of one channel together, as torch does."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 2))
    one, exported = on_torch(network, 8)
    made = build(*exported)
    assert type(made.get_layer("0")).__name__ == "DepthwiseConv2D"
    other, _ = on_keras(made, 8)
    assert difference(one, other) < 1e-6


def test_statistics_move_alike_in_train_mode() -> None:
    """But for one convention: what a batch adds to the variance is the sample's in torch, the batch's own in Keras."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    _, exported = on_torch(network, 8)
    made = build(*exported)
    images = pictures(8)
    network.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    made(images, training=True)
    n = 2 * 6 * 6
    np.testing.assert_allclose(np.asarray(made.get_layer("1").moving_mean), network[1].running_mean.numpy(), atol=1e-6)
    variance = 0.7 + (network[1].running_var.numpy() - 0.7) * (n - 1) / n
    np.testing.assert_allclose(np.asarray(made.get_layer("1").moving_variance), variance, atol=1e-5)


def head_of(x: Any) -> Any:
    return keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))


def shared(x: Any) -> Any:
    conv = keras.layers.Conv2D(3, 3, padding="same", name="again")
    return head_of(keras.layers.ReLU()(conv(keras.layers.ReLU()(conv(x)))))


NOT_PORTABLE: list[tuple[Callable[[Any], Any], str]] = [
    (shared, "Conv2D at 'again' is not portable: it is used twice, with the same weights"),
    (lambda x: head_of(keras.layers.UpSampling2D(name="larger")(x)), "UpSampling2D at 'larger' is not portable"),
    (
        lambda x: head_of(keras.layers.ReLU(max_value=1, name="capped")(x)),
        "ReLU at 'capped' is not portable: its settings are not those of relu, relu6 or leaky_relu",
    ),
    (
        lambda x: head_of(keras.layers.Activation("exponential", name="grows")(x)),
        "Activation at 'grows' is not portable: its activation is exponential",
    ),
    (
        lambda x: head_of(keras.layers.BatchNormalization(axis=1, name="rows")(x)),
        "BatchNormalization at 'rows' is not portable: it works on axis 1",
    ),
    (lambda x: head_of(x / keras.layers.ReLU()(x)), "TrueDivide at 'true_divide' is not portable: between two tensors"),
]


@pytest.mark.parametrize(("network", "said"), NOT_PORTABLE, ids=[said.partition(" at ")[0] for _, said in NOT_PORTABLE])
def test_what_is_not_portable_is_named(network: Callable[[Any], Any], said: str) -> None:
    images = keras.layers.Input((16, 16, 3))
    with pytest.raises(NotPortableError) as caught:
        on_keras(keras.Model(images, network(keras.layers.Conv2D(3, 1, activation="relu")(images))), 16)
    assert caught.value.message == f"both backends can't hold own/keras: {said}"


def test_a_network_without_a_graph_is_not_portable() -> None:
    segments = SimpleNamespace(derived=None)
    note = "no graph, so the only cuts are pixels and pooled, and its output is taken as the features: it is a Mine, which has no graph"
    plan = SimpleNamespace(source=SimpleNamespace(model="file:mine.keras"), model=SimpleNamespace(note=note))
    message = "^both backends can't hold file:mine.keras: its graph is not known: it is a Mine, which has no graph$"
    with pytest.raises(NotPortableError, match=message):
        export_keras(SimpleNamespace(parts=SimpleNamespace(plan=plan, segments=segments)))  # type: ignore[arg-type]


def test_the_source_brings_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    one, exported = on_torch(network, 8)
    write(tmp_path, *exported)
    source = PortableSource()
    other, _ = on_keras(source.build(str(tmp_path), pretrained=True, image_size=8), 8)
    assert (source.brings_weights, source.library()) == (True, f"keras {keras.__version__}")
    assert difference(one, other) < 1e-6


def test_from_keras_to_torch(build_keras: Callable[..., Any]) -> None:
    one, exported = on_keras(build_keras("MobileNetV2", 64), 64)
    other, _ = on_torch(from_portable(exported), 64)
    assert difference(one, other) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV2", 64),
        ("ResNet50V2", 64),
        ("EfficientNetB0", 64),
        ("ConvNeXtTiny", 64),
        ("DenseNet121", 64),
        ("EfficientNetV2B0", 64),
        ("InceptionV3", 128),
        ("InceptionResNetV2", 128),
        ("MobileNet", 64),
        ("MobileNetV3Small", 64),
        ("NASNetMobile", 64),
        ("ResNet50", 64),
        ("VGG16", 64),
        ("Xception", 96),
    ],
)
def test_from_keras_to_torch_and_back(name: str, size: int, build_keras: Callable[..., Any]) -> None:
    from_keras(build_keras(name, size), size)
