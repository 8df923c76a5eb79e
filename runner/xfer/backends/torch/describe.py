"""A torch network becomes plain data: the ModelMap that everything which decides reads."""

from __future__ import annotations

from torch import nn

from xfer.backends.stages import Sized, stages
from xfer.backends.torch.derive import derive
from xfer.backends.torch.groups import parts
from xfer.backends.torch.layouts import layout_of
from xfer.backends.torch.shapes import RUN_ERRORS
from xfer.backends.torch.tensors import NamedTensor, assign, state_tensors
from xfer.backends.torch.trace import Untraceable
from xfer.backends.torch.untraced import observe, refusal
from xfer.errors import UsageError
from xfer.plan.model_map import PIXELS, POOLED, Cut, Group, Layout, ModelMap, Tensor


def describe(network: nn.Module, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """The network's groups, stages and cuts. It may live on the meta device; it is unchanged afterwards.

    Shapes are for images of `image_size` pixels a side; stages are those at `input_size`, the native side. Raises UsageError
    for a size that the network can't take.
    """
    try:
        return _described(network, model=model, library=library, input_size=input_size, image_size=image_size)
    except RUN_ERRORS as error:
        reason = refusal(network, image_size) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        if image_size == input_size:
            raise UsageError(f"{model} can't take images of {image_size} pixels a side: {reason}") from error
        raise UsageError(
            f"{model} can't take images of {image_size} pixels a side: {reason}",
            hint=f"leave target.image_size out, or set it to {input_size}, the size that the network was made for",
        ) from error


def _described(network: nn.Module, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    try:
        derived = derive(network, input_size=input_size, image_size=image_size)
    except Untraceable as reason:
        return _untraced(network, str(reason), model=model, library=library, input_size=input_size, image_size=image_size)
    cuts = [Cut(name=c.name, groups_before=c.groups_before, shape=c.row, layout=c.layout) for c in derived.cuts[1:-1]]
    end = derived.cuts[-1]
    return ModelMap(
        model=model,
        backend="torch",
        library=library,
        input_size=input_size,
        image_size=image_size,
        groups=tuple(_group(g.name, g.stage, g.tensors) for g in derived.groups),
        cuts=(_pixels(image_size), *cuts, _pooled(end.groups_before, end.row, end.layout)),
        classifier=tuple(map(_tensor, derived.classifier)),
        note=derived.trace.pooled.note,
    )


def _untraced(network: nn.Module, reason: str, *, model: str, library: str, input_size: int, image_size: int) -> ModelMap:
    """Groups as the modules stand, and two cuts."""
    native = seen = observe(network, image_size=image_size)
    if image_size != input_size:
        try:
            native = observe(network, image_size=input_size)
        except RUN_ERRORS:  # it was built for this size, which takes the place of the native one
            input_size = image_size
    if layout_of(seen.features) is None:
        raise UsageError(f"{model}: its features have the shape {list(seen.features)}: neither a vector, tokens nor a map")
    began = {path: index for index, path in enumerate(native.rows)}
    order = parts(network, None)
    order.sort(key=lambda part: began.get(part.path, -1 if part.kind == "tensor" else len(began)))
    tensors = state_tensors(network)
    inside = f"{seen.classifier}."
    classifier = [t for t in tensors if seen.classifier is not None and all(name.startswith(inside) for name in t.names)]
    assigned = assign(tensors, order, left_out=classifier)
    kept = [part for part in order if part.name in assigned]
    sized = []
    for part in kept:
        row = native.rows.get(part.path)
        sized.append(Sized(part.kind, sum(t.size for t in assigned[part.name]), row, layout_of(row) if row else None))
    named = stages(sized, input_size=input_size)
    return ModelMap(
        model=model,
        backend="torch",
        library=library,
        input_size=input_size,
        image_size=image_size,
        groups=tuple(_group(part.name, stage, assigned[part.name]) for part, stage in zip(kept, named, strict=True)),
        cuts=(_pixels(image_size), _pooled(len(kept), seen.features, layout_of(seen.features) or "vector")),
        classifier=tuple(map(_tensor, classifier)),
        traced=False,
        note=f"no graph, so the only cuts are {PIXELS} and {POOLED}: {reason}",
    )


def _pixels(image_size: int) -> Cut:
    """As they are stored: height, width, channels."""
    return Cut(name=PIXELS, groups_before=0, shape=(image_size, image_size, 3), layout="pixels")


def _pooled(n_groups: int, row: tuple[int, ...], layout: Layout) -> Cut:
    width = row[0] if layout == "chw" else row[-1]
    return Cut(name=POOLED, groups_before=n_groups, shape=(width,), layout="vector")


def _group(name: str, stage: str, tensors: list[NamedTensor] | tuple[NamedTensor, ...]) -> Group:
    return Group(name=name, stage=stage, tensors=tuple(map(_tensor, tensors)), norm=tuple(t.name for t in tensors if t.norm))


def _tensor(tensor: NamedTensor) -> Tensor:
    return Tensor(name=tensor.name, shape=tensor.shape, kind=tensor.kind)
