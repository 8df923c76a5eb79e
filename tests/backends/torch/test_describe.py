from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer.backends.torch.describe import describe
from xfer.errors import UsageError
from xfer.plan.model_map import ModelMap

Describe = Callable[..., ModelMap]


def names(found: ModelMap) -> list[str]:
    return [group.name for group in found.groups]


def test_a_residual_network_has_its_blocks_as_groups_and_its_resolutions_as_stages(describe_model: Describe) -> None:
    found = describe_model("torchvision/resnet18")
    assert found.stages == {
        "stage0": ("conv1", "bn1"),
        "stage1": ("layer1.0", "layer1.1"),
        "stage2": ("layer2.0", "layer2.1"),
        "stage3": ("layer3.0", "layer3.1"),
        "stage4": ("layer4.0", "layer4.1"),
    }
    assert [(cut.name, cut.groups_before, cut.shape, cut.layout) for cut in found.cuts] == [
        ("pixels", 0, (224, 224, 3), "pixels"),
        ("conv1", 1, (64, 112, 112), "chw"),
        ("bn1", 2, (64, 56, 56), "chw"),  # behind the pooling that has no tensors
        ("layer1.0", 3, (64, 56, 56), "chw"),
        ("layer1.1", 4, (64, 56, 56), "chw"),
        ("layer2.0", 5, (128, 28, 28), "chw"),
        ("layer2.1", 6, (128, 28, 28), "chw"),
        ("layer3.0", 7, (256, 14, 14), "chw"),
        ("layer3.1", 8, (256, 14, 14), "chw"),
        ("layer4.0", 9, (512, 7, 7), "chw"),
        ("pooled", 10, (512,), "vector"),
    ]
    assert [tensor.name for tensor in found.classifier] == ["fc.weight", "fc.bias"]
    assert (found.traced, found.note, found.input_size, found.image_size) == (True, None, 224, 224)
    assert found.n_parameters == 11_176_512


def test_describing_takes_less_than_a_second(describe_model: Describe) -> None:
    describe_model("torchvision/resnet18")  # imports
    start = time.process_time()
    describe_model("torchvision/resnet18")
    assert time.process_time() - start < 1


def test_inverted_residual_blocks_stay_whole_even_where_one_of_them_has_no_shortcut(describe_model: Describe) -> None:
    found = describe_model("torchvision/mobilenet_v2")
    assert names(found) == [f"features.{n}" for n in range(19)]
    assert [len(groups) for groups in found.stages.values()] == [2, 2, 3, 7, 5]


def test_a_network_of_one_resolution_has_the_tokens_and_four_equal_runs(describe_model: Describe) -> None:
    found = describe_model("torchvision/vit_b_16")
    layers = [f"encoder.layers.encoder_layer_{n}" for n in range(12)]
    assert found.stages == {
        "stage0": ("conv_proj", "class_token", "encoder.pos_embedding"),
        "stage1": tuple(layers[:3]),
        "stage2": tuple(layers[3:6]),
        "stage3": tuple(layers[6:9]),
        "stage4": (*layers[9:], "encoder.ln"),
    }
    assert {cut.layout for cut in found.cuts[1:-1]} == {"tokens"}
    assert found.cut("class_token").shape == (197, 768)


def test_a_network_that_works_channels_last_says_so(describe_model: Describe) -> None:
    found = describe_model("torchvision/swin_t")
    assert {cut.layout for cut in found.cuts[1:-1]} == {"hwc"}
    assert found.cut("features.3.1").shape == (28, 28, 192)
    assert [len(groups) for groups in found.stages.values()] == [4, 3, 7, 4]


def test_the_pooled_cut_averages_what_a_spatial_classifier_reads(describe_model: Describe) -> None:
    found = describe_model("torchvision/squeezenet1_1")
    assert names(found) == ["features.0", *(f"features.{n}" for n in (3, 4, 6, 7, 9, 10, 11, 12))]
    assert found.cuts[-1].shape == (512,)
    assert [tensor.name for tensor in found.classifier] == ["classifier.1.weight", "classifier.1.bias"]


def test_hidden_layers_of_the_classifier_belong_to_the_network(describe_model: Describe) -> None:
    found = describe_model("torchvision/vgg11")
    assert names(found)[-2:] == ["classifier.0", "classifier.3"]
    assert found.cut("features.18").layout == "chw"  # not the same numbers in a row
    assert found.cuts[-1].shape == (4096,)
    assert found.groups[-1].stage == "stage4"


def test_dense_blocks_have_no_cut_inside(describe_model: Describe) -> None:
    found = describe_model("torchvision/densenet121", 64)
    assert names(found) == [
        *("features.conv0", "features.norm0"),
        *(f"features.{kind}{n}" for n in (1, 2, 3) for kind in ("denseblock", "transition")),
        *("features.denseblock4", "features.norm5"),
    ]


