"""torch -> portable -> torch: the same features, the same tensors, the same train mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer.backends.torch.describe import describe
from xfer.backends.torch.portable_export import export
from xfer.backends.torch.portable_network import PortableNetwork
from xfer.backends.torch.portable_source import PortableSource
from xfer.backends.torch.segments import Segments
from xfer.plan import portable as graph
from xfer.plan.model_map import PIXELS, POOLED
from xfer.plan.portable import RESERVED, NotPortableError, Portable, read, write
from xfer.plan.preprocess import Preprocess

CLASSIFIER = ["network_classifier.weight", "network_classifier.bias"]


def exported(network: nn.Module, *, size: int, model: str = "test/network") -> tuple[Segments, Portable, dict[str, np.ndarray]]:
    """The portable form of a network, and its own segments."""
    model_map = describe(network, model=model, library="test 1", input_size=size, image_size=size)
    segments = Segments(network, model_map)
    source = SimpleNamespace(model=model, preprocess=Preprocess(resize=size, crop=size))
    parts = SimpleNamespace(plan=SimpleNamespace(source=source, model=model_map), segments=segments)
    return segments, *export(SimpleNamespace(parts=parts))  # type: ignore[arg-type]


def rebuilt(portable: Portable, tensors: dict[str, np.ndarray]) -> PortableNetwork:
    network = PortableNetwork(portable)
    missing, unexpected = network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
    assert unexpected == []
    assert [name for name in missing if not name.endswith("num_batches_tracked")] == CLASSIFIER
    return network


def features(network: nn.Module, images: torch.Tensor, segments: Segments | None = None) -> torch.Tensor:
    """Pooled features in eval mode."""
    size = images.shape[-1]
    if segments is None:
        segments = Segments(network, describe(network, model="again", library="test 1", input_size=size, image_size=size))
    with torch.inference_mode():
        return segments.between(PIXELS, POOLED).eval()(images)  # type: ignore[no-any-return]


def difference(network: nn.Module, size: int) -> float:
    """Largest difference of pooled features, over the largest feature where that is above 1."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    segments, portable, tensors = exported(network.eval(), size=size)
    again = rebuilt(Portable.model_validate_json(portable.model_dump_json()), tensors)
    one, other = features(network, images, segments), features(again, images)
    assert one.shape == other.shape == (2, portable.width)
    assert one.std() > 0
    return float((one - other).abs().max() / one.abs().max().clamp(min=1))


NETWORKS = [
    ("torchvision/resnet18", 64),
    ("torchvision/mobilenet_v2", 64),
    ("timm/tf_efficientnet_lite0", 65),
    ("torchvision/vgg11", 64),
    ("torchvision/densenet121", 64),
    ("torchvision/convnext_tiny", 64),
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


def test_features_are_the_same(build_model: Callable[..., nn.Module]) -> None:
    assert difference(build_model("torchvision/squeezenet1_1", 64), 64) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), NETWORKS)
def test_features_of_more_networks_are_the_same(model: str, size: int, build_model: Callable[..., nn.Module]) -> None:
    assert difference(build_model(model, size), size) < 1e-6


