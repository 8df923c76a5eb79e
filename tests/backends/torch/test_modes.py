"""Which module is in train mode: whose the modules without tensors are, and suffixes against the network's own forward in those modes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from xfer.backends.torch.describe import describe
from xfer.backends.torch.modes import batch_norms, owners, trained_batch_norms, training_modes
from xfer.backends.torch.segments import Segments, TwoModes
from xfer.plan.model_map import PIXELS, POOLED


def segments_of(network: nn.Module, size: int) -> Segments:
    return Segments(network, describe(network, model="own", library="own 1", input_size=size, image_size=size))


def on_meta(make: Callable[[], nn.Module], size: int) -> Segments:
    """Of a network without numbers: modes need none."""
    with torch.device("meta"):
        return segments_of(make(), size)


# whose is what


def test_dropout_between_classifying_layers_is_of_the_layer_after_it() -> None:
    """It regularises what that layer reads, and a cut between the two lies below it. What a head replaces, with the dropout before it,
    has no owner, nor have containers."""
    segments = on_meta(torchvision.models.vgg11, 32)
    owner = owners(segments)
    assert {path: owner.get(path) for path in ("classifier.0", "classifier.1", "classifier.2", "classifier.3", "classifier.4")} == {
        "classifier.0": "classifier.0", "classifier.1": "classifier.3", "classifier.2": "classifier.3",
        "classifier.3": "classifier.3", "classifier.4": "classifier.3",
    }  # fmt: skip
    assert {path: owner[path] for path in ("features.1", "features.2", "features.20", "avgpool")} == {
        "features.1": "features.3", "features.2": "features.3", "features.20": "classifier.0", "avgpool": "classifier.0",
    }  # fmt: skip
    assert {path for path, _ in segments.network.named_modules() if path} - set(owner) == {
        "features", "classifier", "classifier.5", "classifier.6",
    }  # fmt: skip


@pytest.mark.parametrize(("trained", "drops"), [(["classifier.0"], False), (["classifier.3"], True), (["features.18"], False)])
def test_it_drops_where_its_layer_trains(trained: list[str], drops: bool) -> None:
    segments = on_meta(torchvision.models.vgg11, 32)
    suffix = segments.between("features.18", POOLED)
    training_modes(segments, suffix, owners(segments), [*trained, "head"], norm="train")
    assert segments.network.classifier[2].training is drops
    assert not segments.network.classifier[5].training  # the new head brings its own


def test_drop_path_is_of_its_block() -> None:
    segments = on_meta(lambda: timm.create_model("convnext_atto", drop_path_rate=0.3), 32)
    owner = owners(segments)
    paths = [path for path, module in segments.network.named_modules() if type(module).__name__ == "DropPath"]
    assert len(paths) == 11  # all blocks but the first, whose rate is 0
    assert {path: owner[path] for path in paths} == {path: path.removesuffix(".drop_path") for path in paths}
    training_modes(segments, segments.between(PIXELS, POOLED), owner, ["stages.3.blocks.1", "head"], norm="train")
    assert [path for path in paths if segments.network.get_submodule(path).training] == ["stages.3.blocks.1.drop_path"]


def test_dropout_after_a_tensor_is_of_the_module_after() -> None:
    """A vision transformer drops positions after it has added their table, which is a group without a module."""
    segments = on_meta(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, pos_drop_rate=0.1), 32)
    owner = owners(segments)
    assert [group.name for group in segments.model_map.groups][:4] == ["patch_embed", "cls_token", "pos_embed", "blocks.0"]
    assert (owner["pos_drop"], owner["norm_pre"], owner["patch_embed.proj"]) == ("blocks.0", "blocks.0", "patch_embed")
    assert {owner[path] for path, _ in segments.network.named_modules() if path.startswith("blocks.7")} == {"blocks.7"}
    assert "head" not in owner


def test_layers_inside_a_dense_block_are_the_block_s() -> None:
    segments = on_meta(torchvision.models.densenet121, 32)
    owner = owners(segments)
    for path, module in segments.network.named_modules():
        group = ".".join(path.split(".")[:2])
        if group.startswith(("features.denseblock", "features.transition")):
            assert owner[path] == group
        elif isinstance(module, nn.BatchNorm2d):
            assert owner[path] == path
    assert (owner["features.relu0"], owner["features.pool0"]) == ("features.denseblock1", "features.denseblock1")
    assert len(trained_batch_norms(segments, owner, ["features.denseblock4"])) == 32
    assert len(trained_batch_norms(segments, owner, ["features.denseblock4", "features.norm5", "head"])) == 33
    assert len(list(batch_norms(segments.network))) == 121


def test_before_the_first_group_and_in_a_network_without_a_graph() -> None:
    owner = owners(segments_of(DropsFirst(), 16))
    assert (owner["drop"], owner["stem"], owner["between"], owner["last"]) == ("stem", "stem", "last", "last")
    segments = segments_of(Undecided(), 16)
    assert not segments.model_map.traced
    owner = owners(segments)
    assert {path: owner.get(path) for path in ("drop", "stem", "between", "last")} == {
        "drop": "stem", "stem": "stem", "between": "last", "last": "last",
    }  # fmt: skip


# flags


class DropsFirst(nn.Module):
    """Dropout before the first layer, and between two."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.stem, self.between = nn.Dropout(0.1), nn.Conv2d(3, 8, 3, stride=2), nn.Dropout(0.5)
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(self.last(self.between(self.stem(self.drop(x)))).mean((2, 3)))


