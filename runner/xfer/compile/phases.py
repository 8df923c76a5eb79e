"""The freeze schedule: a policy or a list of phases becomes PhasePlans, with groups and tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from xfer import plugins
from xfer.compile.collector import Collector
from xfer.compile.inputs import decide
from xfer.compile.options import bind
from xfer.compile.selectors import NoMatch, lower
from xfer.errors import UsageError
from xfer.plan.model_map import HEAD, ModelMap
from xfer.plan.plan import HeadPlan, OptimizerPlan, PhasePlan, UntilPlan
from xfer.recipe.schema import Phase, Policy, Recipe


@dataclass(frozen=True)
class Written:
    """One phase as the recipe, or a policy, asks for it; `path` is where a fault of it is placed."""

    path: str
    phase: Phase


def written_phases(recipe: Recipe, *, method: Any, model: ModelMap | None, collector: Collector) -> list[Written]:
    """The phases as asked for. Without a model, a policy's options are checked and nothing is returned for it."""
    freeze = recipe.freeze if recipe.freeze is not None else Policy(policy=method.default_policy)
    if isinstance(freeze, list):
        return [Written(f"freeze[{index}]", phase) for index, phase in enumerate(freeze)]
    try:
        policy = plugins.load(plugins.find("freezes", freeze.policy).target)
    except UsageError:
        names = plugins.registered("freezes")
        collector.add(
            "freeze.policy", f"no policy is called '{freeze.policy}'; there are {', '.join(names)}", candidates=names, wanted=freeze.policy
        )
        return []
    options = bind(policy, freeze.options, at="freeze", owner=f"policy {freeze.policy}", collector=collector, own=("policy",))
    if model is None:
        return []
    made = policy([group.name for group in model.groups], model.stages, **options)
    return [Written("freeze", Phase.model_validate(phase)) for phase in made]


def lower_train(written: Written, model: ModelMap, collector: Collector) -> tuple[str, ...]:
    """The phase's group names in network order; a selector that matches nothing is a fault."""
    selectors = [written.phase.train] if isinstance(written.phase.train, str) else written.phase.train
    chosen: set[str] = set()
    for index, selector in enumerate(selectors):
        path = f"{written.path}.train" + ("" if isinstance(written.phase.train, str) else f"[{index}]")
        try:
            chosen.update(lower(selector, model))
        except NoMatch as fault:
            if fault.suggestion:
                collector.add(path, str(fault), candidates=[fault.suggestion], wanted=fault.suggestion)
            else:
                collector.add(path, str(fault))
    order = [*(group.name for group in model.groups), HEAD]
    return tuple(name for name in order if name in chosen)


def optimizer_plan(recipe: Recipe, phase: Phase) -> OptimizerPlan:
    """The recipe's optimizer with what the phase overrides."""
    fields = recipe.optimizer.model_dump()
    for name in (
        "lr",
        "momentum",
        "weight_decay",
        "schedule",
        "warmup_epochs",
        "clip_norm",
        "label_smoothing",
        "class_weights",
        "average",
        "norm_momentum",
    ):
        value = getattr(phase, name)
        if value is not None:
            fields[name] = value
    if phase.optimizer is not None:
        fields["name"] = phase.optimizer
    return OptimizerPlan(**fields)


def check_until(written: Written, *, has_validation: bool, collector: Collector) -> None:
    """A stop rule needs a metric that a run knows before the test set is opened, and images to measure it on."""
    until = written.phase.until
    plateau = written.phase.schedule == "plateau"
    if until is not None and until.metric.startswith("score."):
        collector.add(f"{written.path}.until.metric", f"'{until.metric}' is a label-free score, and those are not available yet")
    if (until is not None or plateau) and not has_validation:
        path = f"{written.path}.until" if until is not None else f"{written.path}.schedule"
        collector.add(path, "needs a validation split to watch, and there is none; set target.splits.val above 0")


