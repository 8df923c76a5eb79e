"""A Plan and a result for the terminal: what `xfer plan` and the end of `xfer run` print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xfer.compile.inputs import size
from xfer.data.locations import shown
from xfer.plan.plan import DownloadPlan, PhasePlan, Plan, WeightsPlan
from xfer.report import phase_words
from xfer.report.group_names import compressed, rates
from xfer.report.moves import furthest
from xfer.report.numbers import BASELINE_TITLES, METRIC_TITLES, count, distance, fraction, interval, parameters, rate, seconds

CLASSES_SHOWN = 12


def show_plan(plan: Plan) -> RenderableType:
    """The whole Plan. How much of it is in the store already is not said: the keys are made of what is in the weights and images."""
    phases = [part for phase in plan.phases for part in (Text(), _phase(plan, phase))]
    first = [part for download in plan.downloads for part in (_download(download), Text())]
    return Group(*first, _facts(plan), Text(), _splits(plan), *phases)


def download_line(download: DownloadPlan) -> str:
    """What `xfer check` says of a file that is not on this machine.

    >>> download_line(DownloadPlan(what="the images of a/b", url="https://data.example/b.tar.gz", file="/k/b.tar.gz", bytes=170_498_071))
    'will be downloaded: the images of a/b, about 170 MB, from data.example: https://data.example/b.tar.gz to /k/b.tar.gz'
    """
    return f"will be downloaded: {_what(download)}, from {_where(download)} to {download.file}"


def _what(download: DownloadPlan) -> str:
    return download.what + (f", about {size(download.bytes)}" if download.bytes is not None else "")


def _where(download: DownloadPlan) -> str:
    address = shown(download.url)
    return f"{urlsplit(address).hostname or 'there'}: {address}"


def _download(download: DownloadPlan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    _row(table, "will be downloaded", _what(download))
    _row(table, "from", _where(download))
    _row(table, "to", download.file)
    return table


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
    return Group(table, *(Text(line) for line in (*lines, *map(_outcome, result["phases"]))))


def _outcome(phase: Mapping[str, Any]) -> str:
    """What a phase did to the source, and which of its epochs counts where a rule chose one."""
    parts = [f"{count(phase['frozen_tensors'])} frozen tensors, {phase['frozen_changed']} changed"]
    moved = furthest(phase)
    if moved is not None:
        parts.append(f"source moved by up to {distance(moved[1])} ({moved[0]})")
    if phase.get("best_epoch") is not None:
        parts.append(f"best epoch {phase['best_epoch']} of {phase['epochs']}")
    return f"phase {phase['name']}: {'; '.join(parts)}"


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    """Cells are plain text: a class or a folder may be called '[/b]' or ':smile:'."""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _facts(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    preprocess, runtime = plan.source.preprocess, plan.runtime
    hidden = f"hidden {', '.join(map(str, plan.head.hidden))}, " if plan.head.hidden else "linear, "
    resized = f"resized to {preprocess.resize}, cut to {preprocess.crop} x {preprocess.crop}"
    library = f"({plan.model.library}), {parameters(plan.model.n_parameters)} parameters, {plan.backend}"
    _used(
        table,
        ("recipe", f"{plan.name}, seed {plan.seed}"),
        ("source", f"{plan.source.model} {library}"),
        ("weights", weights(plan.source.weights)),
        ("of the model", plan.model.note or ""),
        ("images", f"{resized}, {preprocess.interpolation}, {preprocess.channels}, {preprocess.values}"),
        ("of the data", "; ".join(plan.data.notes)),
        ("transfer", f"{plan.method.type}, method {phase_words.method(plan.method)}"),
        ("own groups", phase_words.own_groups(plan.method)),
        ("looks at", phase_words.taps(plan.method, plan.model)),
        ("teacher", phase_words.teacher(plan.method)),
        ("head", f"on {plan.head.at}: {hidden}{plan.head.inputs} inputs, {plan.head.outputs} classes, dropout {rate(plan.head.dropout)}"),
        ("computed", f"on {runtime.device} in {runtime.precision}; cache {runtime.cache}"),
        ("spread over", phase_words.cluster(plan)),
        ("never trained", compressed(plan.never_trained, plan.model)),
    )
    return table


def _used(table: Table, *rows: tuple[str, str]) -> None:
    """The rows that have something to say."""
    for label, text in rows:
        if text:
            _row(table, label, text)


def weights(plan: WeightsPlan) -> str:
    """Where the weights come from, and what will be downloaded from whom."""
    if plan.kind == "none":
        return "none: drawn at random from the seed"
    if plan.file is None:
        return plan.location
    there = Path(plan.file).is_file()
    if there or plan.url is None:
        return f"{plan.location}, {'match: order, ' if plan.match == 'order' else ''}read from {plan.file}"
    return f"{plan.location}, will be downloaded from {plan.provider or 'its URL'}: {plan.url} to {plan.file}"


def _splits(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(plan.data.counts)
    table.add_column("class", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    if plan.data.listing is None:  # the provider may say no more than totals
        _row(table, f"all {len(plan.data.classes)}, as announced", *(count(sum(plan.data.counts[name].values())) for name in names))
        return table
    for label in plan.data.classes[:CLASSES_SHOWN]:
        _row(table, label, *(count(plan.data.counts[name].get(label, 0)) for name in names))
    if len(plan.data.classes) > CLASSES_SHOWN:
        rest = plan.data.classes[CLASSES_SHOWN:]
        _row(table, f"{len(rest)} more classes", *(count(sum(plan.data.counts[name].get(label, 0) for label in rest)) for name in names))
    _row(table, "all", *(count(sum(plan.data.counts[name].values())) for name in names), style="bold")
    return table


def _phase(plan: Plan, phase: PhasePlan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    place = phase.input
    share = f"{phase.trainable_parameters:,} of {plan.total_parameters:,} parameters"
    _used(
        table,
        ("phase", phase.name),
        ("trains", f"{compressed(phase.train, plan.model)}: {share}"),
        ("length", phase_words.length(phase)),
        ("optimizer", f"{phase_words.optimizer(phase.optimizer)}, batch {plan.data.batch_size}"),
        ("its state", phase_words.optimizer_state(plan, phase)),
        ("learning rate", rates(phase, plan.model)),
        ("norm", phase_words.normalisation(phase, plan.method)),
        ("statistics", phase_words.reestimated(phase)),
        ("augment", phase_words.augmentation(phase.augment)),
        ("starts from", f"{phase_words.start(place)}, {place.mode}: {place.reason}"),
        ("store", phase_words.stored(plan, phase)),
    )
    return table
