"""A Keras network becomes plain data: the ModelMap that everything which decides reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xfer.backends.stages import Sized, stages
from xfer.backends.tensorflow.calling import Refused
from xfer.backends.tensorflow.derive import Untraceable, derive
from xfer.backends.tensorflow.graph import NamedTensor
from xfer.backends.tensorflow.shapes import Row, layout_of
from xfer.backends.tensorflow.untraced import children, features
from xfer.errors import UsageError
from xfer.plan.model_map import PIXELS, POOLED, Cut, Group, ModelMap, Tensor

# Of variables that a float32 input does not fit, or that stand for others: whole policies, and what Keras quantizes to.
OTHER_TYPES = ("bfloat16", "float16", "float64", "int8", "uint8")


def describe(network: Any, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """The network's groups, stages and cuts.

    Shapes are for images of `image_size` pixels a side; stages are those at `input_size`, the native side. Raises UsageError for a
    size that the network can't take, and for a network that doesn't read one RGB image, or whose variables aren't float32.
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
    inside = [tensor for group in derived.groups for tensor in group.tensors]
    _refuse_other_types(inside, model=model)
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
        note="; ".join([*derived.notes, *_unheeded(inside)]) or None,
    )


def _untraced(network: Any, why: str, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """Groups as the layers stand, and two cuts."""
    row = features(network, image_size=image_size)
    if layout_of(row) is None:
        raise UsageError(f"{model}: its features have the shape {list(row)}: neither a vector, tokens nor a map")
    found = children(network, model=model)
    sized = [Sized(name, sum(t.size for t in inside if t.kind == "parameter"), None, None) for name, inside in found.items()]
    named = stages(sized, input_size=input_size)
    why_two = f"no graph, so the only cuts are {PIXELS} and {POOLED}, and its output is taken as the features: {why}"
    return ModelMap(
        model=model,
        backend="tensorflow",
        library=library,
        input_size=input_size,
        image_size=image_size,
        groups=tuple(_group(name, stage, tuple(inside)) for (name, inside), stage in zip(found.items(), named, strict=True)),
        cuts=(_pixels(image_size), _pooled(len(found), row)),
        traced=False,
        note="; ".join([why_two, *_unheeded([tensor for inside in found.values() for tensor in inside])]),
    )


def _refuse_other_types(tensors: Sequence[NamedTensor], *, model: str) -> None:
    """What a layer computes in is the run's choice; what its variables are kept in is not, and optimizers step in float32."""
    odd = next((tensor for tensor in tensors if tensor.variable.dtype in OTHER_TYPES), None)
    if odd is not None:
        raise UsageError(
            f"{model} can't be used: its '{odd.name}' is {odd.variable.dtype}, and variables must be float32",
            hint="save it as it was before model.quantize(), or made under keras.config.set_dtype_policy('float32') "
            "(the mixed policies have such variables too)",
        )


def _unheeded(tensors: Sequence[NamedTensor]) -> list[str]:
    """What is to be said where layers bring penalties or constraints of their own: methods and optimizers of a recipe know of none."""
    owners = list({id(tensor.owner): tensor.owner for tensor in tensors if tensor.owner is not None}.values())
    strict = [owner.name for owner in owners if any(map(_is_strict, owner._flatten_layers()))]
    if not strict:
        return []
    who = f"its layer '{strict[0]}' has" if len(strict) == 1 else f"its layer '{strict[0]}' and {len(strict) - 1} more have"
    return [f"{who} regularizers or constraints, which are not applied: a recipe has optimizer.weight_decay"]


def _is_strict(layer: Any) -> bool:
    return any(value is not None for name, value in vars(layer).items() if name.endswith(("_regularizer", "_constraint")))


def _pixels(image_size: int) -> Cut:
    """As they are stored: height, width, channels."""
    return Cut(name=PIXELS, groups_before=0, shape=(image_size, image_size, 3), layout="pixels")


def _pooled(n_groups: int, row: Row) -> Cut:
    return Cut(name=POOLED, groups_before=n_groups, shape=(row[-1],), layout="vector")


def _group(name: str, stage: str, tensors: tuple[NamedTensor, ...]) -> Group:
    return Group(name=name, stage=stage, tensors=tuple(map(_tensor, tensors)), norm=tuple(t.name for t in tensors if t.norm))


def _tensor(tensor: NamedTensor) -> Tensor:
    return Tensor(name=tensor.name, shape=tensor.shape, kind=tensor.kind)
