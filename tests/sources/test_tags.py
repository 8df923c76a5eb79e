"""Providers' own weights: names, places, preprocessing, and old names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import models
from torchvision.transforms import functional

from xfer.errors import UsageError, WeightsError
from xfer.plan.model_map import ModelMap
from xfer.plan.preprocess import Preprocess
from xfer.sources.source import Tag
from xfer.sources.timm import TimmSource
from xfer.sources.torchvision import TorchvisionSource
from xfer.sources.weights import fit


def test_torchvision_tags(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TorchvisionSource()
    assert source.tags("resnet50") == ["IMAGENET1K_V2", "IMAGENET1K_V1"]
    assert source.tags("vit_b_16") == ["IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1"]
    weights = models.ResNet50_Weights
    file = own_home / ".cache/torch/hub/checkpoints/resnet50-11ad3fa6.pth"
    best = Tag("IMAGENET1K_V2", weights.DEFAULT.url, str(file))
    assert source.tag("resnet50", "DEFAULT") == source.tag("resnet50", "IMAGENET1K_V2") == best
    assert source.tag("resnet50", "ResNet50_Weights.IMAGENET1K_V1").name == "IMAGENET1K_V1"
    monkeypatch.setenv("TORCH_HOME", "models")
    monkeypatch.chdir(own_home)
    assert source.tag("resnet50", "DEFAULT").file == str(own_home / "models/hub/checkpoints/resnet50-11ad3fa6.pth")


def test_every_torchvision_model_has_tags_with_places_and_preprocessing() -> None:
    source = TorchvisionSource()
    names = source.models()
    assert len(names) >= 80
    for name in names:
        for tag in source.tags(name):
            place = source.tag(name, tag)
            assert place.name == tag
            assert place.url is not None
            assert place.file is not None
            assert place.url.rsplit("/", 1)[1] == Path(place.file).name
            assert source.preprocess(name, tag).crop >= 128
        assert source.preprocess(name, None) == source.preprocess(name, source.tags(name)[0])


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        (
            "resnet50", "IMAGENET1K_V3",
            "torchvision has no weights 'IMAGENET1K_V3' for 'resnet50'; there are DEFAULT, IMAGENET1K_V2, IMAGENET1K_V1; "
            "did you mean 'IMAGENET1K_V2'?",
        ),
        (
            "resnet18", "pretrained",
            "torchvision has no weights 'pretrained' for 'resnet18'; there are DEFAULT, IMAGENET1K_V1; "
            "or give a path to a weight file, or 'none' for random weights",
        ),
    ],
)  # fmt: skip
def test_an_unknown_torchvision_tag(model: str, tag: str, message: str) -> None:
    for ask in (TorchvisionSource().tag, TorchvisionSource().preprocess):
        with pytest.raises(WeightsError) as error:
            ask(model, tag)
        assert error.value.message == message


def test_timm_tags(own_home: Path) -> None:
    source = TimmSource()
    folder = own_home / ".cache/torch/hub/checkpoints"
    assert source.tags("resnet50")[0] == "a1_in1k"
    assert source.tags("resnet50.tv_in1k")[0] == "tv_in1k"
    assert sorted(source.tags("resnet50.tv_in1k")) == sorted(source.tags("resnet50"))
    found = source.tag("resnet50", "DEFAULT")
    assert found.name == "a1_in1k"
    assert found.file == str(folder / "timm/resnet50.a1_in1k.safetensors")
    assert found.url is not None
    assert found.url.endswith("/timm/resnet50.a1_in1k/resolve/main/model.safetensors")
    assert source.tag("resnet50.tv_in1k", "DEFAULT").name == "tv_in1k"
    assert source.tag("resnet50", "resnet50.tv_in1k") == source.tag("resnet50", "tv_in1k")
    plain = source.tag("legacy_seresnet18", "DEFAULT")  # on no hub
    assert plain.file == str(folder / "seresnet18-4bb0ce65.pth")
    assert plain.url == timm.get_pretrained_cfg("legacy_seresnet18").url


def test_timm_without_weights_or_with_an_unknown_tag() -> None:
    source = TimmSource()
    assert source.tags("regnetz_b16_evos") == []
    for model, tag, message in (
        ("regnetz_b16_evos", "DEFAULT", "timm has no weights for 'regnetz_b16_evos' to offer; give a path to a weight file, or 'none' for random weights"),  # noqa: E501
        ("tf_efficientnet_lite0", "in22k", "timm has no weights 'in22k' for 'tf_efficientnet_lite0'; there are DEFAULT, in1k; did you mean 'in1k'?"),  # noqa: E501
        ("tf_efficientnet_lite0.in2k", "DEFAULT", "timm has no weights 'in2k' for 'tf_efficientnet_lite0'; there are DEFAULT, in1k; did you mean 'in1k'?"),  # noqa: E501
    ):  # fmt: skip
        with pytest.raises(WeightsError) as error:
            source.tag(model, tag)
        assert error.value.message == message
    assert source.preprocess("regnetz_b16_evos", None).crop == 224


def test_unknown_models_get_the_nearest_name() -> None:
    for source, name, message in (
        (TorchvisionSource(), "resnet81", "torchvision has no classification model 'resnet81'; did you mean 'resnet18'?"),
        (TimmSource(), "convnext_attoo", "timm has no model 'convnext_attoo'; did you mean 'convnext_atto'?"),
    ):
        for ask in (
            source.tags,
            lambda name, source=source: source.tag(name, "DEFAULT"),
            lambda name, source=source: source.preprocess(name, None),
        ):  # type: ignore[misc] # noqa: E501
            with pytest.raises(UsageError) as error:
                ask(name)
            assert error.value.message == message


def prepared(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    """The docstring of Preprocess, in Pillow and torch."""
    modes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    size = [preprocess.resize] if not preprocess.stretch else [preprocess.resize, preprocess.resize]
    shorter = min(image.size)
    wide = (size[0], size[0]) if preprocess.stretch else tuple(int(size[0] * n / shorter) for n in image.size)
    resized = functional.center_crop(image.resize(wide, modes[preprocess.interpolation]), [preprocess.crop, preprocess.crop])
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / preprocess.scale
    return (pixels - torch.tensor(preprocess.mean)[:, None, None]) / torch.tensor(preprocess.std)[:, None, None]


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "vit_b_16", "efficientnet_b0", "swin_t"])
def test_torchvision_preprocessing_is_that_of_its_transforms(name: str, image: Image.Image) -> None:
    ours = prepared(TorchvisionSource().preprocess(name, "IMAGENET1K_V1"), image)
    assert torch.allclose(ours, models.get_model_weights(name)["IMAGENET1K_V1"].transforms(antialias=True)(image), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_timm_preprocessing_is_that_of_its_transforms(name: str, image: Image.Image) -> None:
    theirs = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))(image)
    assert torch.allclose(prepared(TimmSource().preprocess(name, None), image), theirs, atol=1e-5)


def test_timm_squash_stretches() -> None:
    squashed = TimmSource().preprocess("eva02_base_patch14_448", None)
    assert (squashed.stretch, squashed.resize, squashed.crop) == (True, 448, 448)


@pytest.mark.parametrize(
    ("model", "old"),
    [
        ("densenet121", lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)),
        ("vit_b_32", lambda name: name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")),
        ("resnet18", lambda name: name),
    ],
)
def test_old_names_in_torchvisions_files(model: str, old: Callable[[str], str]) -> None:
    source = TorchvisionSource()
    with torch.device("meta"):
        tensors = source.build(model, pretrained=True).state_dict()
    published = {old(name): tensor for name, tensor in tensors.items()}
    assert (list(published) == list(tensors)) == (model == "resnet18")
    assert list(source.adapt(model, published)) == list(tensors)
    assert list(source.adapt(model, dict(tensors))) == list(tensors)


def test_published_names_become_timms(mapped: Callable[..., ModelMap]) -> None:
    """The files of ConvNeXt's authors have other names; timm's own function for them is asked."""
    source = TimmSource()
    network = timm.create_model("convnext_atto")
    published = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in (
            ("head.fc.", "head."),
            ("head.norm.", "norm."),
            (".blocks.", "."),
            ("conv_dw", "dwconv"),
            ("mlp.fc", "pwconv"),
        ):
            name = name.replace(ours, theirs)
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name.replace("stem.", "downsample_layers.0."))
        published[name] = tensor
    assert "downsample_layers.0.0.weight" in published
    found = fit({f"model/{name}": tensor for name, tensor in published.items()}, model_map=mapped(network, "head.fc"),
                adapt=lambda named: source.adapt("convnext_atto", named))  # fmt: skip
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in found.items())


def test_timm_leaves_what_fits_and_what_it_cannot_read() -> None:
    source = TimmSource()
    tensors = dict(timm.create_model("resnet18").state_dict())
    assert source.adapt("resnet18", tensors) is tensors
    strange = {"x": torch.ones(1)}
    assert set(source.adapt("convnext_atto", strange)) == {"x"}


def test_a_file_for_another_size_than_timms_own(mapped: Callable[..., ModelMap]) -> None:
    """It fits as it is; timm's function, asked for a network that takes timm's weights, would make it one of their size."""
    network = timm.create_model("vit_tiny_patch16_224", img_size=32)
    tensors = dict(network.state_dict())
    found = fit(
        tensors, model_map=mapped(network, "head"), adapt=lambda named: TimmSource().adapt("vit_tiny_patch16_224", named, image_size=32)
    )
    assert found["pos_embed"].shape == (1, 5, 192)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())