def test_a_network_with_two_heads_says_which_one_counts(describe_model: Describe) -> None:
    found = describe_model("timm/deit_tiny_distilled_patch16_224")
    assert found.note == "it has several classifying layers (head, head_dist): the features are those that head reads"
    assert {tensor.name for tensor in found.classifier} == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_no_group_is_called_like_the_new_head(describe_model: Describe) -> None:
    found = describe_model("timm/convnext_atto")
    assert names(found)[-1] == "head.norm"
    assert [tensor.name for tensor in found.classifier] == ["head.fc.weight", "head.fc.bias"]


def test_normalisation_tensors_are_named(describe_model: Describe) -> None:
    found = describe_model("torchvision/resnet18")
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert found.group("bn1").norm == tuple(f"bn1.{name}" for name in statistics)
    assert found.group("layer1.0").norm == tuple(f"layer1.0.bn{n}.{name}" for n in (1, 2) for name in statistics)
    assert found.group("conv1").norm == ()
    assert describe_model("timm/tf_efficientnet_lite0").group("bn1").norm == tuple(f"bn1.{name}" for name in statistics)


def test_shapes_are_for_the_images_asked_for_and_stages_for_the_native_ones(describe_model: Describe) -> None:
    native, small = describe_model("torchvision/resnet18"), describe_model("torchvision/resnet18", 64)
    assert small.cut("layer3.0").shape == (256, 4, 4)
    assert small.cuts[0].shape == (64, 64, 3)
    assert small.stages == native.stages
    assert (small.input_size, small.image_size) == (224, 64)


def test_an_image_size_that_the_network_cannot_take() -> None:
    from torchvision import models

    with pytest.raises(UsageError) as raised:
        describe(models.vit_b_32(), model="torchvision/vit_b_32", library="torchvision", input_size=224, image_size=96)
    assert raised.value.message == (
        "torchvision/vit_b_32 can't take images of 96 pixels a side: Wrong image height! Expected 224 but got 96!"
    )
    assert raised.value.hint == "leave target.image_size out, or set it to 224, the size that the network was made for"


