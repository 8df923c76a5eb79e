"""Plots as inline SVG. Colours are the page's own CSS classes, so they follow its dark and light mode; all text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from xfer.report.numbers import count, fraction


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers within [low, high].

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= wanted + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Frame:
    """A plot area with margins; maps data to pixels and collects elements."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, size: tuple[int, int], margins: tuple[int, int, int, int]
    ) -> None:
        self.width, self.height = size
        self.top, self.right, self.bottom, self.left = margins
        self.x_range, self.y_range = x, y
        self.parts: list[Markup] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / ((high - low) or 1) * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.height - self.bottom - (value - low) / ((high - low) or 1) * (self.height - self.top - self.bottom), 2)

    def add(self, element: str, *values: object) -> None:
        self.parts.append(Markup(element).format(*values))

    def text(self, x: float, y: float, text: str, *, anchor: str = "middle", style: str = "tick", title: str = "") -> None:
        inner = Markup("{}<title>{}</title>").format(text, title) if title else text
        self.add('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>', round(x, 2), round(y, 2), anchor, style, inner)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self.add('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>', round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2), style)

    def rect(self, x: float, y: float, width: float, height: float, style: str, *, title: str = "", opacity: float = 1.0) -> None:
        self.add(
            '<rect x="{}" y="{}" width="{}" height="{}" class="{}" fill-opacity="{}"><title>{}</title></rect>',
            *(round(v, 2) for v in (x, y, max(width, 0), max(height, 0))), style, round(opacity, 3), title,
        )  # fmt: skip

    def svg(self, label: str) -> Markup:
        """Grows to fill its place, but no more than by half: text that is much larger than the page's looks wrong."""
        shape = (self.width, self.height, round(1.5 * self.width))
        return Markup('<svg viewBox="0 0 {} {}" style="max-width: {}px" role="img" aria-label="{}">{}</svg>').format(
            *shape, label, Markup("\n").join(self.parts)
        )


def standing(entries: Sequence[tuple[str, float, Sequence[float] | None]]) -> Markup:
    """The accuracies of this run (first, with its interval) and of the baselines on one axis."""
    row = 34
    frame = Frame((0, 1), (0, 1), size=(560, row * len(entries) + 34), margins=(6, 60, 26, 168))
    bottom = frame.height - frame.bottom
    for value in (0, 0.25, 0.5, 0.75, 1):
        frame.line(frame.x(value), frame.top, frame.x(value), bottom, "grid")
        frame.text(frame.x(value), bottom + 17, f"{value:g}")
    for place, (name, value, bounds) in enumerate(entries):
        middle = frame.top + row * place + row / 2
        style = "ours" if place == 0 else "other"
        frame.text(frame.left - 12, middle + 4, name, anchor="end", style="name strong" if place == 0 else "name")
        frame.line(frame.x(0), middle, frame.x(value), middle, f"stem {style}")
        if bounds:
            frame.rect(
                frame.x(bounds[0]),
                middle - 6,
                frame.x(bounds[1]) - frame.x(bounds[0]),
                12,
                "interval",
                title=f"95 % interval: {bounds[0]:.3f} to {bounds[1]:.3f}",
            )
        frame.add(
            '<circle cx="{}" cy="{}" r="5" class="{}"><title>{}: {}</title></circle>', frame.x(value), middle, style, name, fraction(value)
        )
        frame.text(frame.width - 4, middle + 4, fraction(value), anchor="end", style="name strong" if place == 0 else "name")
    return frame.svg("test accuracy beside baselines")