class Undecided(DropsFirst):
    """What it does depends on the numbers, so there is no graph of it."""

    def forward(self, x: Any) -> Any:
        x = self.stem(self.drop(x))
        x = self.last(self.between(x)) if x.abs().mean() > 0 else self.last(x)
        return self.fc(x.mean((2, 3)))


class Noisy(nn.Module):
    """The top level drops by itself, and its groups have normalisation of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.body, self.group = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.4)), nn.GroupNorm(2, 8)
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = functional.dropout(self.norm(self.stem(x)), 0.3, training=self.training)
        return self.fc(self.last(self.group(self.body(x)).relu()).mean((2, 3)))


def flags(network: nn.Module) -> set[str]:
    return {path for path, module in network.named_modules() if path and module.training and not any(True for _ in module.children())}


def test_normalisation_is_frozen_where_the_phase_says_so() -> None:
    segments = segments_of(Noisy(), 16)
    owner = owners(segments)
    suffix = segments.between(PIXELS, POOLED)
    everything = [group.name for group in segments.model_map.groups]
    training_modes(segments, suffix, owner, everything, norm="train")
    assert flags(segments.network) == {"stem", "norm", "body.0", "body.1", "body.2", "group", "last"}
    training_modes(segments, suffix, owner, everything, norm="frozen")
    assert flags(segments.network) == {"stem", "body.0", "body.2", "last"}
    training_modes(segments, suffix, owner, ["body.0", "body.1", "head"], norm="train")
    assert flags(segments.network) == {"body.0", "body.1"}
    training_modes(segments, suffix, owner, ["group", "head"], norm="train")
    assert flags(segments.network) == {"body.2", "group"}
    training_modes(segments, suffix, owner, ["body.0", "body.1", "head"], norm="frozen", statistics=True)
    assert flags(segments.network) == {"body.0", "norm", "body.1"}  # a method rewrites statistics everywhere
    training_modes(segments, suffix, owner, ["head"], norm="train")
    assert flags(segments.network) == set()


def test_modes_are_set_anew_after_validation() -> None:
    """`eval()` on a suffix reaches the network's own layers; the next epoch finds the flags that it had."""
    segments = segments_of(Noisy(), 16)
    owner, suffix = owners(segments), segments.between("stem", POOLED)
    trained = ["norm", "group", "head"]
    training_modes(segments, suffix, owner, trained, norm="train")
    before = flags(segments.network)
    assert before == {"norm", "group", "body.2"}
    suffix.eval()
    assert flags(segments.network) == set()
    training_modes(segments, suffix, owner, trained, norm="train")
    assert flags(segments.network) == before


