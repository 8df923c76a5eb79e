"""A phase and its method in words, the same on the terminal and on the page. What is not used has no words: an empty string."""

from __future__ import annotations

import math

from xfer.compile.inputs import size
from xfer.plan.model_map import HEAD, ModelMap
from xfer.plan.plan import AugmentPlan, InputPlan, MethodPlan, OptimizerPlan, PhasePlan, Plan, own_group
from xfer.report.group_names import compressed
from xfer.report.numbers import parameters, plural, rate

USUAL_SCALE = (0.08, 1.0)  # of a random crop, in the ImageNet recipes that policies come from


def length(phase: PhasePlan) -> str:
    """Epochs, or the stop rule."""
    until = phase.until
    if until is None:
        return plural(phase.epochs or 0, "epoch")
    if until.patience >= until.max_epochs - 1 and not until.min_delta:  # it can't end before the last epoch
        best = "highest" if until.mode == "max" else "lowest"
        return f"{plural(until.max_epochs, 'epoch')}; the weights of the one with the {best} {until.metric} are restored"
    gain = f" by {until.min_delta:g}" if until.min_delta else ""
    patience = plural(until.patience, "epoch")
    return f"until {until.metric} has not improved{gain} for {patience}, at most {until.max_epochs}; the best weights are restored"


def normalisation(phase: PhasePlan, method: MethodPlan) -> str:
    """What happens to normalisation layers."""
    if method.rewrites_statistics:
        return "statistics follow the batches in all groups, as the method asks"
    if set(phase.train) <= {HEAD, *method.groups}:
        return "frozen: statistics are used as stored and left alone"
    return "frozen in all groups" if phase.norm == "frozen" else "trained in the groups that train, frozen elsewhere"


def reestimated(phase: PhasePlan) -> str:
    """What happens to statistics after the last epoch."""
    return "estimated anew from the training images when the phase ends" if phase.reestimate_norm else ""


def optimizer(chosen: OptimizerPlan) -> str:
    """Name, schedule and weight decay, and whatever else is switched on.

    >>> optimizer(OptimizerPlan(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="one_cycle", clip_norm=1.0))
    'sgd, momentum 0.9, weight decay 0, one-cycle schedule, gradients clipped at norm 1'
    """
    words: list[str] = [chosen.name]
    if chosen.name == "sgd":
        words.append(f"momentum {rate(chosen.momentum)}")
    words += [f"weight decay {rate(chosen.weight_decay)}", f"{chosen.schedule.replace('_', '-')} schedule"]
    extras = (
        (chosen.warmup_epochs, f"warm-up of {chosen.warmup_epochs:g} epoch{'' if chosen.warmup_epochs == 1 else 's'}"),
        (chosen.clip_norm, f"gradients clipped at norm {chosen.clip_norm or 0:g}"),
        (chosen.label_smoothing, f"labels smoothed by {chosen.label_smoothing:g}"),
        (chosen.class_weights == "balanced", "classes weighted evenly"),
        (chosen.average, f"averaged weights, decay {chosen.average or 0:g}"),
        (chosen.norm_momentum, f"norm momentum {chosen.norm_momentum or 0:g}"),
    )
    return ", ".join(words + [text for switched_on, text in extras if switched_on])


def optimizer_state(plan: Plan, phase: PhasePlan) -> str:
    """Whether the optimizer goes on where the phase before left it: of the groups that both train, where there is a state."""
    if phase.index == 0:
        return ""
    before = plan.phases[phase.index - 1]
    shared = set(before.trainable) & set(phase.trainable)
    if not shared or not (_has_state(before.optimizer) and _has_state(phase.optimizer)):
        return ""
    members = _groups(plan, shared)
    names = compressed([name for name in phase.train if name in members], plan.model)
    if phase.optimizer_state == "carry":
        return f"carried over from phase {phase.index} for {names}"
    other = before.optimizer.name != phase.optimizer.name
    reason = f"{phase.optimizer.name} can't go on from {before.optimizer.name}'s" if other else "as optimizer_state: reset asks"
    return f"fresh, for {names} too: {reason}"


def _has_state(chosen: OptimizerPlan) -> bool:
    return chosen.name != "sgd" or chosen.momentum > 0