def reliability_diagram(bins: dict[str, np.ndarray]) -> Markup:
    """Accuracy against confidence by bin, and how many images each bin holds."""
    n_bins = len(bins["count"])
    frame = Frame((0, 1), (0, 1), size=(380, 400), margins=(10, 14, 96, 46))
    bottom, most = frame.y(0), max(1, int(bins["count"].max()))
    for value in (0, 0.25, 0.5, 0.75, 1):
        frame.line(frame.left, frame.y(value), frame.width - frame.right, frame.y(value), "grid")
        frame.text(frame.left - 7, frame.y(value) + 4, f"{value:g}", anchor="end")
        frame.text(frame.x(value), bottom + 15, f"{value:g}")
    width = frame.x(1 / n_bins) - frame.x(0) - 2
    for place in range(n_bins):
        total = int(bins["count"][place])
        if not total:
            continue
        accuracy, confidence = float(bins["accuracy"][place]), float(bins["confidence"][place])
        left = frame.x(place / n_bins) + 1
        title = f"confidence {fraction(confidence)}, accuracy {fraction(accuracy)}, {count(total)} images"
        frame.rect(left, frame.y(accuracy), width, bottom - frame.y(accuracy), "right", title=title, opacity=0.8)
        top, low = max(accuracy, confidence), min(accuracy, confidence)
        frame.rect(left, frame.y(top), width, frame.y(low) - frame.y(top), "gap", title=title)
        tall = 44 * total / most
        frame.rect(left, bottom + 28 + 44 - tall, width, tall, "histogram", title=title)
    frame.line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "diagonal")
    frame.text((frame.left + frame.width - frame.right) / 2, frame.height - 6, f"confidence (below: images per bin, at most {count(most)})")
    return frame.svg("reliability diagram: accuracy against confidence")


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    """True classes down, predicted ones across, shaded by the share of the true class; counts where there is room."""
    n = len(names)
    cell = min(64.0, max(9.0, 480 / n))
    labelled, longest = cell >= 11, max(len(name) for name in names)
    margin = min(150, 20 + int(6.6 * longest)) if labelled else 22
    side = int(cell * n)
    beyond = max(12, int(0.57 * margin - cell / 2)) if labelled else 12  # what a slanted name sticks out to the right: cos 55 degrees
    frame = Frame((0, n), (n, 0), size=(side + margin + beyond, side + margin + 12), margins=(margin, beyond, 12, margin))
    totals = np.maximum(matrix.sum(axis=1), 1)
    for row in range(n):
        for column in range(n):
            value = int(matrix[row, column])
            x, y, share = margin + column * cell, margin + row * cell, value / totals[row]
            title = (
                f"{names[row]} taken for {names[column]}: {count(value)} ({share:.1%})"
                if row != column
                else f"{names[row]}: {count(value)} right ({share:.1%})"
            )
            style = "cell" if not value else ("right" if row == column else "wrong")
            frame.rect(x, y, cell - 1, cell - 1, style, title=title, opacity=0.12 + 0.88 * share if value else 1.0)
            if value and cell >= 20:
                frame.text(x + cell / 2, y + cell / 2 + 4, count(value), style="cell-text bright" if share > 0.55 else "cell-text")
    if labelled:
        for place, name in enumerate(names):
            middle = margin + (place + 0.5) * cell
            shown = shorten(name, (margin - 16) // 6)
            frame.text(margin - 7, middle + 4, shown, anchor="end", title=name)
            frame.add(
                '<g transform="translate({} {}) rotate(-55)"><text class="tick">{}<title>{}</title></text></g>',
                round(middle, 2),
                margin - 7,
                shown,
                name,
            )
    frame.text(margin + side / 2, frame.height - 1, "predicted →")
    return frame.svg("confusion matrix")


def time_bar(parts: Sequence[tuple[str, str, float]]) -> Markup:
    """Shares of one whole as a bar: (name, CSS class, seconds)."""
    total = sum(value for _, _, value in parts) or 1.0
    frame = Frame((0, 1), (0, 1), size=(1032, 22), margins=(0, 0, 0, 0))
    left = 0.0
    for name, style, value in parts:
        frame.rect(left, 0, 1032 * value / total - 1, 22, style, title=f"{name}: {value:.2f} s ({value / total:.0%})")
        left += 1032 * value / total
    return frame.svg("where the time went")


def shorten(text: str, room: int) -> str:
    """The text, or its start and an ellipsis, in at most `room` characters.

    >>> shorten("fire lily", 6)
    'fire …'
    """
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"
