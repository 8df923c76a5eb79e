"""A Plan and a result for the terminal: what `xfer plan` and the end of `xfer run` print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xfer.plan.model_map import HEAD
from xfer.plan.plan import PhasePlan, Plan, WeightsPlan
from xfer.report.group_names import compressed, rates
from xfer.report.numbers import BASELINE_TITLES, METRIC_TITLES, count, fraction, interval, parameters, rate, seconds

CLASSES_SHOWN = 12
BYTE_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show_plan(plan: Plan, present: Mapping[str, int]) -> RenderableType:
    """The whole Plan. `present` maps a phase's cut to how many of its rows are in the store already."""
    phases = [part for phase in plan.phases for part in (_phase(plan, phase, present), Text())]
    return Group(_facts(plan), Text(), _splits(plan), Text(), *phases)


def show_result(result: Mapping[str, Any]) -> RenderableType:
    """Metrics with their intervals beside the baselines, and where the time went."""
    metrics = result.get("metrics", {})
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for title, justify in (("", "left"), ("test", "right"), ("95 % interval", "left"), ("val", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    test, val = metrics.get("test", {}), metrics.get("val", {})
    for name, title in METRIC_TITLES.items():
        table.add_row(title, fraction(test.get(name)), interval(test.get("interval", {}).get(name)), fraction(val.get(name)))
    for name, title in BASELINE_TITLES.items():
        table.add_row(f"accuracy of {title}", fraction(result.get("baseline", {}).get(name)), "", "")
    timing, data = result["timing"], result["data"]
    total, extract, train = (seconds(timing[f"{name}_seconds"]) for name in ("total", "extract", "train"))
    lines = [
        f"{count(data['images'])} images of {data['classes']} classes, {data['quarantined']} quarantined",
        f"{total} in all: features {extract} ({count(data['computed'])} images computed now), training {train}",
    ]
    for phase in result["phases"]:
        lines.append(f"phase {phase['name']}: {phase['frozen_tensors']} frozen tensors, {phase['frozen_changed']} changed")
    return Group(table, *(Text(line) for line in lines))


def _facts(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    preprocess, runtime = plan.source.preprocess, plan.runtime
    table.add_row("recipe", f"{plan.name}, seed {plan.seed}")
    table.add_row("source", f"{plan.source.model} ({plan.model.library}), {parameters(plan.model.n_parameters)} parameters, {plan.backend}")
    table.add_row("weights", weights(plan.source.weights))
    resized = f"resized to {preprocess.resize}, cut to {preprocess.crop} x {preprocess.crop}"
    table.add_row("images", f"{resized}, {preprocess.interpolation}, {preprocess.channels}")
    table.add_row("transfer", f"{plan.method.type}, method {plan.method.name}")
    hidden = f"hidden {', '.join(map(str, plan.head.hidden))}, " if plan.head.hidden else "linear, "
    widths = f"{plan.head.inputs} inputs, {plan.head.outputs} classes"
    table.add_row("head", f"on {plan.head.at}: {hidden}{widths}, dropout {rate(plan.head.dropout)}")
    table.add_row("computed", f"on {runtime.device} in {runtime.precision}; cache {runtime.cache}")
    if plan.never_trained:
        table.add_row("never trained", compressed(plan.never_trained, plan.model))
    return table


def weights(plan: WeightsPlan) -> str:
    """Where the weights come from, and what will be downloaded from whom."""
    if plan.kind == "none":
        return "none: drawn at random from the seed"
    there = plan.file is not None and Path(plan.file).is_file()
    if there or plan.url is None:
        return f"{plan.location}, {'match: order, ' if plan.match == 'order' else ''}read from {plan.file}"
    return f"{plan.location}, will be downloaded from {plan.provider or 'its URL'}: {plan.url} to {plan.file}"


def _splits(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(plan.data.counts)
    table.add_column("class", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for label in plan.data.classes[:CLASSES_SHOWN]:
        table.add_row(label, *(count(plan.data.counts[name][label]) for name in names))
    if len(plan.data.classes) > CLASSES_SHOWN:
        rest = plan.data.classes[CLASSES_SHOWN:]
        table.add_row(f"{len(rest)} more classes", *(count(sum(plan.data.counts[name][label] for label in rest)) for name in names))
    table.add_row("all", *(count(sum(plan.data.counts[name].values())) for name in names), style="bold")
    return table


def _phase(plan: Plan, phase: PhasePlan, present: Mapping[str, int]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    optimizer, place = phase.optimizer, phase.input
    table.add_row("phase", phase.name)
    share = f"{phase.trainable_parameters:,} of {plan.total_parameters:,} parameters"
    table.add_row("trains", f"{compressed(phase.train, plan.model)}: {share}")
    table.add_row("length", length(phase))
    decay = rate(optimizer.weight_decay)
    table.add_row("optimizer", f"{optimizer.name}, {optimizer.schedule}, batch {plan.data.batch_size}, weight decay {decay}")
    table.add_row("learning rate", rates(phase, plan.model))
    table.add_row("norm", normalisation(phase))
    there = present.get(place.cut)
    known = f"; {there:,} of {plan.data.images:,} rows are there" if there is not None else ""
    table.add_row("starts from", f"{place.cut} {'x'.join(map(str, place.shape))}, {place.mode}: {place.reason}{known}")
    if place.mode == "stored":
        table.add_row("store", f"{size(place.bytes)} for {plan.data.images:,} rows of {place.dtype}")
    return table


def length(phase: PhasePlan) -> str:
    """Epochs, or the stop rule."""
    until = phase.until
    if until is None:
        return f"{phase.epochs} epochs"
    gain = f" by {until.min_delta:g}" if until.min_delta else ""
    stop = f"until {until.metric} has not improved{gain} for {until.patience} epochs"
    return f"{stop}, at most {until.max_epochs}; the best weights are restored"


def normalisation(phase: PhasePlan) -> str:
    """What happens to normalisation layers."""
    if set(phase.train) == {HEAD}:
        return "frozen: statistics are used as stored and left alone"
    return "frozen in all groups" if phase.norm == "frozen" else "trained in the groups that train, frozen elsewhere"


def size(n_bytes: int) -> str:
    """Bytes for people.

    >>> size(512), size(10_240_000)
    ('512 B', '10.2 MB')
    """
    for unit, n in BYTE_UNITS:
        if n_bytes >= n:
            return f"{n_bytes / n:.1f} {unit}"
    return f"{n_bytes} B"