def test_the_mode_of_a_top_level_that_has_two() -> None:
    """It drops where anything that has a module trains; in eval mode, and where only the head trains, it doesn't."""
    segments = segments_of(Noisy(), 16)
    owner, suffix = owners(segments), segments.between("norm", POOLED)
    assert isinstance(suffix, TwoModes)
    x = torch.randn(2, 8, 8, 8)
    for trained, drops in ((["last", "head"], True), (["head"], False)):
        training_modes(segments, suffix, owner, trained, norm="train")
        assert (suffix.training, torch.equal(suffix(x), suffix(x))) == (drops, not drops)
    training_modes(segments, suffix, owner, ["last", "head"], norm="train")
    suffix.eval()
    assert torch.equal(suffix(x), suffix(x))


# a suffix in these modes is the network itself in these modes


def by_hand(network: nn.Module, trained: Collection[str], extra: Collection[str], *, norm: str) -> None:
    """Train mode for what lies in a trained group, and for `extra`."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    for path, module in network.named_modules():
        inside = any(path == group or path.startswith(f"{group}.") for group in trained) or path in extra
        module.training = inside and not (norm == "frozen" and isinstance(module, norms))


def features_of(network: nn.Module, x: torch.Tensor, classifier: str) -> torch.Tensor:
    """What the network's own classifier reads when the network itself is called."""
    read: list[torch.Tensor] = []
    hook = network.get_submodule(classifier).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    network(x)
    hook.remove()
    return read[0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, str, int, tuple[str, ...]]] = {
    # how it is built, its side, its classifier, how many groups train, and modules of none that are in train mode with them
    "two modes": (Noisy, 16, "fc", 5, ("", "body.2")),
    "dropout between groups": (DropsFirst, 16, "fc", 2, ("drop", "between")),
    "densenet": (lambda: torchvision.models.densenet121(drop_rate=0.2), 32, "classifier", 2, ()),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, drop_path_rate=0.4, proj_drop_rate=0.1), 32, "head", 4, ()),
    "convnext": (lambda: timm.create_model("convnext_atto", drop_path_rate=0.4, ls_init_value=0.5), 32, "head.fc", 4, ()),
}


LARGE_ONES = ("densenet", "vit", "convnext")
MODES = [(name, norm) for name in NETWORKS for norm in ("train", "frozen")]


@pytest.mark.parametrize(
    ("name", "norm"),
    [pytest.param(*mode, marks=[pytest.mark.slow] if mode[0] in LARGE_ONES and mode[1] == "frozen" else []) for mode in MODES],
)
def test_a_suffix_in_train_mode_is_the_network_in_train_mode(name: str, norm: str) -> None:
    """From the same random state both give the same features, statistics and gradients; the prefix is computed once, in eval mode."""
    make, size, classifier, n_trained, extra = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    whole, segments = copy.deepcopy(network), segments_of(network, size)
    groups = [group.name for group in segments.model_map.groups]
    trained = groups[-n_trained:]
    cut = max((c for c in segments.model_map.cuts if c.groups_before <= len(groups) - n_trained), key=lambda c: c.groups_before)
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        rows = segments.between(PIXELS, cut.name).eval()(images)

    suffix = segments.between(cut.name, POOLED)
    training_modes(segments, suffix, owners(segments), [*trained, "head"], norm=norm)
    by_hand(whole, trained, extra, norm=norm)
    torch.manual_seed(11)
    found = suffix(rows)
    torch.manual_seed(11)
    expected = features_of(whole, images, classifier)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    for path, statistics in network.named_buffers():
        assert torch.allclose(statistics, whole.get_buffer(path), rtol=1e-5, atol=1e-6), path
    assert_same_gradients(network, whole, trained, found, expected)
    torch.manual_seed(12)
    assert not torch.allclose(suffix(rows), expected, atol=1e-3)  # it is random, and the state decides


def assert_same_gradients(network: nn.Module, whole: nn.Module, trained: list[str], found: torch.Tensor, expected: torch.Tensor) -> None:
    for features in (found, expected):
        features.square().sum().backward()
    others = {name: p.grad for name, p in whole.named_parameters() if any(name.startswith(f"{group}.") for group in trained)}
    slopes = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert others
    for name, slope in others.items():
        assert slope is not None
        assert slopes[name] is not None
        assert torch.allclose(slopes[name], slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max())), name
