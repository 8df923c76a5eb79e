"""Pairing by order into a Keras network: which way a file's kernels lie, and what is a classifier. (For torch see test_fitting.py.)"""

from __future__ import annotations

import numpy as np
import pytest

from xfer.plan.model_map import Tensor
from xfer.sources.alignment import align

Shapes = dict[str, tuple[int, ...]]
TORCH: Shapes = {
    "a.weight": (8, 3, 5, 5), "b.weight": (8,), "b.bias": (8,), "b.running_mean": (8,), "b.running_var": (8,), "b.num_batches_tracked": (),
    "deep.weight": (8, 1, 3, 3), "square.weight": (8, 8), "square.bias": (8,), "wide.weight": (6, 8),
}  # fmt: skip
KERAS: Shapes = {
    "a/kernel": (5, 5, 3, 8), "b/gamma": (8,), "b/beta": (8,), "b/moving_mean": (8,), "b/moving_variance": (8,),
    "deep/kernel": (3, 3, 8, 1), "square/kernel": (8, 8), "square/bias": (8,), "wide/kernel": (8, 6),
}  # fmt: skip
TOP: Shapes = {"top/kernel": (6, 10), "top/bias": (10,)}


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: Tensor(name=name, shape=shape, kind="parameter") for name, shape in shapes.items()}


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.random(shape).astype(np.float32) for name, shape in shapes.items()}


def paired(theirs: Shapes, classifier: Shapes | None = None) -> dict[str, tuple[str, object]] | None:
    top = classifier or {}
    return align(arrays(theirs), tensors(KERAS), tensors(top), [*KERAS, *top], layout="keras").pairs


def test_torchs_kernels_are_turned() -> None:
    pairs = paired(TORCH)
    assert pairs is not None
    assert list(pairs) == list(KERAS)
    assert {name: axes for name, (_, axes) in pairs.items() if axes is not None} == {
        "a/kernel": (2, 3, 1, 0), "deep/kernel": (2, 3, 0, 1), "square/kernel": (1, 0), "wide/kernel": (1, 0),
    }  # fmt: skip
    held = arrays(TORCH)
    for name, (theirs, axes) in pairs.items():
        assert held[theirs].transpose(axes).shape == KERAS[name]
    assert pairs["b/moving_variance"][0] == "b.running_var"


def test_kernels_that_lie_as_keras_has_them_are_left() -> None:
    assert paired({f"x{number}": shape for number, shape in enumerate(KERAS.values())}) == {
        name: (f"x{number}", None) for number, name in enumerate(KERAS)
    }


@pytest.mark.parametrize("own", [None, TOP])
@pytest.mark.parametrize("top", [{}, {"top.weight": (10, 6), "top.bias": (10,)}, {"top.weight": (1000, 6), "top.bias": (1000,)}])
def test_a_classifier_is_left_behind(own: Shapes | None, top: Shapes) -> None:
    """Whether the network has one, the file, both or none; of whatever class count."""
    assert paired({**TORCH, **top}, own) == paired(TORCH)
    in_keras = {f"x{number}": shape for number, shape in enumerate([*KERAS.values(), *(shape[::-1] for shape in top.values())])}
    assert paired(in_keras, own) is not None


def test_a_classifier_without_a_bias() -> None:
    assert paired({**TORCH, "top.weight": (7, 6)}, {"top/kernel": (6, 10)}) == paired(TORCH)


def test_a_network_that_is_much_longer_is_another() -> None:
    longer = {**TORCH, **{f"more{number}.weight": (6, 6) for number in range(9)}}
    pairing = align(arrays(longer), tensors(KERAS), {}, list(KERAS), layout="keras")
    assert pairing.pairs is None
    assert pairing.reason == "it has 18 tensors, the network 9 and 0 of its classifier"


def test_what_does_not_agree() -> None:
    other = {**TORCH, "wide.weight": (7, 8)}
    pairing = align(arrays(other), tensors(KERAS), {}, list(KERAS), layout="keras")
    assert (pairing.pairs, pairing.reason) == (None, "'wide.weight' is [7, 8] where 'wide/kernel' must be [8, 6]")
    names = list(TORCH)
    names[1], names[2] = names[2], names[1]
    pairing = align(arrays({name: TORCH[name] for name in names}), tensors(KERAS), {}, list(KERAS), layout="keras")
    assert pairing.reason == "'b.bias' stands where 'b/gamma' is expected; its tensors are sorted in another way, perhaps by name"
