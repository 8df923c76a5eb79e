"""Building a provider's networks: names, sizes, what a network is built for."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from xfer.backends.torch.blueprint import blueprint
from xfer.errors import MissingExtraError, UsageError
from xfer.sources.source import Source
from xfer.sources.timm import TimmSource
from xfer.sources.torchvision import TorchvisionSource


def shape(source: Source, name: str, tensor: str, *, pretrained: bool, image_size: int | None) -> tuple[int, ...]:
    network = blueprint(lambda: source.build(name, pretrained=pretrained, image_size=image_size))
    return tuple(network.state_dict()[tensor].shape)


def test_models_are_listed() -> None:
    torchvision, timm = TorchvisionSource().models(), TimmSource().models()
    assert (len(torchvision), torchvision[0], torchvision[-1]) == (80, "alexnet", "wide_resnet50_2")
    assert len(timm) > 1000
    assert timm == sorted(timm)
    assert not any("." in name for name in timm)


def test_library_is_name_and_version() -> None:
    assert TorchvisionSource().library() == f"torchvision {metadata.version('torchvision')}"
    assert TimmSource().library() == f"timm {metadata.version('timm')}"


@pytest.mark.parametrize("source", [TorchvisionSource(), TimmSource()])
def test_a_library_that_is_not_installed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(f"xfer.sources.{source.provider}.version", absent)
    for ask in (source.library, source.models):
        with pytest.raises(MissingExtraError) as raised:
            ask()
        assert raised.value.message == f"{source.provider} is not installed"
        assert raised.value.hint == "pip install 'xfer-runner[torch]'"


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b7", 600), ("vit_b_16", 224), ("vit_h_14", 518)]
)
def test_native_sizes_of_torchvision(name: str, size: int) -> None:
    assert TorchvisionSource().input_size(name) == size


@pytest.mark.parametrize(("name", "size"), [("resnet18", 224), ("swinv2_tiny_window8_256", 256), ("tf_efficientnet_b1.in1k", 240)])
def test_native_sizes_of_timm(name: str, size: int) -> None:
    assert TimmSource().input_size(name) == size


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_have_no_auxiliary_heads_and_shift_their_input_with_weights_only(name: str) -> None:
    for pretrained in (False, True):
        network = blueprint(lambda pretrained=pretrained: TorchvisionSource().build(name, pretrained=pretrained))
        assert not any(part.lower().startswith("aux") for part, _ in network.named_parameters())
        assert network.transform_input is pretrained


def test_a_file_of_torchvision_s_own_is_told_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies and whatever it is called; only where it makes a difference."""
    file, source = tmp_path / "mine.pth", TorchvisionSource()
    file.write_bytes(b"published")
    assert not source.is_for_own("inception_v3", file, None)
    url = f"https://download.pytorch.org/models/inception_v3_google-{hashlib.sha256(b'published').hexdigest()[:8]}.pth"
    monkeypatch.setattr(source, "_weights", lambda name: {"IMAGENET1K_V1": SimpleNamespace(url=url)})
    assert source.is_for_own("inception_v3", file, None)
    assert not source.is_for_own("resnet18", file, None)
    assert not source.is_for_own("inception_v3", tmp_path / "absent.pth", None)


@pytest.mark.parametrize(
    ("pretrained", "image_size", "patches"),
    [
        (True, None, 197),
        (True, 384, 577),  # torchvision has weights of that size
        (True, 64, 197),  # it hasn't: the network stays what the weights fit
        (False, 64, 17),
    ],
)
def test_a_vision_transformer_is_built_for_one_size(pretrained: bool, image_size: int | None, patches: int) -> None:
    found = shape(TorchvisionSource(), "vit_b_16", "encoder.pos_embedding", pretrained=pretrained, image_size=image_size)
    assert found == (1, patches, 768)


@pytest.mark.parametrize(("pretrained", "image_size", "patches"), [(True, None, 197), (True, 64, 197), (False, 64, 17)])
def test_a_transformer_of_timm_too(pretrained: bool, image_size: int | None, patches: int) -> None:
    found = shape(TimmSource(), "vit_tiny_patch16_224", "pos_embed", pretrained=pretrained, image_size=image_size)
    assert found == (1, patches, 192)


def test_convolutional_networks_take_any_size() -> None:
    for source, name in ((TorchvisionSource(), "resnet18"), (TimmSource(), "resnet18")):
        assert shape(source, name, "conv1.weight", pretrained=True, image_size=64) == (64, 3, 7, 7)


def test_a_size_that_no_network_can_be_built_for() -> None:
    with pytest.raises(UsageError) as raised:
        blueprint(lambda: TorchvisionSource().build("vit_b_16", pretrained=False, image_size=65))
    assert (
        raised.value.message == "torchvision/vit_b_16 can't be built for images of 65 pixels a side: Input shape indivisible by patch size!"
    )
    assert raised.value.hint == "leave target.image_size out, or set it to 224"


def test_names_that_there_are_not() -> None:
    for source, message in (
        (TorchvisionSource(), "torchvision has no classification model 'resnet19'; did you mean 'resnet18'?"),
        (TimmSource(), "timm has no model 'resnet19'; did you mean 'resnet18'?"),
    ):
        for ask in (source.input_size, lambda name, source=source: source.build(name, pretrained=False)):
            with pytest.raises(UsageError) as raised:
                ask("resnet19")
            assert raised.value.message == message
            assert raised.value.hint == "xfer list models shows all names"
    with pytest.raises(UsageError) as raised:
        TorchvisionSource().input_size("zzzzzzzzzz")
    assert raised.value.message == "torchvision has no classification model 'zzzzzzzzzz'"
