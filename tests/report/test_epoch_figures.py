"""Curves and learning rates are drawn to scale, phases where they belong, and names are escaped."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from xfer.report import epoch_figures
from xfer.report.epoch_figures import Band, Rates, Series

HOSTILE = '<script>alert("1")</script> & {0} %s'


def elements(svg, element, style):
    tree = ElementTree.fromstring(str(svg))
    return [node for node in tree.iter(element) if style in node.attrib.get("class", "").split()]


def attributes(svg, element, style):
    return [node.attrib for node in elements(svg, element, style)]


def titles(svg, element, style):
    return ["".join(node.itertext()) for node in elements(svg, element, style)]


def test_curves_are_drawn_to_scale():
    svg = epoch_figures.curves([Series("train", "train", [(1, 4.0), (2, 2.0), (3, 1.0)])], [Band("head", 0, 3)], label="Loss")
    (line,) = attributes(svg, "polyline", "train")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.02)
    assert points[1][1] - points[0][1] == pytest.approx(2 * (points[2][1] - points[1][1]), abs=0.05)


@pytest.mark.parametrize("values", [[0.5], [0.7, 0.7, 0.7], [0.0], [-3.0, 5.0], [1e-12, 1e9]])
def test_odd_values_are_drawn_inside_the_frame(values):
    svg = epoch_figures.curves([Series("val", "val", list(enumerate(values, 1)))], [Band("head", 0, len(values))], label="Loss")
    for circle in attributes(svg, "circle", "val"):
        assert 0 <= float(circle["cx"]) <= 560
        assert 0 <= float(circle["cy"]) <= 260


def test_without_a_point_there_is_no_plot():
    assert epoch_figures.curves([Series("val", "val", [(1, float("nan"))])], [], label="Loss") is None


def test_the_epoch_that_a_phase_kept_has_a_ring_on_the_validation_line():
    lines = [Series("train", "train", [(1, 3.0), (2, 2.0), (3, 1.0)]), Series("val", "val", [(1, 3.0), (2, 1.5), (3, 2.0)])]
    svg = epoch_figures.curves(lines, [Band("1: head", 0, 1), Band("2: all", 1, 3, 2, best=2)], label="Loss")
    (ring,) = attributes(svg, "circle", "best")
    dot = next(node.attrib for node in elements(svg, "circle", "val") if "".join(node.itertext()) == "val, epoch 2: 1.5")
    assert ring["class"] == "best val"
    assert (ring["cx"], ring["cy"]) == (dot["cx"], dot["cy"])
    assert titles(svg, "circle", "best") == ["phase 2: all kept the weights of epoch 2"]


def test_a_best_epoch_without_a_finite_value_has_no_ring():
    svg = epoch_figures.curves([Series("val", "val", [(1, 1.0), (2, math.nan)])], [Band("all", 0, 2, best=2)], label="Loss")
    assert attributes(svg, "circle", "best") == []


def test_long_lines_have_no_dots_but_keep_their_ring():
    points = [(epoch, 1.0 / epoch) for epoch in range(1, epoch_figures.MOST_DOTS + 2)]
    svg = epoch_figures.curves([Series("val", "val", points)], [Band("all", 0, len(points), best=50)], label="Loss")
    assert len(elements(svg, "circle", "val")) == len(elements(svg, "circle", "best")) == 1


def test_one_rate_that_never_changes_is_not_drawn():
    bands = [Band("head", 0, 1), Band("all", 1, 2)]
    assert epoch_figures.learning_rates([Rates("conv1", [None, 0.1]), Rates("head", [0.1, 0.1])], bands) is None
    assert epoch_figures.learning_rates([], bands) is None
    assert epoch_figures.learning_rates([Rates("head", [0.1, math.nan])], bands) is None


def test_rates_are_lines_on_a_logarithmic_scale():
    bands = [Band("1: head", 0, 3), Band("2: all", 3, 5)]
    rows = [Rates("conv1", [None, None, None, 1e-4, 1e-5]), Rates("head", [1e-1, 1e-2, 1e-3, 1e-2, math.inf])]
    svg = epoch_figures.learning_rates(rows, bands)
    assert titles(svg, "polyline", "rate") == [
        "conv1, phase 2: all: 1e-05 to 0.0001",
        "head, phase 1: head: 0.001 to 0.1",
        "head, phase 2: all: 0.01",
    ]
    lines = [[tuple(map(float, point.split(","))) for point in line["points"].split()] for line in attributes(svg, "polyline", "rate")]
    (_, first), (_, second), (_, third) = lines[1]
    assert second - first == pytest.approx(third - second, abs=0.02)
    assert lines[0][1][1] - lines[0][0][1] == pytest.approx(third - second, abs=0.02)
    assert lines[2][1][0] > lines[2][0][0]  # an epoch alone is a short stroke, not a point that can't be seen
    assert lines[2][0][1] == lines[2][1][1] == pytest.approx(second)
    assert [line["style"].partition(";")[0] for line in attributes(svg, "polyline", "rate")] == [
        "--depth: 0.35",
        "--depth: 1.0",
        "--depth: 1.0",
    ]


@pytest.mark.parametrize("n_rows", [7, 20, 200])
def test_many_rates_are_a_strip_of_what_trained_when(n_rows):
    bands = [Band("1: head", 0, 2), Band("2: all", 2, 3)]
    rows = [Rates(f"block{row}", [None, None, 1e-3 * 0.9 ** (n_rows - row)]) for row in range(n_rows - 1)]
    svg = epoch_figures.learning_rates([*rows, Rates("head", [1e-2, 1e-2, 1e-3])], bands)
    cells = elements(svg, "rect", "shade")
    assert len(cells) == n_rows + 1
    assert titles(svg, "rect", "shade")[-2:] == ["head, epochs 1 to 2: 0.01", "head, epoch 3: 0.001"]
    whole, last = cells[-2].attrib, cells[-1].attrib
    assert float(whole["width"]) == pytest.approx(2 * float(last["width"]), abs=0.02)
    assert float(whole["fill-opacity"]) == 1.0
    assert float(cells[0].attrib["fill-opacity"]) == pytest.approx(0.15)
    height = float(ElementTree.fromstring(str(svg)).attrib["viewBox"].split()[3])
    assert all(float(cell.attrib["y"]) + float(cell.attrib["height"]) <= height - 34 + 1 for cell in cells)
    labels = [node for node in ElementTree.fromstring(str(svg)).iter("text") if "".join(node.itertext()).startswith(("block", "head"))]
    heights = [float(label.attrib["y"]) for label in labels]
    assert all(below - above >= 10.99 for above, below in zip(heights, heights[1:], strict=False))  # no label lies on another


def test_a_strip_writes_a_rate_once_for_the_neighbours_that_share_it():
    bands = [Band("1: head", 0, 4), Band("2: all", 4, 8, 2)]
    slow = [Rates(f"block{row}", [None] * 4 + [1e-3 if row < 4 else 2e-3] + [1e-4 * (row + 1)] * 3) for row in range(8)]
    svg = epoch_figures.learning_rates([*slow, Rates("head", [1e-2] * 8)], bands)
    assert [node.text for node in elements(svg, "text", "rate-text")] == ["0.001", "0.002", "0.01", "0.01"]


def test_names_are_escaped_everywhere():
    bands = [Band(HOSTILE, 0, 2, best=1)]
    drawn = [
        epoch_figures.curves([Series(HOSTILE, "train", [(1, 1.0)])], bands, label=HOSTILE),
        epoch_figures.learning_rates([Rates(HOSTILE, [0.1, 0.2])], bands),
        epoch_figures.learning_rates([Rates(HOSTILE, [0.1, 0.2 + row]) for row in range(9)], bands),
    ]
    for svg in drawn:
        assert "<script" not in svg
        assert "{0} %s" in "".join(ElementTree.fromstring(str(svg)).itertext())
