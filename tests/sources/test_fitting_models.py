"""Fitting on the ModelMaps that networks really have: by name and by order, with and without their classifiers."""

from __future__ import annotations

import pytest
import torch
import torchvision.models

from xfer.backends.torch.blueprint import blueprint
from xfer.backends.torch.describe import describe
from xfer.sources.alignment import COUNTER
from xfer.sources.source import Source
from xfer.sources.timm import TimmSource
from xfer.sources.torchvision import TorchvisionSource
from xfer.sources.weights import fit

HUGE = ("regnet_y_128gf", "regnet_y_32gf", "regnet_x_32gf", "vit_h", "vit_l", "vgg", "convnext_large", "resnext101", "wide")
TIMM = [
    "convnext_atto", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "mixer_s16_224", "coatnet_0_rw_224",
    "inception_v3", "eva02_tiny_patch14_224", "xcit_tiny_12_p8_224", "cait_xxs24_224", "crossvit_tiny_240", "nest_tiny", "volo_d1_224",
    "twins_svt_small", "hrnet_w18_small", "repvgg_a0", "hiera_tiny_224", "swinv2_tiny_window8_256", "densenet121", "ghostnet_100",
]  # fmt: skip


def check(source: Source, name: str) -> None:
    torch.manual_seed(0)
    tensors = dict(source.build(name, pretrained=True).state_dict())
    size = source.input_size(name)
    network = blueprint(lambda: source.build(name, pretrained=True))
    model_map = describe(network, model=f"{source.provider}/{name}", library=source.library(), input_size=size, image_size=size)
    classifier = {tensor.name for tensor in model_map.classifier}
    body = {key: tensor for key, tensor in tensors.items() if key not in classifier}
    assert classifier or model_map.note  # some networks have none
    for given in (tensors, body, {f"model/module.{key}": tensor for key, tensor in tensors.items()}):
        found = fit(given, model_map=model_map)
        assert set(found) == set(body)
        assert all(torch.equal(found[key], tensor) for key, tensor in body.items())
    theirs = {key: f"l{index:04d}/{key.split('.')[-1]}" for index, key in enumerate(tensors)}
    for kept in (tensors, body):
        found = fit({theirs[key]: kept[key] for key in kept}, model_map=model_map, match="order", order=list(tensors))
        assert all(torch.equal(found[key], tensor) for key, tensor in body.items() if not key.endswith(COUNTER))


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "densenet121"])
def test_some_torchvision_models(name: str) -> None:
    check(TorchvisionSource(), name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_some_timm_models(name: str) -> None:
    check(TimmSource(), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(HUGE)])
def test_torchvision_models(name: str) -> None:
    check(TorchvisionSource(), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_models(name: str) -> None:
    check(TimmSource(), name)