def _groups(plan: Plan, tensors: set[str]) -> set[str]:
    """The groups that have one of these tensors."""
    groups = {group.name for group in plan.model.groups if any(tensor.name in tensors for tensor in group.tensors)}
    groups |= {HEAD} if any(tensor.name in tensors for tensor in plan.head.tensors) else set()
    return groups | {own_group(tensor.name) for tensor in plan.method.tensors if tensor.name in tensors}


def start(place: InputPlan) -> str:
    """The cut that a phase starts from, and which phase has the last word on what lies below it."""
    changed = f" after phase {place.after_phase + 1}" if place.after_phase is not None else ""
    return f"{place.cut} {'x'.join(map(str, place.shape))}{changed}"


def stored(plan: Plan, phase: PhasePlan) -> str:
    """What the clean rows take. Where each epoch draws anew, those of training images are never read."""
    place, drawn = phase.input, phase.augment is not None and phase.augment.views is None
    if place.mode != "stored":
        return ""
    if not drawn or place == plan.baseline:
        return f"{size(place.bytes)} for {plan.data.images:,} rows of {place.dtype}"
    rows = sum(sum(plan.data.counts.get(split, {}).values()) for split in ("val", "test"))
    return f"{size(place.bytes * rows / plan.data.images)} for {rows:,} rows of {place.dtype}, of val and test" if rows else ""


def augmentation(chosen: AugmentPlan | None) -> str:
    """The policy, and from where its images come."""
    if chosen is None:
        return ""
    room = f"stored, {size(chosen.bytes)}" if chosen.mode == "stored" else f"streamed: {chosen.reason}"
    if chosen.views is None:
        return f"{policy(chosen)}: drawn anew in each epoch from canvases of {chosen.canvas} px, {room}"
    return f"{policy(chosen)}: {plural(chosen.views, 'view')} of each training image in turn, {room}"


def policy(chosen: AugmentPlan) -> str:
    """Its name, and what its crops show where that is not as usual."""
    return chosen.policy + ("" if _usual(chosen.scale) else f", crops of {_percent(chosen.scale)} of the frame")


def _usual(scale: tuple[float, float]) -> bool:
    return all(math.isclose(share, usual) for share, usual in zip(scale, USUAL_SCALE, strict=True))


def _percent(scale: tuple[float, float]) -> str:
    low, high = (f"{100 * share:.3g}" for share in scale)
    return f"{low} %" if low == high else f"{low} to {high} %"


def method(plan: MethodPlan) -> str:
    """The name with its options.

    >>> method(MethodPlan(type="model", name="l2sp", target="a:b", options={"alpha": 0.1, "beta": 0.01}))
    'l2sp, alpha 0.1, beta 0.01'
    """
    return ", ".join([plan.name, *(f"{name} {value}" for name, value in plan.options.items())])


def own_groups(plan: MethodPlan) -> str:
    """The method's own groups, which always train."""
    sizes = dict.fromkeys(plan.groups, 0)
    for tensor in plan.tensors:
        sizes[own_group(tensor.name)] += tensor.size
    return ", ".join(f"{name} with {parameters(n)} parameter{'' if n == 1 else 's'}" for name, n in sizes.items())


def taps(plan: MethodPlan, model: ModelMap) -> str:
    """Where the method looks into the network."""
    shown = []
    for selector, cut in plan.taps.items():
        shape = "x".join(map(str, model.cut(cut).shape))
        shown.append(f"{selector} {shape}" if selector == cut else f"{selector} (the end of {cut}) {shape}")
    return ", ".join(shown)


def teacher(plan: MethodPlan) -> str:
    """What the method compares with."""
    return "a copy of the network that keeps the source's weights" if plan.teacher else ""


def cluster(plan: Plan) -> str:
    """How the run is spread; nothing for one process.

    The storage's text holds no secret: one is refused before a plan is made."""
    spread = plan.cluster
    if spread is None:
        return ""
    fewest, most = spread.workers
    workers = plural(most, "worker") if fewest == most else f"{fewest} to {most} workers"
    gpus = "GPUs where there are any" if spread.gpus_per_worker is None else f"{spread.gpus_per_worker:g} GPU each"
    where = f"the Ray at {spread.address}" if spread.address else "a Ray of its own on this machine"
    storage = f"storage {spread.storage}" if spread.storage else "no storage in common: one node only"
    growing = f", which has {spread.startup_seconds / 60:.3g} min to grow" if spread.startup_seconds else ""
    return f"{workers}, {gpus}, on {where}{growing}; {storage}; up to {spread.max_failures} failures"
