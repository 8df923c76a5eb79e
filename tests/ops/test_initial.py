"""The head's start is the same on every machine: the values are written down here."""

from __future__ import annotations

import numpy as np

from xfer.ops.initial import draw, head_start

EXPECTED = [0.33562198281288147, -0.3486742079257965, -0.4109894633293152, 0.18236953020095825]


def test_values_stay_what_they_were():
    assert draw("head.output.weight", (2, 2), fan_in=4, seed=0).ravel().tolist() == EXPECTED


def test_within_the_bound_of_torch_s_linear_layer():
    values = head_start([("head.output.weight", (5, 64)), ("head.output.bias", (5,))], seed=3)
    assert all(np.abs(value).max() <= 1 / 8 for value in values.values())
    assert np.abs(values["head.output.weight"]).max() > 0.11


def test_seed_and_name_matter():
    one, other, third = (
        draw(name, (8,), fan_in=1, seed=seed).tolist() for name, seed in (("head.a", 0), ("head.a", 1), ("head.b", 0))
    )
    assert one != other != third
