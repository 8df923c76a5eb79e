"""What tests of derived Keras networks share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("torchvision") is not None:
    import torchvision  # noqa: F401  # in one process TensorFlow must come after it

import keras

from xfer.backends.tensorflow.describe import describe
from xfer.backends.tensorflow.segments import Segments
from xfer.plan.model_map import PIXELS, POOLED, ModelMap

Describe = Callable[..., ModelMap]


@pytest.fixture
def build_keras() -> Callable[..., Any]:
    """A network of keras.applications, headless unless told, with numbers from seed 0."""

    def of(name: str, image_size: int, **options: Any) -> Any:
        keras.utils.set_random_seed(0)
        options = {"include_top": False, **options}
        return disturbed(getattr(keras.applications, name)(weights=None, input_shape=(image_size, image_size, 3), **options))

    return of


def disturbed(network: Any) -> Any:
    """The network with numbers that hide no fault: no bias of zero, no scale of one, no statistics of nothing."""
    generator = np.random.default_rng(0)
    for variable in network.weights:
        if len(variable.shape) < 2 and "float" in variable.dtype:
            noise = generator.normal(size=variable.shape)
            positive = "variance" in variable.name
            variable.assign(np.asarray(variable) + (np.abs(noise) if positive else 0.1 * noise))
    return network


@pytest.fixture
def describe_own() -> Describe:
    """The map of a network that a test wrote."""

    def of(network: Any, size: int = 32) -> ModelMap:
        return describe(network, model="own", library="own 1", input_size=size, image_size=size)

    return of


@pytest.fixture
def assert_covers() -> Callable[[Any, ModelMap], None]:
    """Every variable of the network's state is in exactly one group, or in the classifier that is left out."""

    def check(network: Any, found: ModelMap) -> None:
        from xfer.backends.tensorflow.graph import named_variables

        tensors = [*(tensor for group in found.groups for tensor in group.tensors), *found.classifier]
        every = named_variables(network)
        names = [tensor.name for tensor in tensors]
        assert len(names) == len(set(names))
        assert set(names) == set(every)
        assert len(every) == len({id(variable) for variable in every.values()})
        assert {id(variable) for variable in every.values()} == {id(variable) for variable in network.weights}
        assert {tensor.name: tensor.shape for tensor in tensors} == {name: tuple(every[name].shape) for name in names}
        parameters = {id(variable) for variable in network.trainable_variables}
        assert {tensor.name for tensor in tensors if tensor.kind == "parameter"} == {n for n in names if id(every[n]) in parameters}
        groups = [group.name for group in found.groups]
        assert len(set(groups)) == len(groups)
        assert not set(groups) & {"head", "all", PIXELS, POOLED}
        assert [cut.name for cut in found.cuts[1:-1]] == [groups[cut.groups_before - 1] for cut in found.cuts[1:-1]]
        below = [cut.groups_before for cut in found.cuts]
        assert below == sorted(set(below))
        assert (found.cuts[0].name, found.cuts[-1].name, below[-1]) == (PIXELS, POOLED, len(groups))
        assert all(group.parameters for group in found.groups[:1])
        numbers = [int(group.stage.removeprefix("stage")) for group in found.groups]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(numbers[-1] + 1))

    return check


@pytest.fixture
def assert_segments_equal_whole() -> Callable[..., None]:
    """The network gives what it gave before it was taken apart; the segment from pixels to pooled gives what Keras itself gives for that
    tensor; and at every cut (or at every n-th) prefix, then suffix, gives the same to the last bit. In eval mode and, from the same
    random state and statistics, in train mode."""

    def check(network: Any, found: ModelMap, *, at_most: int = 1000, seed: int = 3) -> None:
        segments = Segments(network, found)
        assert segments.derived is not None
        images = np.random.default_rng(seed).normal(size=(2, found.image_size, found.image_size, 3)).astype(np.float32)
        inner = found.cuts[1:-1]
        every = max(1, -(-len(inner) // at_most))
        before = [(variable, np.asarray(variable)) for variable in network.variables]
        end = segments.derived.cuts[-1]
        reference = keras.Model(segments.network.inputs, end.tensor)

        def run(*parts: Any, training: bool) -> list[np.ndarray]:
            """What each part gives, one after the other."""
            for variable, value in before:
                variable.assign(value)
            given, x = [], keras.ops.convert_to_tensor(images)
            for part in parts:
                x = part(x, training=training)
                given.append(np.asarray(x[0] if isinstance(x, list | tuple) else x))
            return given

        for training in (False, True):
            if segments.network is not network:
                np.testing.assert_array_equal(run(segments.network, training=training), run(network, training=training))
            features = run(reference, training=training)[0]
            whole = run(segments.between(PIXELS, POOLED), training=training)[0]
            assert whole.shape == (2, *found.cuts[-1].shape)
            assert np.isfinite(whole).all()
            assert whole.std() > 0
            np.testing.assert_allclose(whole, features.reshape(2, -1, features.shape[-1]).mean(1), rtol=1e-4, atol=1e-5)
            for cut in inner[every // 2 :: every]:
                rows, both = run(segments.between(PIXELS, cut.name), segments.between(cut.name, POOLED), training=training)
                assert rows.shape == (2, *cut.shape), cut.name
                np.testing.assert_array_equal(both, whole, f"{cut.name}, {'train' if training else 'eval'} mode")
        for variable, value in before:
            variable.assign(value)

    return check
