"""Plots over the epochs of a run, its phases as bands: curves, and the learning rate of each group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xfer.report.figures import Frame, shorten, ticks
from xfer.report.numbers import rate

CHARACTER = 6.2  # pixels of a small letter
MOST_DOTS = 60  # points of a line that are marked
MOST_LINES = 6  # more rates than these are drawn as a strip
SHADES = 24  # of a strip: epochs with the same one are one cell


@dataclass(frozen=True)
class Series:
    """One line: `style` is its CSS class, points are (x, y)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """Phase `number` on the epoch axis, from `start` to `end` epochs done; `best` is the epoch whose weights it kept."""

    name: str
    start: int
    end: int
    number: int = 1
    best: int | None = None


@dataclass(frozen=True)
class Rates:
    """The learning rate of some groups that always have the same one; None where they are frozen. `values` has one entry an epoch."""

    name: str
    values: Sequence[float | None]


def curves(series: Sequence[Series], bands: Sequence[Band], *, label: str, within: tuple[float, float] | None = None) -> Markup | None:
    """Lines over epochs, phases as bands; None where there is no finite point. The axis fits the values and stays `within`."""
    lines = [Series(s.name, s.style, [p for p in s.points if math.isfinite(p[1])]) for s in series]
    values = [y for line in lines for _, y in line.points]
    if not values:
        return None
    low, high = _padded(min(values), max(values))
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    last = max([band.end for band in bands] + [x for line in lines for x, _ in line.points])
    frame = Frame((0.5, last + 0.5), (low, high), size=(560, 260), margins=(26, 14, 34, 46))
    _bands(frame, bands)
    for value in ticks(low, high):
        frame.line(frame.left, frame.y(value), frame.width - frame.right, frame.y(value), "grid")
        frame.text(frame.left - 7, frame.y(value) + 4, f"{value:g}", anchor="end")
    _epochs(frame, last)
    for line in lines:
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in line.points)
        frame.add('<polyline points="{}" class="curve {}"/>', path, line.style)
        for x, y in line.points if len(line.points) <= MOST_DOTS else ():
            frame.add(
                '<circle cx="{}" cy="{}" r="2.6" class="{}"><title>{}, epoch {}: {}</title></circle>',
                frame.x(x), frame.y(y), line.style, line.name, f"{x:g}", f"{y:.4g}",
            )  # fmt: skip
    for line in lines[-1:]:
        _best(frame, line, bands)
    return frame.svg(label)


def _best(frame: Frame, line: Series, bands: Sequence[Band]) -> None:
    """A ring around the epoch whose weights a phase kept."""
    heights = dict(line.points)
    for band in bands:
        if band.best in heights:
            frame.add(
                '<circle cx="{}" cy="{}" r="6" class="best {}"><title>phase {} kept the weights of epoch {}</title></circle>',
                frame.x(band.best), frame.y(heights[band.best]), line.style, band.name, f"{band.best:g}",
            )  # fmt: skip


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.1
    return (0.0 if 0 <= low <= (high - low) else low - pad), high + pad


def _epochs(frame: Frame, last: float) -> None:
    for value in ticks(1, last, 8):
        if value == int(value):
            frame.text(frame.x(value), frame.height - frame.bottom + 17, f"{value:g}")
    frame.text((frame.left + frame.width - frame.right) / 2, frame.height - 3, "epoch")


def _bands(frame: Frame, bands: Sequence[Band]) -> None:
    edges = [(frame.x(band.start + 0.5), frame.x(band.end + 0.5)) for band in bands]
    names = band_names(bands, [right - left for left, right in edges])
    for place, (band, (left, right), name) in enumerate(zip(bands, edges, names, strict=True)):
        frame.rect(
            left, frame.top, right - left, frame.height - frame.top - frame.bottom, f"band band{place % 2}", title=f"phase {band.name}"
        )
        if place:
            frame.line(left, frame.top - 4, left, frame.height - frame.bottom, "phase-line")
        if name:
            frame.text((left + right) / 2, frame.top - 9, name, style="phase-name", title=band.name)


def band_names(bands: Sequence[Band], widths: Sequence[float]) -> list[str]:
    """What is written above each band: its name, its number, or nothing, as `widths` (in pixels) leave room.

    >>> band_names([Band("1: head", 0, 5), Band("2: last 2 stages", 5, 9, 2), Band("3: all", 9, 10, 3)], [90.0, 70.0, 8.0])
    ['1: head', '2', '']
    """
    shown = []
    for band, width in zip(bands, widths, strict=True):
        room = int((width - 4) / CHARACTER)
        fits = (text for text in (band.name, str(band.number)) if len(text) <= room)
        shown.append(next(fits, ""))
    return shown


def learning_rates(rows: Sequence[Rates], bands: Sequence[Band]) -> Markup | None:
    """Learning rates on a logarithmic scale, the input's end of the network faintest: lines, or a strip where they are many.

    None where there is nothing to tell apart: one rate, that never changes, for whatever trains.
    """
    values = {value for row in rows for value in row.values if value is not None and value > 0 and math.isfinite(value)}
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    return _lines(rows, bands, low, high) if len(rows) <= MOST_LINES else _strip(rows, bands, low, high)


def depths(n_rows: int) -> list[float]:
    """How strongly each row is drawn, the input's end first.

    >>> depths(3)
    [0.35, 0.675, 1.0]
    """
    return [round(1.0 - 0.65 * (n_rows - 1 - row) / max(1, n_rows - 1), 3) for row in range(n_rows)]