def until_plan(written: Written) -> UntilPlan | None:
    """The stop rule, with the direction in which its metric is better."""
    until = written.phase.until
    if until is None:
        return None
    mode: Literal["min", "max"] = "min" if until.metric.partition(".")[2] in ("loss", "ece") else "max"
    return UntilPlan(metric=until.metric, mode=mode, patience=until.patience, min_delta=until.min_delta, max_epochs=until.max_epochs)


def learning_rates(groups: tuple[str, ...], lr: float, layer_decay: float | None) -> dict[str, float]:
    """Per group: layer-wise decay multiplies by `layer_decay` once for each trained group between it and the head."""
    decay = 1.0 if layer_decay is None else layer_decay
    return {name: lr * decay ** (len(groups) - 1 - index) for index, name in enumerate(groups)}


def phase_plan(
    written: Written,
    *,
    index: int,
    recipe: Recipe,
    model: ModelMap,
    head: HeadPlan,
    train: tuple[str, ...],
    collector: Collector,
    context: Context,
) -> PhasePlan:
    """One phase, decided."""
    phase = written.phase
    optimizer = optimizer_plan(recipe, phase)
    frozen, trainable = split_tensors(model, head, train, norm=phase.norm)
    source = frozenset(train) - {HEAD}
    sizes = {tensor.name: tensor.size for group in model.groups for tensor in group.tensors} | {
        tensor.name: tensor.size for tensor in head.tensors
    }
    place = decide(
        model, head, source, images=context.images, precision=context.precision, budget=context.budget, changed_by=context.changed_by
    )
    context.changed_by.update(dict.fromkeys(source, index))
    return PhasePlan(
        name=f"{index + 1}: {phase.train if isinstance(phase.train, str) else ', '.join(phase.train)}",
        index=index,
        train=train,
        trainable=trainable,
        frozen=frozen,
        epochs=phase.epochs,
        until=until_plan(written),
        learning_rates=learning_rates(train, optimizer.lr, phase.layer_decay),
        norm=phase.norm,
        optimizer=optimizer,
        optimizer_state=phase.optimizer_state,
        reestimate_norm=phase.reestimate_norm,
        input=place,
        shuffle="blocks" if place.mode == "stored" and place.bytes > context.memory // 2 else "full",
        trainable_parameters=sum(sizes[name] for name in trainable),
    )


@dataclass
class Context:
    """What the phases share while they are compiled, in order."""

    images: int
    precision: str
    budget: int
    memory: int  # bytes of this machine
    changed_by: dict[str, int]


def split_tensors(model: ModelMap, head: HeadPlan, train: tuple[str, ...], *, norm: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(frozen, trainable) tensor names. Buffers of trained groups are neither, unless `norm` freezes them."""
    frozen, trainable = [], []
    for group in model.groups:
        held = set(group.norm) if norm == "frozen" else set()
        for tensor in group.tensors:
            if group.name not in train or tensor.name in held:
                frozen.append(tensor.name)
            elif tensor.kind == "parameter":
                trainable.append(tensor.name)
    names = [tensor.name for tensor in head.tensors]
    (trainable if HEAD in train else frozen).extend(names)
    return tuple(frozen), tuple(trainable)


def check_schedule(trains: list[tuple[Written, tuple[str, ...]]], *, method: Any, type_: str, collector: Collector) -> None:
    """Rules over the whole schedule: the head trains sometime, and a feature transfer trains nothing else."""
    if trains and all(groups for _, groups in trains) and not any(HEAD in groups for _, groups in trains):
        collector.add(trains[0][0].path, "no phase trains the head, so its random start would be the result; add 'head' to train")
    if method.trains_source:
        return
    for written, groups in trains:
        source = [name for name in groups if name != HEAD]
        if source:
            shown = ", ".join(source[:3]) + (", …" if len(source) > 3 else "")
            text = f"a {type_} transfer keeps the source frozen, and this trains {shown}; write 'head', or transfer.type: model"
            collector.add(f"{written.path}.train" if written.path != "freeze" else "freeze", text)
