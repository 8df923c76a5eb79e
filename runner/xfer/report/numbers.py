"""Numbers for people, the same on the terminal and on the page. None and NaN are a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

DASH = "–"


def fraction(value: float | None) -> str:
    """A share or a score with three decimals.

    >>> fraction(0.74712), fraction(None)
    ('0.747', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:.3f}"


def interval(bounds: Sequence[float] | None) -> str:
    """The two ends of an interval, or nothing.

    >>> interval([0.7, 0.79]), interval(None)
    ('0.700 to 0.790', '')
    """
    return f"{fraction(bounds[0])} to {fraction(bounds[1])}" if bounds else ""


def count(value: int | None) -> str:
    """A whole number with thousands separated.

    >>> count(1234567)
    '1,234,567'
    """
    return DASH if value is None else f"{value:,}"


def parameters(value: int) -> str:
    """A number of parameters: exact up to 9,999, then with a unit.

    >>> parameters(2565), parameters(11_689_512), parameters(86_000_000_000)
    ('2,565', '11.7 M', '86 G')
    """
    if value < 10_000:
        return f"{value:,}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if value < 999.5 * size or unit == "G":
            return f"{value / size:.3g} {unit}"
    raise AssertionError


def rate(value: float) -> str:
    """A learning rate or the like: as short as it can be written.

    >>> rate(0.001), rate(3e-5), rate(0.1)
    ('0.001', '3e-05', '0.1')
    """
    return f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A duration.

    >>> seconds(0.134), seconds(7.25), seconds(83), seconds(7380)
    ('0.13 s', '7.2 s', '1 min 23 s', '2 h 3 min')
    """
    if value is None or math.isnan(value):
        return DASH
    if value < 59.95:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def distance(value: float | None) -> str:
    """A relative distance, in percent with two digits.

    >>> distance(0.2479), distance(0.05), distance(0.00187), distance(1.304), distance(2e-7), distance(0.0), distance(None)
    ('25 %', '5.0 %', '0.19 %', '130 %', '< 0.001 %', '0 %', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    percent = 100 * value
    if percent == 0:
        return "0 %"
    if percent < 0.001:
        return "< 0.001 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:#.2g} %"


def plural(n: int, one: str) -> str:
    """A count and what it counts.

    >>> plural(1, "epoch"), plural(1200, "epoch")
    ('1 epoch', '1,200 epochs')
    """
    return f"{n:,} {one}" + ("" if n == 1 else "s")


def per_second(value: float | None) -> str:
    """Images per second.

    >>> per_second(105_312.4), per_second(8.31)
    ('105,312', '8.3')
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def metric(name: str, value: float | None) -> str:
    """A metric by name: all have three decimals."""
    return fraction(value)


METRIC_TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "ece": "calibration error (ECE)", "loss": "loss (neg. log-likelihood)"}
BASELINE_TITLES = {"majority": "majority class", "probe": "closed-form linear probe"}
