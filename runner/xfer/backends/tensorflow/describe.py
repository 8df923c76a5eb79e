"""A Keras network becomes plain data: the ModelMap that everything which decides reads."""

from __future__ import annotations

from typing import Any

from xfer.backends.stages import Sized, stages
from xfer.backends.tensorflow.calling import Refused
from xfer.backends.tensorflow.derive import Untraceable, derive
from xfer.backends.tensorflow.graph import NamedTensor
from xfer.backends.tensorflow.shapes import Row, layout_of
from xfer.backends.tensorflow.untraced import children, features
from xfer.errors import UsageError
from xfer.plan.model_map import PIXELS, POOLED, Cut, Group, ModelMap, Tensor


def describe(network: Any, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """The network's groups, stages and cuts.

    Shapes are for images of `image_size` pixels a side; stages are those at `input_size`, the native side. Raises UsageError for a
    size that the network can't take, and for a network that doesn't read one RGB image.
    """
    try:
        return _described(network, model=model, library=library, input_size=input_size, image_size=image_size)
    except Refused as error:
        message = f"{model} can't take images of {image_size} pixels a side: {error}"
        if image_size == input_size:
            raise UsageError(message) from error
        hint = f"leave target.image_size out, or set it to {input_size}, the size that the network was made for"
        raise UsageError(message, hint=hint) from error


def _described(network: Any, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    try:
        derived = derive(network, input_size=input_size, image_size=image_size)
    except Untraceable as why:
        return _untraced(network, str(why), model=model, library=library, input_size=input_size, image_size=image_size)
    cuts = [Cut(name=c.name, groups_before=c.groups_before, shape=c.row, layout=c.layout) for c in derived.cuts[1:-1]]
    end = derived.cuts[-1]
    return ModelMap(
        model=model,
        backend="tensorflow",
        library=library,
        input_size=input_size,
        image_size=image_size,
        groups=tuple(_group(g.name, g.stage, g.tensors) for g in derived.groups),
        cuts=(_pixels(image_size), *cuts, _pooled(end.groups_before, end.row)),
        classifier=tuple(map(_tensor, derived.classifier)),
        note="; ".join(derived.notes) or None,
    )


def _untraced(network: Any, why: str, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """Groups as the layers stand, and two cuts."""
    row = features(network, image_size=image_size)
    if layout_of(row) is None:
        raise UsageError(f"{model}: its features have the shape {list(row)}: neither a vector, tokens nor a map")
    found = children(network, model=model)
    sized = [Sized(name, sum(t.size for t in inside if t.kind == "parameter"), None, None) for name, inside in found.items()]
    named = stages(sized, input_size=input_size)
    return ModelMap(
        model=model,
        backend="tensorflow",
        library=library,
        input_size=input_size,
        image_size=image_size,
        groups=tuple(_group(name, stage, tuple(inside)) for (name, inside), stage in zip(found.items(), named, strict=True)),
        cuts=(_pixels(image_size), _pooled(len(found), row)),
        traced=False,
        note=f"no graph, so the only cuts are {PIXELS} and {POOLED}, and its output is taken as the features: {why}",
    )


def _pixels(image_size: int) -> Cut:
    """As they are stored: height, width, channels."""
    return Cut(name=PIXELS, groups_before=0, shape=(image_size, image_size, 3), layout="pixels")


def _pooled(n_groups: int, row: Row) -> Cut:
    return Cut(name=POOLED, groups_before=n_groups, shape=(row[-1],), layout="vector")


def _group(name: str, stage: str, tensors: tuple[NamedTensor, ...]) -> Group:
    return Group(name=name, stage=stage, tensors=tuple(map(_tensor, tensors)), norm=tuple(t.name for t in tensors if t.norm))


def _tensor(tensor: NamedTensor) -> Tensor:
    return Tensor(name=tensor.name, shape=tensor.shape, kind=tensor.kind)
