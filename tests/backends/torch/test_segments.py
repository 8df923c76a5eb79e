from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer.backends.torch.describe import describe
from xfer.backends.torch.segments import Segments
from xfer.errors import UsageError
from xfer.plan.model_map import ModelMap

Describe = Callable[..., ModelMap]

# As small as a network takes them; a transformer is built for that size.
FEW = [
    ("torchvision/squeezenet1_1", 64),
    ("torchvision/resnet18", 64),
    ("torchvision/mobilenet_v3_small", 64),
    ("torchvision/densenet121", 32),
    ("torchvision/googlenet", 64),
    ("torchvision/swin_t", 64),
    ("timm/tf_efficientnet_lite0", 64),
    ("timm/vit_tiny_patch16_224", 64),
    ("timm/convnext_atto", 64),
]


@pytest.mark.parametrize(("model", "size"), FEW)
def test_prefix_and_suffix_equal_the_whole(
    model: str, size: int, describe_model: Describe, build_model: Any, assert_covers: Any, assert_segments_equal_whole: Any
) -> None:
    network, found = build_model(model, size), describe_model(model, size)
    assert found.traced
    assert_covers(network, found)
    assert_segments_equal_whole(network, found, at_most=5)


class Block(nn.Module):
    def __init__(self, width: int = 8, drop: float = 0.0) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)
        self.drop = drop

    def forward(self, x: Any) -> Any:
        y = self.two(self.norm(self.one(x)).relu_())
        return x + functional.dropout(y, self.drop, self.training)


