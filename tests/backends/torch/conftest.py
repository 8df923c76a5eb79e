"""What tests of derived networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from xfer import plugins
from xfer.backends.torch.blueprint import blueprint
from xfer.backends.torch.describe import describe
from xfer.backends.torch.segments import Segments
from xfer.plan.model_map import PIXELS, POOLED, ModelMap

Describe = Callable[..., ModelMap]


@pytest.fixture
def describe_model() -> Describe:
    """The map of `provider/name`, without numbers."""

    def of(model: str, image_size: int | None = None) -> ModelMap:
        provider, _, name = model.partition("/")
        source = plugins.load(plugins.find("sources", provider).target)()
        native = source.input_size(name)
        size = image_size or native
        network = blueprint(lambda: source.build(name, pretrained=False, image_size=size))
        return describe(network, model=model, library=source.library(), input_size=native, image_size=size)

    return of


@pytest.fixture
def build_model() -> Callable[..., nn.Module]:
    """The network with numbers from seed 0, none of them the ones that would hide a fault (biases of zero)."""

    def of(model: str, image_size: int) -> nn.Module:
        provider, _, name = model.partition("/")
        torch.manual_seed(0)
        network = plugins.load(plugins.find("sources", provider).target)().build(name, pretrained=False, image_size=image_size)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim < 2:
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return network

    return of


@pytest.fixture
def describe_own() -> Describe:
    """The map of a network that a test wrote."""

    def of(network: nn.Module, size: int = 32) -> ModelMap:
        return describe(network, model="own", library="own 1", input_size=size, image_size=size)

    return of


@pytest.fixture
def assert_covers() -> Callable[[nn.Module, ModelMap], None]:
    """Every tensor of the network's state is in exactly one group, or in the classifier that is left out."""

    def check(network: nn.Module, found: ModelMap) -> None:
        names = [tensor.name for group in found.groups for tensor in group.tensors] + [tensor.name for tensor in found.classifier]
        every = network.state_dict(keep_vars=True)
        tensors = [id(every[name]) for name in names]
        assert len(names) == len(set(names))
        assert len(tensors) == len(set(tensors))
        assert set(tensors) == {id(tensor) for tensor in every.values()}
        shapes = {t.name: t.shape for group in found.groups for t in group.tensors} | {t.name: t.shape for t in found.classifier}
        assert shapes == {name: tuple(every[name].shape) for name in names}
        assert len({group.name for group in found.groups}) == len(found.groups)
        assert [cut.name for cut in found.cuts[1:-1]] == [found.groups[cut.groups_before - 1].name for cut in found.cuts[1:-1]]
        below = [cut.groups_before for cut in found.cuts]
        assert below == sorted(set(below))
        assert (found.cuts[0].name, found.cuts[-1].name, below[-1]) == (PIXELS, POOLED, len(found.groups))
        numbers = [int(group.stage.removeprefix("stage")) for group in found.groups]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(numbers[-1] + 1))

    return check


@pytest.fixture
def assert_segments_equal_whole() -> Callable[..., None]:
    """At every cut (or at every n-th): prefix, then suffix, gives the network's own features, in eval mode and, from the same random
    state, in train mode; the rows that the suffix reads stay as they are. `frozen` names modules that stay in eval mode."""

    def check(network: nn.Module, found: ModelMap, *, at_most: int = 1000, frozen: Sequence[str] = (), seed: int = 3) -> None:
        segments = Segments(network, found)
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, found.image_size, found.image_size, generator=generator)
        every = max(1, -(-len(found.cuts) // at_most))
        saved = set(network.state_dict())
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if name in saved}

        def run(*parts: nn.Module, x: torch.Tensor) -> torch.Tensor:
            for name, buffer in buffers.items():
                network.get_buffer(name).copy_(buffer)
            torch.manual_seed(seed)
            for part in parts:
                before = x.clone()
                part.training = network.training  # for a top level with two modes; layers are the network's own
                after = part(x)
                assert torch.equal(x, before), "a segment wrote into its input"
                x = after
            return x

        for training in (False, True):
            network.train(training)
            for path in frozen:
                network.get_submodule(path).eval()
            with torch.no_grad():
                whole = run(segments.between(PIXELS, POOLED), x=images)
                with classifiers_read(network, found) as read:
                    run(network, x=images.clone())
                same = [torch.allclose(whole, features, atol=1e-5) for features in read if features.shape == whole.shape]
                assert not found.classifier or any(same), "not the network's own"
                assert tuple(whole.shape) == (2, *found.cuts[-1].shape)
                assert bool(torch.isfinite(whole).all())
                for cut in found.cuts[1:-1:every]:
                    rows = run(segments.between(PIXELS, cut.name), x=images)
                    assert tuple(rows.shape) == (2, *cut.shape), cut.name
                    both = run(segments.between(PIXELS, cut.name), segments.between(cut.name, POOLED), x=images)
                    assert torch.equal(both, whole), f"{cut.name}, {'train' if training else 'eval'} mode"

    return check


@contextmanager
def classifiers_read(network: nn.Module, found: ModelMap) -> Iterator[list[torch.Tensor]]:
    """Collects what the network's own classifying layers read, before dropout, averaged over positions in each possible way."""
    read: list[torch.Tensor] = []
    dropped: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []  # so that no id is used twice
    layers = {tensor.name.rpartition(".")[0] for tensor in found.classifier}
    dropout = functional.dropout

    def recorded(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        before = x.clone()  # it may work in place
        output = dropout(x, *arguments, **options)
        kept.append(output)
        dropped[id(output)] = before
        return output

    def before_classifier(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = dropped.get(id(inputs[0]), inputs[0])
        read.extend([x] if x.ndim == 2 else [x.flatten(2).mean(2), x.flatten(1, -2).mean(1)])

    hooks = [network.get_submodule(path).register_forward_pre_hook(before_classifier) for path in layers]
    functional.dropout = recorded  # torch's dropout layers call it too
    try:
        yield read
    finally:
        functional.dropout = dropout
        for hook in hooks:
            hook.remove()
