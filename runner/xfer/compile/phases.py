"""The freeze schedule: a policy or a list of phases becomes PhasePlans, with groups and tensors by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from xfer import plugins
from xfer.compile.collector import Collector
from xfer.compile.inputs import budget_reason, decide, row_bytes
from xfer.compile.options import bind
from xfer.compile.selectors import NoMatch, lower
from xfer.data.canvas import canvas_side
from xfer.errors import UsageError
from xfer.plan.model_map import HEAD, ModelMap
from xfer.plan.plan import AugmentPlan, HeadPlan, InputPlan, MethodPlan, OptimizerPlan, PhasePlan, UntilPlan
from xfer.recipe.faults import in_a_phase
from xfer.recipe.schema import Augment, Phase, Policy, Recipe

POLICY = "freeze"  # the place of phases that a policy made


@dataclass(frozen=True)
class Written:
    """One phase as the recipe, or a policy, asks for it; `path` is where a fault of it is placed."""

    path: str
    phase: Phase

    def at(self, key: str) -> str:
        """Where a fault of one of its keys is placed: a policy's phases have no keys that a person wrote."""
        return f"{self.path}.{key}" if self.path != POLICY else POLICY


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
    made = policy([group.name for group in model.groups], model.stages, recipe.optimizer.lr, **options)
    if not made:
        given = ", ".join(f"{name}: {value}" for name, value in options.items())
        collector.add("freeze", f"policy {freeze.policy} makes no phase" + (f" with {given}" if given else "") + ", so nothing would train")
    return _validated(made, policy=freeze.policy, options=options, collector=collector)


def _validated(made: list[dict[str, Any]], *, policy: str, options: dict[str, Any], collector: Collector) -> list[Written]:
    """A policy's phases; a fault of one is placed at the option that it comes from, if that is plain."""
    written = []
    for phase in made:
        try:
            written.append(Written(POLICY, Phase.model_validate(phase)))
        except ValidationError as error:
            key, words, value = in_a_phase(error, phase)
            cause = [name for name, given in options.items() if given == value]
            if len(cause) == 1:
                collector.add(f"{POLICY}.{cause[0]}", words)
            else:
                collector.add(POLICY, f"policy {policy} made a phase that can't be: {key}: {words}")
            return []
    return written


def as_far_as_the_head(model: ModelMap, head: HeadPlan) -> ModelMap:
    """What phases may choose from: nothing behind the head's place is computed, so nothing there could train."""
    n_groups = model.cut(head.at).groups_before
    if n_groups == len(model.groups):
        return model
    return model.model_copy(update={"model": f"up to the head on {head.at}, {model.model}", "groups": model.groups[:n_groups]})


def lower_train(written: Written, model: ModelMap, collector: Collector) -> tuple[str, ...]:
    """The phase's group names in network order; a selector that matches nothing is a fault."""
    selectors = [written.phase.train] if isinstance(written.phase.train, str) else written.phase.train
    chosen: set[str] = set()
    for index, selector in enumerate(selectors):
        path = written.at("train" if isinstance(written.phase.train, str) else f"train[{index}]")
        try:
            chosen.update(lower(selector, model))
        except NoMatch as fault:
            if fault.suggestion:
                collector.add(path, str(fault), candidates=[fault.suggestion], wanted=fault.suggestion)
            else:
                collector.add(path, str(fault))
    order = [*(group.name for group in model.groups), HEAD]
    if chosen - {HEAD} and not model.n_parameters:
        why = f" ({model.note})" if model.note else ""
        collector.add(written.at("train"), f"{model.model} has no tensor that can be trained{why}; only the new head can: train: head")
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


def check_norm(written: Written, train: tuple[str, ...], model: ModelMap, collector: Collector) -> None:
    """Statistics can only be estimated anew where some train."""
    if not written.phase.reestimate_norm:
        return
    path = written.at("reestimate_norm")
    if written.phase.norm == "frozen":
        collector.add(path, "has nothing to estimate beside 'norm: frozen', which leaves the statistics as they are; leave one out")
    elif train and set(train) == {HEAD}:
        collector.add(path, "has nothing to estimate where only the head trains; leave it out")
    elif train and not with_statistics(model) & set(train):
        collector.add(path, "has nothing to estimate: nothing that trains has batch normalisation; leave it out")