class Own(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.ModuleList(Block(drop=drop) for _ in range(3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def described(network: nn.Module, size: int = 16) -> ModelMap:
    return describe(network, model="own", library="own 1", input_size=size, image_size=size)


def test_each_module_obeys_its_own_mode(assert_segments_equal_whole: Any) -> None:
    network = Own(drop=0.5)
    found = described(network)
    assert_segments_equal_whole(network, found)
    suffix = Segments(network, found).between("stem", "pooled")
    x = torch.randn(2, 8, 8, 8)
    network.train()
    assert not torch.equal(suffix(x), suffix(x))
    network.body[0].eval()
    network.body[1].eval()
    network.body[2].eval()
    assert torch.equal(suffix(x), suffix(x))  # the suffix itself was never told
    suffix.train()
    assert network.body[1].training
    before = network.body[0].norm.running_mean.clone()
    suffix(x)
    assert not torch.equal(network.body[0].norm.running_mean, before)


def test_a_segment_shares_the_networks_tensors() -> None:
    network = Own()
    found = described(network)
    segments = Segments(network, found)
    suffix = segments.between("body.1", "pooled")
    ours = dict(network.named_parameters())
    assert {name: ours[name] is parameter for name, parameter in suffix.named_parameters()} == dict.fromkeys(
        [name for name in ours if name.startswith("body.2.")], True
    )
    suffix(torch.randn(2, 8, 8, 8)).sum().backward()
    assert network.body[2].one.weight.grad is not None
    assert network.body[1].one.weight.grad is None
    assert segments.between("body.1", "pooled") is suffix
    assert [name for name, _ in segments.between("body.1", "body.1").named_parameters()] == []


class WithTable(nn.Module):
    """Tensors of its own, at the top level: a parameter, a buffer, and one that is made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.full((8, 1, 1), 2.0))
        self.register_buffer("shift", torch.ones(8, 1, 1))
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x) * self.scale + self.shift.square()
        return self.fc((self.last(x) + torch.arange(8.0).view(8, 1, 1)).mean((2, 3)))


def test_tensors_of_the_network_itself_are_read_from_it(assert_segments_equal_whole: Any, assert_covers: Any) -> None:
    network = WithTable()
    found = described(network)
    assert found.traced
    assert [group.name for group in found.groups] == ["stem", "scale", "shift", "last"]
    assert_covers(network, found)
    assert_segments_equal_whole(network, found)
    segments = Segments(network, found)
    x = torch.randn(2, 3, 16, 16)
    before = segments.between("pixels", "pooled")(x)
    network.double()  # makes new buffers, as a move to another device does
    after = segments.between("pixels", "pooled")(x.double())
    assert torch.allclose(before.double(), after)
    assert not any(name.startswith("_") for name in vars(network) if "constant" in name)


class OverwritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.block, self.fc = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), LooksInside(), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class LooksInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Any) -> Any:
        if int(x.shape[1]) == 8:  # keeps this module whole, so that nothing outside sees what it does to x
            x = x.clamp_(min=0)
        return self.conv(x)


def test_rows_are_not_overwritten(assert_segments_equal_whole: Any) -> None:
    network = OverwritesInput()
    assert_segments_equal_whole(network, described(network))


class Sizes(nn.Module):
    """Carries sizes past its cuts, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last, self.fc = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        n, channels, height, width = x.shape
        x = self.mix(x.flatten(2).transpose(1, 2))
        x = self.last(x.transpose(1, 2).reshape(n, channels, height, width))
        return self.fc(x.reshape(n * 2, -1, height * width).mean(2).view(n, channels))


def test_sizes_that_pass_a_cut_are_no_tensors(assert_segments_equal_whole: Any) -> None:
    network = Sizes()
    found = described(network)
    assert [(cut.name, cut.shape, cut.layout) for cut in found.cuts[1:]] == [
        ("stem", (16, 8), "tokens"),
        ("mix", (8, 4, 4), "chw"),
        ("pooled", (8,), "vector"),
    ]
    assert_segments_equal_whole(network, found)
    whole, x = Segments(network, found).between("pixels", "pooled"), torch.randn(7, 3, 16, 16)
    assert torch.allclose(whole(x)[:3], whole(x[:3]), atol=1e-6)


class NoisyTop(Own):
    """The top level itself behaves otherwise in train mode."""

    def forward(self, x: Any) -> Any:
        x = functional.dropout(self.body[0](self.stem(x)), 0.3, training=self.training)
        return self.fc(self.body[2](self.body[1](x)).mean((2, 3)))


def test_a_top_level_with_two_modes(assert_segments_equal_whole: Any) -> None:
    network = NoisyTop()
    found = described(network)
    assert found.traced
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "body.1", "pooled"]
    assert_segments_equal_whole(network, found)
    prefix, suffix = (Segments(network, found).between(*ends) for ends in (("pixels", "body.0"), ("body.0", "pooled")))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(prefix.train()(x), prefix.train()(x)) != torch.equal(suffix.train()(prefix(x)), suffix.train()(prefix(x)))


class Undecided(Own):
    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.body:
            x = block(x) if x.abs().mean() > 0.1 else -block(x)
        return self.fc(functional.dropout(x.mean((2, 3)), 0.0, self.training)).softmax(1)


def test_a_network_that_cannot_be_traced_runs_as_a_whole() -> None:
    network = Undecided().eval()
    found = described(network)
    assert not found.traced
    whole, x = Segments(network, found).between("pixels", "pooled"), torch.randn(4, 3, 16, 16)
    assert whole(x).shape == (4, 8)
    assert torch.allclose(network.fc(whole(x)).softmax(1), network(x), atol=1e-6)
    whole(x).sum().backward()
    assert network.stem.weight.grad is not None
    assert len(network.fc._forward_pre_hooks) == 0


def test_cuts_that_there_are_not() -> None:
    segments = Segments(network := Own(), described(network))
    with pytest.raises(UsageError) as raised:
        segments.between("pixels", "body.7")
    assert raised.value.message == "own has no cut 'body.7'; its cuts are pixels, stem, body.0, body.1, pooled"
    with pytest.raises(UsageError) as raised:
        segments.between("body.1", "stem")
    assert raised.value.message == "own: the cut 'stem' lies below 'body.1'"


def test_segments_can_be_copied() -> None:
    network = Own()
    suffix = Segments(network, described(network)).between("stem", "pooled").eval()
    x = torch.randn(2, 8, 8, 8)
    copied = copy.deepcopy(suffix)
    expected = suffix(x)
    with torch.no_grad():
        network.body[0].one.weight.zero_()
    assert torch.equal(copied(x), expected)
    assert not torch.equal(suffix(x), expected)


def test_any_size_that_a_convolutional_network_takes(describe_model: Describe, build_model: Any, assert_segments_equal_whole: Any) -> None:
    size = random.Random(0).randrange(33, 63)
    assert_segments_equal_whole(build_model("torchvision/resnet18", size), describe_model("torchvision/resnet18", size), at_most=3)


class KeepsTable(nn.Module):
    """Remembers what it made for the last image size, as relative positions often are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.seen = nn.Conv2d(8, 8, 1), None, []

    def forward(self, x: Any) -> Any:
        self.seen.append(x)
        self.table = x.mean((0, 1), keepdim=True) if self.table is None else self.table
        return self.conv(x) + self.table


def test_tables_that_a_network_keeps_hold_no_proxies(assert_segments_equal_whole: Any) -> None:
    network = Own()
    network.body[1] = KeepsTable()
    found = described(network)
    Segments(network, found)
    assert (network.body[1].table, network.body[1].seen) == (None, [])
    network(torch.randn(2, 3, 16, 16))
    assert isinstance(network.body[1].table, torch.Tensor)


class MakesTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Any) -> Any:
        return self.conv(x) * torch.linspace(0, 1, 8).view(8, 1, 1)


def test_a_tensor_that_a_module_makes_is_made_where_the_network_is(assert_segments_equal_whole: Any) -> None:
    network = Own()
    network.body[1] = MakesTensor()
    found = described(network)
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "body.1", "pooled"]
    assert_segments_equal_whole(network, found)
    segment = Segments(network, found).between("stem", "pooled")
    assert "body.1" in [node.target for node in segment.graph.nodes if node.op == "call_module"]