class Many(nn.Module):
    """Every kind of call and layer that a portable graph knows, at 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=2, padding=(1, 2), dilation=(2, 1))
        self.same = nn.Conv2d(8, 8, 4, padding="same", groups=2)
        self.norm = nn.BatchNorm2d(8, affine=False, momentum=0.3)
        self.groups = nn.GroupNorm(2, 8)
        self.leaky = nn.LeakyReLU(0.1)
        self.elu = nn.ELU(0.5)
        self.gelu = nn.GELU(approximate="tanh")
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 2, padding=1)
        self.uneven = nn.AvgPool2d((3, 2), 1, padding=(1, 0), count_include_pad=False)
        self.adaptive = nn.AdaptiveAvgPool2d((3, 2))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
        self.register_buffer("shift", torch.linspace(-1, 1, 8))
        self.layer = nn.LayerNorm(8)
        self.dense = nn.Linear(8, 6, bias=False)
        self.flat = nn.Flatten()
        self.vector = nn.BatchNorm1d(36)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(functional.pad(x, (1, 0, 2, 1))))
        kept = self.same(x)
        changed = kept.relu_()  # whoever reads `kept` from here on reads this
        x = torch.cat([changed, kept - 0.5], dim=1)
        one, two = x.chunk(2, dim=1)
        x = torch.sigmoid(one) * two + self.leaky(two) / 3.0
        x = 1.0 - self.elu(x)
        x += self.gelu(self.groups(x))
        x = self.pool(x) + functional.hardswish(self.average(x[:, :, 1:, :-1])).clamp(0, 6)[:, :, :1, :1]
        x = self.uneven(x * self.scale)
        x = self.layer(x.permute(0, 2, 3, 1)) + self.shift
        x = functional.softmax(x, dim=-1).permute(0, 3, 1, 2).contiguous()
        x = self.adaptive(x) * functional.adaptive_avg_pool2d(x, 1) + x.amax((2, 3), keepdim=True)
        x = self.dense(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], -1)
        return self.out(self.drop(self.vector(torch.tanh(x).view(x.size(0), 36)).unsqueeze(1).squeeze(1)))


def test_every_kind_of_operation() -> None:
    torch.manual_seed(0)
    assert difference(Many(), 32) < 1e-6


def test_statistics_move_alike_in_train_mode() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 36, 4))
    _, portable, tensors = exported(network, size=8)
    again = rebuilt(portable, tensors)
    images = torch.randn(5, 3, 8, 8)
    network.train()(images)
    again.train()(images)
    state = again.state_dict()
    torch.testing.assert_close(state["1.running_mean"], network[1].running_mean)
    torch.testing.assert_close(state["1.running_var"], network[1].running_var)


def test_as_many_parameters_are_left(build_model: Callable[..., nn.Module]) -> None:
    segments, portable, tensors = exported(build_model("torchvision/squeezenet1_1", 64), size=64)
    again = describe(rebuilt(portable, tensors), model="again", library="test 1", input_size=64, image_size=64)
    assert again.n_parameters == segments.model_map.n_parameters
    assert [tensor.name for tensor in again.classifier] == CLASSIFIER


def test_reserved_names_are_those_of_torch() -> None:
    taken = {name for kind in (nn.Module(), nn.ModuleDict()) for name in dir(kind) if not name.startswith("_")}
    assert taken == RESERVED


def test_images_dropped_in_train_mode_only() -> None:
    dropped = PortableNetwork(
        Portable(
            model="a",
            backend="torch",
            input_size=4,
            image_size=4,
            preprocess=Preprocess(resize=4, crop=4),
            operations=(
                graph.Dropout(name="drop", inputs=("images",), rate=0.5, of="images"),
                graph.Reduce(name="mean", inputs=("drop",), by="mean", axes=(1, 2)),
            ),
            features="mean",
            width=3,
        )
    ).get_submodule("drop")
    images = torch.ones(64, 3, 4, 4)
    assert torch.equal(dropped.eval()(images), images)
    torch.manual_seed(0)
    found = dropped.train()(images).flatten(1)
    assert {tuple(row.unique().tolist()) for row in found} == {(0.0,), (2.0,)}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.out(self.attention(x, x, x)[0].mean(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.conv(x).relu()).relu().mean((2, 3)))


class Standardised(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight - self.conv.weight.mean()
        return self.out(functional.conv2d(x, weight).relu().mean((2, 3)))


class Gated(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.conv(x) * self.gate + self.gate).mean((2, 3)))


class Mixing(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.out((x - x.mean(dim=0, keepdim=True)).mean((2, 3)))


class Sized(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(functional.interpolate(self.conv(x), scale_factor=2.0).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Attends, "MultiheadAttention at 'attention' is not portable"),
        (Twice, "Conv2d at 'conv' is not portable: it is used twice, with the same weights"),
        (Standardised, "mean at 'mean' is not portable: it works on weights"),
        (Gated, "a tensor at 'gate' is not portable: it is used twice, with the same weights"),
        (Mixing, "mean at 'mean' is not portable: it goes over dimension 0"),
        (Sized, "interpolate at 'interpolate' is not portable"),
    ],
)
def test_what_is_not_portable_is_named(network: type[nn.Module], said: str) -> None:
    with pytest.raises(NotPortableError) as caught:
        exported(network(), size=16)
    assert caught.value.message == f"both backends can't hold test/network: {said}"
    assert caught.value.exit_code == 2


def test_a_network_without_a_graph_is_not_portable() -> None:
    segments = SimpleNamespace(derived=None)
    plan = SimpleNamespace(
        source=SimpleNamespace(model="own/loop"), model=SimpleNamespace(note="no graph, so the only cuts are a and b: it loops")
    )
    with pytest.raises(NotPortableError, match="^both backends can't hold own/loop: its graph can't be traced: it loops$"):
        export(SimpleNamespace(parts=SimpleNamespace(plan=plan, segments=segments)))  # type: ignore[arg-type]


def test_the_source_builds_what_was_written(tmp_path: Path, build_model: Callable[..., nn.Module]) -> None:
    _, portable, tensors = exported(build_model("torchvision/squeezenet1_1", 64), size=64)
    write(tmp_path, portable, tensors)
    source = PortableSource()
    built = source.build(str(tmp_path), pretrained=True, image_size=64)
    assert read(tmp_path) == portable
    assert {name for name, _ in built.named_parameters()} == {*tensors, *CLASSIFIER}
    assert source.library() == f"torch {torch.__version__.partition('+')[0]}"
