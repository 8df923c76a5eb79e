"""Which tensors a Plan speaks of, beside the source network's own: their groups, where they start, what some phase may change."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from xfer.methods.method import Facts, Method
from xfer.ops.initial import draw
from xfer.plan.model_map import HEAD, OWN
from xfer.plan.plan import Plan, own_group


def groups_of(plan: Plan) -> dict[str, str]:
    """The group of each tensor, by the tensor's name."""
    groups = {tensor.name: group.name for group in plan.model.groups for tensor in group.tensors}
    groups.update(dict.fromkeys((tensor.name for tensor in plan.head.tensors), HEAD))
    groups.update({tensor.name: own_group(tensor.name) for tensor in plan.method.tensors})
    return groups


def own_start(method: Method, plan: Plan) -> dict[str, np.ndarray]:
    """The method's own tensors, float32 by the names that it gave, drawn in numpy so that both backends begin at the same numbers."""
    facts = Facts(plan.head.outputs, plan.head.inputs, {tap: plan.model.cut(cut).shape for tap, cut in plan.method.taps.items()})
    start = {}
    for tensor in method.tensors(facts):
        values = np.zeros(tensor.shape, np.float32)
        if tensor.fan_in is not None:
            values = draw(f"{OWN}.{tensor.name}", tensor.shape, fan_in=tensor.fan_in, seed=plan.seed)
        start[tensor.name] = values
    return start


def changing(plan: Plan, names: Iterable[str]) -> list[str]:
    """Those of `names` that some phase may change."""
    frozen = [set(phase.frozen) for phase in plan.phases]
    return [name for name in names if not all(name in held for held in frozen)]


def of_source(names: Iterable[str], groups: dict[str, str]) -> list[str]:
    """Those of `names` that the source network has: neither the head's nor a method's own."""
    return [name for name in names if groups[name] != HEAD and not name.startswith(f"{OWN}.")]