def check_batch(
    recipe: Recipe, trains: list[tuple[Written, tuple[str, ...]]], model: ModelMap, method: MethodPlan, collector: Collector
) -> None:
    """torch refuses to normalise one position of one image, and elsewhere the variance would be that of a single image."""
    if recipe.target.batch_size > 1:
        return
    for written, train in trains:
        if learns_statistics(model, train, norm=written.phase.norm, rewritten=method.rewrites_statistics):
            collector.add(
                "target.batch_size",
                f"batch normalisation learns in {written.path}, and a batch of one image has no variance to learn from; set it to 2 or "
                "more, or norm: frozen for the phase",
            )
            return


def check_warmup(written: Written, *, warmup_epochs: float, collector: Collector) -> None:
    """A warm-up ends within its phase; `warmup_epochs` is the optimizer's own, for a phase that has none."""
    phase = written.phase
    warmup = warmup_epochs if phase.warmup_epochs is None else phase.warmup_epochs
    epochs = phase.epochs if phase.until is None else phase.until.max_epochs
    if epochs is not None and warmup > epochs:
        path = "optimizer.warmup_epochs" if phase.warmup_epochs is None else written.at("warmup_epochs")
        where = f"{written.path} has {epochs} epoch{'' if epochs == 1 else 's'}" if written.path != POLICY else f"a phase has {epochs}"
        collector.add(path, f"a warm-up of {warmup:g} epochs would not end: {where}")


def check_until(written: Written, *, schedule: str, has_validation: bool, collector: Collector) -> None:
    """A stop rule needs a metric that a run knows before the test set is opened, and images to measure it on; so does `schedule:
    plateau`, the optimizer's own (`schedule`) where the phase has none."""
    until = written.phase.until
    plateau = (written.phase.schedule or schedule) == "plateau"
    if until is not None and until.metric.startswith("score."):
        collector.add(f"{written.path}.until.metric", f"'{until.metric}' is a label-free score, and those are not available yet")
    if (until is not None or plateau) and not has_validation:
        at_schedule = "optimizer.schedule" if written.phase.schedule is None else written.at("schedule")
        path = at_schedule if until is None else written.at("until")
        collector.add(path, "needs a validation split to watch, and there is none; set target.splits.val above 0")


def until_plan(written: Written) -> UntilPlan | None:
    """The stop rule, with the direction in which its metric is better."""
    until = written.phase.until
    if until is None:
        return None
    mode: Literal["min", "max"] = "min" if until.metric.partition(".")[2] in ("loss", "ece") else "max"
    return UntilPlan(metric=until.metric, mode=mode, patience=until.patience, min_delta=until.min_delta, max_epochs=until.max_epochs)


def learning_rates(groups: tuple[str, ...], lr: float, layer_decay: float | None) -> dict[str, float]:
    """Per group: layer-wise decay multiplies by `layer_decay` once for each trained group behind it, the head too."""
    decay = 1.0 if layer_decay is None else layer_decay
    return {name: lr * decay ** (len(groups) - 1 - index) for index, name in enumerate(groups)}


def phase_plan(
    written: Written, *, index: int, recipe: Recipe, model: ModelMap, head: HeadPlan, train: tuple[str, ...], context: Context
) -> PhasePlan:
    """One phase, decided."""
    phase, method = written.phase, context.method
    optimizer = optimizer_plan(recipe, phase)
    frozen, trainable = split_tensors(model, head, train, norm=phase.norm, rewritten=method.rewrites_statistics)
    trainable = (*trainable, *(tensor.name for tensor in method.tensors))
    groups = (*train, *method.groups)
    source = frozenset(train) - {HEAD} | (with_statistics(model) if method.rewrites_statistics else frozenset())
    place = decide(
        model,
        head,
        source | (frozenset(context.changed_by) if method.teacher else frozenset()),
        images=context.images,
        precision=context.precision,
        budget=context.budget,
        changed_by=context.changed_by,
        below=min((model.cut(cut).groups_before for cut in method.taps.values()), default=None),
    )
    context.changed_by.update(dict.fromkeys(source, index))
    same = index > 0 and context.optimizer == optimizer.name  # another optimizer keeps other numbers
    context.optimizer = optimizer.name
    augment = augment_plan(recipe, place, context)
    held = place.bytes if augment is None or augment.views else augment.bytes
    sizes = {tensor.name: tensor.size for tensor in (*(t for g in model.groups for t in g.tensors), *head.tensors, *method.tensors)}
    return PhasePlan(
        name=f"{index + 1}: {phase.train if isinstance(phase.train, str) else ', '.join(phase.train)}",
        index=index,
        train=groups,
        trainable=trainable,
        frozen=frozen,
        epochs=phase.epochs,
        until=until_plan(written),
        learning_rates=learning_rates(train, optimizer.lr, phase.layer_decay) | dict.fromkeys(method.groups, optimizer.lr),
        norm=phase.norm,
        optimizer=optimizer,
        optimizer_state=phase.optimizer_state if same else "reset",
        reestimate_norm=phase.reestimate_norm,
        input=place,
        augment=augment,
        shuffle="blocks" if held > context.memory // 2 else "full",
        trainable_parameters=sum(sizes[name] for name in trainable),
    )