def test_describing_leaves_the_network_as_it_was(describe_own: Describe) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    network.train()
    network[1].eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attributes = set(vars(network))
    describe_own(network)
    assert [module.training for module in network.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert set(vars(network)) == attributes


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return x + self.two(self.one(x).relu())


class Own(nn.Module):
    """A small network whose parts a test replaces."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(Block(8), Block(8))
        for name, part in parts.items():
            setattr(self, name, part)
        self.fc = nn.Linear(8, 5)

    def features(self, x: Any) -> Any:
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, x: Any) -> Any:
        return self.fc(self.features(x))


def test_a_network_of_ones_own(describe_own: Describe, assert_covers: Any) -> None:
    network = Own()
    found = describe_own(network)
    assert_covers(network, found)
    assert names(found) == ["stem", "body.0", "body.1"]
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "pooled"]


class LooksAtNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Any) -> Any:
        return self.norm(x) if x.mean() > 0 else x


def test_a_module_that_cannot_be_traced_is_kept_whole(describe_own: Describe, assert_covers: Any) -> None:
    network = Own(body=nn.Sequential(Block(8), LooksAtNumbers(), Block(8)))
    found = describe_own(network)
    assert_covers(network, found)
    assert found.traced
    assert names(found) == ["stem", "body.0", "body.1", "body.2"]
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "body.1", "pooled"]


class Undecided(Own):
    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.body:
            x = block(x) if x.abs().mean() > 0.1 else -block(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_whose_own_forward_cannot_be_traced_has_two_cuts(describe_own: Describe, assert_covers: Any, device: str) -> None:
    network = Undecided().to(device)
    found = describe_own(network)
    assert_covers(network, found)
    assert not found.traced
    assert names(found) == ["stem", "body.0", "body.1"]
    assert [(cut.name, cut.shape) for cut in found.cuts] == [("pixels", (32, 32, 3)), ("pooled", (8,))]
    assert [tensor.name for tensor in found.classifier] == ["fc.weight", "fc.bias"]
    assert found.note == (
        "no graph, so the only cuts are pixels and pooled: it can't be traced: "
        "symbolically traced variables cannot be used as inputs to control flow"
    )


def test_an_untraced_network_that_cannot_take_the_images(describe_own: Describe) -> None:
    network = Undecided(body=nn.Sequential(nn.Conv2d(8, 8, 20)))
    with pytest.raises(UsageError) as raised:
        describe_own(network)
    assert raised.value.message == (
        "own can't take images of 32 pixels a side: Calculated padded input size per channel: (16 x 16). "
        "Kernel size: (20 x 20). Kernel size can't be greater than actual input size"
    )


def test_modules_and_tensors_that_forward_never_uses_are_not_lost(describe_own: Describe, assert_covers: Any) -> None:
    network = Own(spare=nn.BatchNorm2d(3))
    network.register_parameter("token", nn.Parameter(torch.zeros(3)))
    network.register_buffer("seen", torch.zeros(1))
    network.register_buffer("table", torch.zeros(1), persistent=False)  # made by the network itself: no state
    found = describe_own(network)
    assert_covers(network, found)
    assert names(found) == ["token", "seen", "stem", "body.0", "body.1", "spare"]
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "pooled"]


class Tied(Own):
    def __init__(self) -> None:
        super().__init__()
        self.body[1].two.weight = self.body[0].one.weight
        self.again = self.stem


def test_tied_tensors_count_once_where_they_are_used_first(describe_own: Describe) -> None:
    found = describe_own(Tied())
    assert [tensor.name for tensor in found.group("body.0").tensors][0] == "body.0.one.weight"
    assert "body.1.two.weight" not in [tensor.name for group in found.groups for tensor in group.tensors]
    assert names(found) == ["stem", "body.0", "body.1"]


class Reserved(Own):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.pooled, self.all = nn.Conv2d(8, 8, 1), Block(8), nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Any:
        return self.fc(self.pooled(self.head(self.body(self.stem(x) * self.all))).mean((2, 3)))


def test_groups_never_take_names_that_mean_something_else(describe_own: Describe) -> None:
    found = describe_own(Reserved())
    assert names(found) == ["stem", "all.tensor", "body.0", "body.1", "head.Conv2d", "pooled.one", "pooled.two"]


class Headless(Own):
    def forward(self, x: Any) -> Any:
        return self.features(x)


def test_a_network_without_a_classifier_gives_its_output(describe_own: Describe) -> None:
    found = describe_own(Headless())
    assert found.note == "it has no classifying layer: its output is taken as the features"
    assert found.cuts[-1].shape == (8,)
    assert found.classifier == ()


class WithAuxiliary(Own):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.body[0](self.stem(x))
        early = self.auxiliary(x.mean((2, 3)))
        late = functional.dropout(self.body[1](x).mean((2, 3)), 0.5, self.training)
        return (self.fc(late), early) if self.training else self.fc(late)


def test_auxiliary_heads_are_left_out(describe_own: Describe, assert_covers: Any) -> None:
    network = WithAuxiliary()
    found = describe_own(network)
    assert_covers(network, found)
    assert found.traced
    assert {tensor.name for tensor in found.classifier} == {"auxiliary.weight", "auxiliary.bias", "fc.weight", "fc.bias"}
    assert [cut.name for cut in found.cuts] == ["pixels", "stem", "body.0", "pooled"]


class Dropping(Own):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def features(self, x: Any) -> Any:
        return self.body[1](self.drop(self.body[0](self.stem(x)).relu())).mean((2, 3))


def test_dropout_between_two_groups_stays_with_the_later_one(describe_own: Describe) -> None:
    from xfer.backends.torch.segments import Segments

    network = Dropping()
    found = describe_own(network)
    segments = Segments(network, found)
    x = torch.randn(2, 3, 32, 32)
    prefix = segments.between("pixels", "body.0").train()
    torch.manual_seed(0)
    assert torch.equal(prefix(x), prefix(x))
    assert bool((prefix(x) >= 0).all())  # the activation before the dropout is still below the cut
    suffix = segments.between("body.0", "pooled").train()
    assert not torch.equal(suffix(prefix(x)), suffix(prefix(x)))


class UndecidedHeadless(Undecided):
    def forward(self, x: Any) -> Any:
        x = self.body[0](self.stem(x)) if x.mean() > 0 else self.stem(x)
        return self.norm(self.fc(x.mean((2, 3))))


def test_an_inner_linear_layer_of_an_untraced_network_is_no_classifier(describe_own: Describe) -> None:
    found = describe_own(UndecidedHeadless(norm=nn.LayerNorm(5)))
    assert (found.traced, found.classifier, found.cuts[-1].shape) == (False, (), (5,))


class DecidesBySize(Own):
    """The top level looks at the size of what it has; tables made of sizes alone are read by every block."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("periods", torch.linspace(0, 1, 8).view(8, 1, 1))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        if x.shape[-1] > 12:
            x = functional.avg_pool2d(x, 2)
        table = torch.sin(self.periods * x.shape[-1])
        for number in range(int(x.shape[-1] > 1) + 1):
            x = self.body[number](x) * table
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("image_size", [16, 32, 40])
def test_a_top_level_that_decides_by_size(image_size: int, assert_covers: Any, assert_segments_equal_whole: Any) -> None:
    network = DecidesBySize()
    found = describe(network, model="own", library="own 1", input_size=32, image_size=image_size)
    assert found.traced
    assert_covers(network, found)
    assert [(group.name, group.stage) for group in found.groups] == [
        ("stem", "stage0"),
        ("body.0", "stage1"),
        ("periods", "stage1"),
        ("body.1", "stage1"),
    ]
    side = {16: 8, 32: 8, 40: 10}[image_size]
    assert [(cut.name, cut.shape) for cut in found.cuts[1:-1]] == [
        ("stem", (8, side, side)),
        ("body.0", (8, side, side)),
        ("periods", (8, side, side)),
    ]
    assert_segments_equal_whole(network, found)


class DecidesByBatch(Own):
    def forward(self, x: Any) -> Any:
        return self.fc(self.features(x)) if x.shape[0] > 12 else self.fc(-self.features(x))


def test_how_many_images_there_are_decides_nothing(describe_own: Describe) -> None:
    assert not describe_own(DecidesByBatch()).traced
