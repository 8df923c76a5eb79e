"""What happened epoch by epoch: curves, and how fast each group learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xfer.plan.model_map import HEAD
from xfer.report import epoch_figures
from xfer.report.bundle_files import BundleFiles
from xfer.report.epoch_figures import Band, Rates, Series
from xfer.report.group_names import runs, title

Places = Mapping[tuple[int, int], int]  # (phase, epoch), from 0, to the epoch's number on one axis, from 1


def curve_figures(files: BundleFiles) -> list[dict[str, Any]]:
    """Loss and accuracy over all phases' epochs; an entry for each that was recorded."""
    places, bands = _epoch_axis(files)
    shown = []
    for key, name, within in (("loss", "Loss", None), ("accuracy", "Accuracy", (0.0, 1.0))):
        lines = [Series(split, split, _points(files.records, places, split, key)) for split in ("train", "val")]
        lines = [line for line in lines if line.points]
        figure = epoch_figures.curves(lines, bands, label=f"{name} per epoch", within=within)
        if figure is not None:
            shown.append({"title": name, "figure": figure, "legend": [(line.style, line.name) for line in lines]})
    return shown


def keeps_best(files: BundleFiles) -> bool:
    """Whether the weights of a best epoch were restored in some phase."""
    return any(band.best is not None for band in _epoch_axis(files)[1])


def rate_figure(files: BundleFiles) -> dict[str, Any] | None:
    """Each group's learning rate, with a legend where it is drawn as lines; None where there is one rate only, or no record."""
    if files.plan is None:
        return None
    places, bands = _epoch_axis(files)
    by_group: dict[str, list[float | None]] = {}
    for record in files.records:
        found = record.get("lr") if record["split"] == "train" else None
        for group, value in found.items() if isinstance(found, Mapping) else ():
            values = by_group.setdefault(group, [None] * len(places))
            values[places[int(record["phase_index"]), int(record["epoch"])] - 1] = value if isinstance(value, int | float) else None
    order = [*(group.name for group in files.plan.model.groups), HEAD]
    names = [name for name in order if name in by_group] + [name for name in by_group if name not in order]
    parts = runs(names, files.plan.model, same=lambda a, b: by_group[a] == by_group[b])
    rows = [Rates(title(part), by_group[part[0]]) for part in parts]
    figure = epoch_figures.learning_rates(rows, bands)
    if figure is None:
        return None
    drawn = len(rows) <= epoch_figures.MOST_LINES
    legend = list(zip((row.name for row in rows), epoch_figures.depths(len(rows)), strict=True)) if drawn else []
    return {"figure": figure, "legend": legend}


def _epoch_axis(files: BundleFiles) -> tuple[Places, list[Band]]:
    """Where each (phase, epoch) stands on one axis, and the phases' bands."""
    records = files.records
    pairs = sorted({(int(record["phase_index"]), int(record["epoch"])) for record in records})
    places = {pair: place + 1 for place, pair in enumerate(pairs)}
    names = {int(record["phase_index"]): str(record.get("phase", record["phase_index"])) for record in records}
    done = list(files.result.get("phases") or [])
    bands = []
    for index in sorted(names):
        held = [place for (phase, _), place in places.items() if phase == index]
        best = done[index].get("best_epoch") if index < len(done) else None
        bands.append(Band(names[index], min(held) - 1, max(held), index + 1, places.get((index, best - 1)) if best else None))
    return places, bands


def _points(records: list[dict[str, Any]], places: Places, split: str, key: str) -> list[tuple[float, float]]:
    points = []
    for record in records:
        value = record.get(key)
        if record["split"] == split and isinstance(value, int | float) and math.isfinite(value):
            points.append((float(places[int(record["phase_index"]), int(record["epoch"])]), float(value)))
    return points