@dataclass
class Context:
    """What the phases share while they are compiled, in order."""

    images: int
    precision: str
    budget: int
    memory: int  # bytes of this machine
    method: MethodPlan
    crop: int  # side of the network's input
    changed_by: dict[str, int] = field(default_factory=dict)
    optimizer: str = ""


def augment_plan(recipe: Recipe, place: InputPlan, context: Context) -> AugmentPlan | None:
    """What augmentation takes: canvases at cut 0, or `views` more of what the phase reads."""
    asked = recipe.target.augment
    augment = asked if isinstance(asked, Augment) else Augment(policy=asked)
    if augment.policy == "none":
        return None
    side = canvas_side(context.crop)
    if augment.views is None:
        needed, held = context.images * (side + 1) * side * 3, 0
    else:
        needed, held = augment.views * row_bytes(place) * context.images, place.bytes
    stored = held + needed <= context.budget and (augment.views is None or place.mode == "stored")
    return AugmentPlan(
        policy=augment.policy,
        views=augment.views,
        scale=(augment.scale[0], augment.scale[1]),
        canvas=side,
        mode="stored" if stored else "streamed",
        bytes=needed if stored else 0,
        reason=budget_reason(held + needed, context.budget),
    )


def with_statistics(model: ModelMap) -> frozenset[str]:
    """Groups whose normalisation layers keep statistics."""
    return frozenset(g.name for g in model.groups if any(t.kind == "buffer" and t.name in g.norm for t in g.tensors))


def learns_statistics(model: ModelMap, train: Collection[str], *, norm: str, rewritten: bool) -> bool:
    """Whether batch normalisation somewhere learns from a phase's batches."""
    keeping = with_statistics(model)
    return bool(keeping) if rewritten else norm == "train" and bool(keeping & set(train))


def split_tensors(
    model: ModelMap, head: HeadPlan, train: tuple[str, ...], *, norm: str, rewritten: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(frozen, trainable) tensor names. Buffers of trained groups are neither, unless `norm` freezes them; nor are statistics
    that the method rewrites."""
    frozen, trainable = [], []
    for group in model.groups:
        held = set(group.norm) if norm == "frozen" else set()
        for tensor in group.tensors:
            if rewritten and tensor.kind == "buffer" and tensor.name in group.norm:
                continue
            if group.name not in train or tensor.name in held:
                frozen.append(tensor.name)
            elif tensor.kind == "parameter":
                trainable.append(tensor.name)
    names = [tensor.name for tensor in head.tensors]
    (trainable if HEAD in train else frozen).extend(names)
    return tuple(frozen), tuple(trainable)


def check_schedule(trains: list[tuple[Written, tuple[str, ...]]], *, method: Any, type_: str, collector: Collector) -> None:
    """Rules over the whole schedule: the head trains sometime, and a feature transfer trains nothing else."""
    headless = trains and all(groups for _, groups in trains) and not any(HEAD in groups for _, groups in trains)
    if headless and not method.freezes_head:
        collector.add(trains[0][0].path, "no phase trains the head, so its random start would be the result; add 'head' to train")
    if method.trains_source:
        return
    for written, groups in trains:
        source = [name for name in groups if name != HEAD]
        if source:
            shown = ", ".join(source[:3]) + (", …" if len(source) > 3 else "")
            text = f"a {type_} transfer keeps the source frozen, and this trains {shown}; write 'head', or transfer.type: model"
            collector.add(written.at("train"), text)
