"""What a method declares, resolved against the network: its own tensors with their shapes, and its taps as cuts."""

from __future__ import annotations

from typing import Any

from xfer.compile.collector import Collector
from xfer.compile.names import Names
from xfer.compile.selectors import NoMatch, lower
from xfer.methods.method import EVERYTHING, HEAD, NETWORK, Facts
from xfer.plan.model_map import HEAD as HEAD_GROUP
from xfer.plan.model_map import OWN, POOLED, Cut, ModelMap, Tensor
from xfer.plan.plan import HeadPlan, MethodPlan
from xfer.recipe.schema import Recipe


def plan_method(recipe: Recipe, names: Names, model: ModelMap, head: HeadPlan, collector: Collector) -> MethodPlan:
    """The method with what it declares. One that has not landed yet, or whose options are faulty, declares nothing."""
    bare = MethodPlan(type=recipe.transfer.type, name=names.method, target=names.method_target, options=names.method_options)
    if not names.method_target or collector.faults:
        return bare
    method = names.method_class(**names.method_options)
    where = "transfer.method" if recipe.transfer.method else "transfer.type"
    cuts = {tap: place_cut(tap, model, collector, path=where, what="tap") for tap in method.taps()}
    for tap, cut in cuts.items():
        if cut.groups_before > model.cut(head.at).groups_before:
            collector.add("transfer.at", f"method {bare.name} looks at '{tap}', which lies behind the head's place '{head.at}'")
    facts = Facts(head.outputs, head.inputs, {tap: cut.shape for tap, cut in cuts.items()})
    tensors = tuple(Tensor(name=f"{OWN}.{own.name}", shape=own.shape, kind="parameter") for own in method.tensors(facts))
    made = bare.model_copy(
        update={
            "taps": {tap: cut.name for tap, cut in cuts.items()},
            "tensors": tensors,
            "teacher": method.teacher,
            "rewrites_statistics": method.rewrites_statistics,
        }
    )
    _check_steps(method, made, collector, where)
    return made


def _check_steps(method: Any, made: MethodPlan, collector: Collector, where: str) -> None:
    known = {EVERYTHING, NETWORK, HEAD, *made.groups}
    for step in method.steps():
        for name in step.updates:
            if name not in known:
                collector.add(where, f"method {made.name}: its step '{step.name}' updates '{name}'; there is {', '.join(sorted(known))}")


def place_cut(at: str | None, model: ModelMap, collector: Collector, *, path: str, what: str) -> Cut:
    """The cut behind what a selector names, where a head or a tap is put; without one, the pooled features."""
    if at is None or at == POOLED:
        return model.cut(POOLED)
    try:
        names = [name for name in lower(at, model) if name != HEAD_GROUP]
        if not names:
            raise NoMatch(f"the {what} can't be put on the head; name a stage or a group")
    except NoMatch as fault:
        collector.add(path, str(fault), candidates=[fault.suggestion or ""], wanted=fault.suggestion)
        return model.cut(POOLED)
    last = [group.name for group in model.groups].index(names[-1]) + 1
    cuts = [cut for cut in model.cuts if cut.groups_before == last]
    if not cuts:
        near = [cut.name for cut in model.cuts if cut.groups_before < last][-1]
        collector.add(
            path, f"more than one tensor passes behind '{names[-1]}', so no {what} fits there; the nearest place before it is '{near}'"
        )
        return model.cut(POOLED)
    return cuts[0]
