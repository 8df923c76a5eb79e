"""A phase in words, the same on the terminal and on the page."""

from __future__ import annotations

from xfer.plan.model_map import HEAD
from xfer.plan.plan import OptimizerPlan, PhasePlan
from xfer.report.numbers import rate


def length(phase: PhasePlan) -> str:
    """Epochs, or the stop rule."""
    until = phase.until
    if until is None:
        return f"{phase.epochs} epoch{'' if phase.epochs == 1 else 's'}"
    gain = f" by {until.min_delta:g}" if until.min_delta else ""
    patience = "1 epoch" if until.patience == 1 else f"{until.patience} epochs"
    return f"until {until.metric} has not improved{gain} for {patience}, at most {until.max_epochs}; the best weights are restored"


def normalisation(phase: PhasePlan) -> str:
    """What happens to normalisation layers."""
    if set(phase.train) == {HEAD}:
        return "frozen: statistics are used as stored and left alone"
    return "frozen in all groups" if phase.norm == "frozen" else "trained in the groups that train, frozen elsewhere"


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
        (chosen.warmup_epochs, f"warm-up of {chosen.warmup_epochs:g} epochs"),
        (chosen.clip_norm, f"gradients clipped at norm {chosen.clip_norm or 0:g}"),
        (chosen.label_smoothing, f"labels smoothed by {chosen.label_smoothing:g}"),
        (chosen.class_weights == "balanced", "classes weighted evenly"),
        (chosen.average, f"averaged weights, decay {chosen.average or 0:g}"),
        (chosen.norm_momentum, f"norm momentum {chosen.norm_momentum or 0:g}"),
    )
    return ", ".join(words + [text for switched_on, text in extras if switched_on])
