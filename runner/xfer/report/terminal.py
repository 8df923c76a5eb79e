"""A Plan and a result for the terminal: what `xfer plan` and the end of `xfer run` print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xfer.compile.inputs import size
from xfer.plan.plan import PhasePlan, Plan, WeightsPlan
from xfer.report.group_names import compressed, rates
from xfer.report.numbers import BASELINE_TITLES, METRIC_TITLES, count, fraction, interval, parameters, rate, seconds
from xfer.report.phase_words import length, normalisation, optimizer

CLASSES_SHOWN = 12


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
        _row(table, title, fraction(test.get(name)), interval(test.get("interval", {}).get(name)), fraction(val.get(name)))
    for name, title in BASELINE_TITLES.items():
        _row(table, f"accuracy of {title}", fraction(result.get("baseline", {}).get(name)), "", "")
    timing, data = result["timing"], result["data"]
    total, extract, train = (seconds(timing[f"{name}_seconds"]) for name in ("total", "extract", "train"))
    lines = [
        f"{count(data['images'])} images of {data['classes']} classes, {data['quarantined']} quarantined",
        f"{total} in all: features {extract} ({count(data['computed'])} images computed now), training {train}",
    ]
    for phase in result["phases"]:
        lines.append(f"phase {phase['name']}: {phase['frozen_tensors']} frozen tensors, {phase['frozen_changed']} changed")
    return Group(table, *(Text(line) for line in lines))


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    """Cells are plain text: a class or a folder may be called '[/b]' or ':smile:'."""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _facts(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    preprocess, runtime = plan.source.preprocess, plan.runtime
    _row(table, "recipe", f"{plan.name}, seed {plan.seed}")
    _row(table, "source", f"{plan.source.model} ({plan.model.library}), {parameters(plan.model.n_parameters)} parameters, {plan.backend}")
    _row(table, "weights", weights(plan.source.weights))
    resized = f"resized to {preprocess.resize}, cut to {preprocess.crop} x {preprocess.crop}"
    _row(table, "images", f"{resized}, {preprocess.interpolation}, {preprocess.channels}")
    _row(table, "transfer", f"{plan.method.type}, method {plan.method.name}")
    hidden = f"hidden {', '.join(map(str, plan.head.hidden))}, " if plan.head.hidden else "linear, "
    widths = f"{plan.head.inputs} inputs, {plan.head.outputs} classes"
    _row(table, "head", f"on {plan.head.at}: {hidden}{widths}, dropout {rate(plan.head.dropout)}")
    _row(table, "computed", f"on {runtime.device} in {runtime.precision}; cache {runtime.cache}")
    if plan.never_trained:
        _row(table, "never trained", compressed(plan.never_trained, plan.model))
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
        _row(table, label, *(count(plan.data.counts[name].get(label, 0)) for name in names))
    if len(plan.data.classes) > CLASSES_SHOWN:
        rest = plan.data.classes[CLASSES_SHOWN:]
        _row(table, f"{len(rest)} more classes", *(count(sum(plan.data.counts[name].get(label, 0) for label in rest)) for name in names))
    _row(table, "all", *(count(sum(plan.data.counts[name].values())) for name in names), style="bold")
    return table


def _phase(plan: Plan, phase: PhasePlan, present: Mapping[str, int]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    place = phase.input
    _row(table, "phase", phase.name)
    share = f"{phase.trainable_parameters:,} of {plan.total_parameters:,} parameters"
    _row(table, "trains", f"{compressed(phase.train, plan.model)}: {share}")
    _row(table, "length", length(phase))
    _row(table, "optimizer", f"{optimizer(phase.optimizer)}, batch {plan.data.batch_size}")
    _row(table, "learning rate", rates(phase, plan.model))
    _row(table, "norm", normalisation(phase))
    there = present.get(place.cut)
    known = f"; {there:,} of {plan.data.images:,} rows are there" if there is not None else ""
    _row(table, "starts from", f"{place.cut} {'x'.join(map(str, place.shape))}, {place.mode}: {place.reason}{known}")
    if place.mode == "stored":
        _row(table, "store", f"{size(place.bytes)} for {plan.data.images:,} rows of {place.dtype}")
    return table
