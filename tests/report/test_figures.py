"""Plots are well-formed, put values where they belong, and escape what they are given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from xfer.ops import metrics
from xfer.report import figures

HOSTILE = '<script>alert("1")</script> & {0} %s'


def attributes(svg, element, style):
    tree = ElementTree.fromstring(str(svg))
    return [node.attrib for node in tree.iter(element) if style in node.attrib.get("class", "").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.42, 0.71, [0.45, 0.5, 0.55, 0.6, 0.65, 0.7]),
        (1, 30, [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert figures.ticks(low, high) == expected


def test_the_confusion_matrix_shows_counts_and_shares():
    svg = str(figures.confusion_matrix(np.array([[8, 2], [0, 5]]), ["cat", "dog"]))
    assert "cat: 8 right (80.0%)" in svg
    assert "cat taken for dog: 2 (20.0%)" in svg
    assert "dog taken for cat: 0 (0.0%)" in svg
    assert re.findall(r'class="cell-text[^"]*">(\d+)<', svg) == ["8", "2", "5"]


def test_a_class_without_images_is_drawn_too():
    assert "ghost: 0 right (0.0%)" in figures.confusion_matrix(np.array([[3, 0], [0, 0]]), ["real", "ghost"])


def test_the_reliability_diagram_has_a_bar_for_each_bin_with_images():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45]])
    svg = figures.reliability_diagram(metrics.reliability(probabilities, np.array([0, 1, 0])))
    assert len(attributes(svg, "rect", "right")) == 2
    assert "confidence 0.950, accuracy 0.500, 2 images" in svg


def test_names_are_escaped_everywhere():
    bars = [(HOSTILE, "part-train", 1.0)]
    drawn = [
        figures.confusion_matrix(np.array([[1, 1], [0, 1]]), [HOSTILE, "fine"]),
        figures.standing([(HOSTILE, 0.5, (0.4, 0.6))]),
        figures.time_bar(bars),
    ]
    for svg in drawn:
        assert "<script" not in svg
        ElementTree.fromstring(str(svg))
        assert "{0} %s" in "".join(ElementTree.fromstring(str(svg)).itertext())