def _lines(rows: Sequence[Rates], bands: Sequence[Band], low: float, high: float) -> Markup:
    bottom, top = math.log10(low), math.log10(high)
    pad = 0.08 * (top - bottom)
    frame = Frame((0.5, bands[-1].end + 0.5), (bottom - pad, top + pad), size=(560, 260), margins=(26, 14, 34, 56))
    _bands(frame, bands)
    for mark in decades(low, high):
        height = frame.y(math.log10(mark))
        frame.line(frame.left, height, frame.width - frame.right, height, "grid")
        frame.text(frame.left - 7, height + 4, rate(mark), anchor="end")
    _epochs(frame, bands[-1].end)
    step = min(5.0, 12 / max(1, len(rows) - 1))
    for place, (row, depth) in enumerate(zip(rows, depths(len(rows)), strict=True)):
        width = 2 + step * (len(rows) - 1 - place)  # groups with the same rate lie on one another: the ones below stick out
        for band in bands:
            points = [
                (epoch, value)
                for epoch, value in enumerate(row.values[band.start : band.end], band.start + 1)
                if value and value < math.inf
            ]
            shown = [(frame.x(x), frame.y(math.log10(y))) for x, y in points]
            if len(shown) == 1:
                shown = [(frame.x(points[0][0] - 0.3), shown[0][1]), (frame.x(points[0][0] + 0.3), shown[0][1])]
            if shown:
                frame.add(
                    '<polyline points="{}" class="rate" style="--depth: {}; stroke-width: {}"><title>{}, phase {}: {}</title></polyline>',
                    " ".join(f"{x},{y}" for x, y in shown), depth, round(width, 1), row.name, band.name,
                    _between([value for _, value in points]),
                )  # fmt: skip
    return frame.svg("learning rate of each group, on a logarithmic scale")


def decades(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 between them where those are few.

    >>> decades(2e-5, 3e-3), decades(1e-3, 4e-3), decades(1.1e-3, 1.9e-3)
    ([0.0001, 0.001], [0.001, 0.002], [0.0011, 0.0019])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        found = [float(f"{step}e{power}") for power in powers for step in steps]
        inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(inside) >= 2:
            return inside[:: max(1, math.ceil(len(inside) / 8))]
    return [low, high]


def _strip(rows: Sequence[Rates], bands: Sequence[Band], low: float, high: float) -> Markup:
    """A row for each rate, a cell for each stretch of epochs at the same one: what trained when, the stronger the faster."""
    cell = max(3.0, min(17.0, 400 / len(rows)))
    gap = 1.0 if cell >= 8 else 0.0
    longest = max(len(row.name) for row in rows)
    left = min(160, 18 + int(CHARACTER * longest))
    frame = Frame((0.5, bands[-1].end + 0.5), (0, 1), size=(560, round(cell * len(rows)) + 60), margins=(26, 14, 34, left))
    _bands(frame, bands)
    _epochs(frame, bands[-1].end)
    every = math.ceil(11 / cell)  # a label takes 11 pixels
    for place, row in enumerate(rows):
        height = frame.top + place * cell
        if place % every == 0:
            frame.text(left - 7, height + cell / 2 + 4, shorten(row.name, int((left - 10) / CHARACTER)), anchor="end", title=row.name)
        for band in bands:
            _stretches(frame, row, band, height, cell - gap, low, high)
            before = rows[place - 1].values[band.start] if place else None
            if cell >= 13 and row.values[band.start] != before:  # said once for neighbours that share it
                _start(frame, row.values[band.start], band, height + cell / 2, low, high)
    return frame.svg("learning rate of each group: the stronger the colour, the higher, on a logarithmic scale")


def _stretches(frame: Frame, row: Rates, band: Band, height: float, cell: float, low: float, high: float) -> None:
    held = list(enumerate(row.values[band.start : band.end], band.start + 1))
    for depth, stretch in itertools.groupby(held, key=lambda pair: shade(pair[1], low, high)):
        part = list(stretch)
        if depth is None:
            continue
        x, end = frame.x(part[0][0] - 0.5), frame.x(part[-1][0] + 0.5)
        epochs = f"epoch {part[0][0]}" if len(part) == 1 else f"epochs {part[0][0]} to {part[-1][0]}"
        title = f"{row.name}, {epochs}: {_between([value for _, value in part if value is not None])}"
        frame.rect(x, height, end - x, cell, "shade", title=title, opacity=depth)


def _start(frame: Frame, value: float | None, band: Band, middle: float, low: float, high: float) -> None:
    """The rate that a phase begins with, written into its cells where there is room."""
    depth, left = shade(value, low, high), frame.x(band.start + 0.5)
    if value is None or depth is None or frame.x(band.end + 0.5) - left < CHARACTER * len(rate(value)) + 8:
        return
    frame.text(left + 5, middle + 3.5, rate(value), anchor="start", style="rate-text bright" if depth > 0.75 else "rate-text")


def shade(value: float | None, low: float, high: float) -> float | None:
    """How strongly a cell is filled, one of few steps; None where nothing is.

    >>> shade(None, 1e-4, 1e-2), shade(1e-4, 1e-4, 1e-2), shade(1e-2, 1e-4, 1e-2)
    (None, 0.15, 1.0)
    """
    if value is None or not math.isfinite(value):
        return None
    place = 0.0 if value <= low else math.log(value / low) / math.log(high / low)
    return round(0.15 + 0.85 * round(place * SHADES) / SHADES, 3)


def _between(values: Sequence[float]) -> str:
    low, high = rate(min(values)), rate(max(values))
    return low if low == high else f"{low} to {high}"
