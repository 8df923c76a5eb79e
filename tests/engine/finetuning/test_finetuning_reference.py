"""Whole runs of fine-tuning against the float64 loop of conftest.py: rates, optimizers, losses, schedules, and phases in a row.

Every run is compared in each of its tensors, each epoch's losses, rates and validation accuracy, and the lengths of its phases.
"""

from __future__ import annotations

import numpy as np
import pytest

SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.02}
ADAM = {"name": "adam", "lr": 0.01, "weight_decay": 0.02}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.2}
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}
ALL = [{"train": "all", "epochs": 3}]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layer_decay_and_weight_decay(name, compared):
    """layer_decay: each trained group has the rate of the one behind it times the decay, the head's is whole (Clark et al. 2020,
    ELECTRA, section 3.1; Bao et al. 2022, BEiT)."""
    phases = [{"train": "all", "epochs": 3, "layer_decay": 0.5}]
    other = {"sgd": "adam", "adam": "adamw", "adamw": "adam"}[name]
    without = ({"freeze.0.layer_decay": 1.0}, {"optimizer.weight_decay": 0.0}, {"optimizer.name": other})
    found, _ = compared("plain", phases, OPTIMIZERS[name], without=without)
    rate = OPTIMIZERS[name]["lr"]
    assert found.lines[0, 0]["lr"] == pytest.approx({"one": rate / 8, "two": rate / 4, "three": rate / 2, "head": rate})


def test_layer_decay_counts_the_groups_that_train(compared):
    phases = [{"train": ["two", "head"], "epochs": 2, "layer_decay": 0.25}]
    found, _ = compared("plain", phases, SGD, without=({"freeze.0.layer_decay": 1.0},))
    assert found.lines[0, 0]["lr"] == pytest.approx({"two": 0.05 / 4, "head": 0.05})


@pytest.mark.parametrize(("key", "value", "plain"), [
    ("momentum", 0.5, 0.9),
    ("momentum", 0.0, 0.9),
    ("clip_norm", 0.3, None),
    ("label_smoothing", 0.2, 0.0),
    ("class_weights", "balanced", "none"),
])  # fmt: skip
def test_an_option_of_the_optimizer(key, value, plain, compared):
    compared("plain", ALL, {**SGD, key: value}, without=({f"optimizer.{key}": plain},))


def test_clipping_touches_some_steps_and_leaves_others(compared):
    """At a norm that lies among those of the gradients: neither all steps are clipped (then adam would not see it) nor none."""
    compared("plain", ALL, {**ADAM, "clip_norm": 0.5}, without=({"optimizer.clip_norm": None}, {"optimizer.clip_norm": 0.05}))


def test_smoothed_labels_with_weighted_classes_and_clipping(compared):
    options = {"label_smoothing": 0.1, "class_weights": "balanced", "clip_norm": 0.4}
    without = ({"optimizer.label_smoothing": 0.0}, {"optimizer.class_weights": "none"}, {"optimizer.clip_norm": None})
    compared("plain", ALL, {**ADAMW, **options}, without=without)


def test_a_head_with_a_hidden_layer_and_dropout(compared):
    phases = [{"train": "head", "epochs": 1}, {"train": ["three", "head"], "epochs": 2}]
    without = ({"head.dropout": 0.0}, {"freeze.0.epochs": 2})
    compared("plain", phases, ADAMW, head={"hidden": [5], "dropout": 0.3}, without=without)


# schedules: each spans its own phase


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_a_schedule_spans_each_phase(schedule, warmup, compared):
    phases = [{"train": ["three", "head"], "epochs": 3}, {"train": "all", "epochs": 4, "lr": 0.02}]
    options = {**SGD, "schedule": schedule, "warmup_epochs": warmup}
    without = ({"optimizer.schedule": "constant"}, *({"optimizer.warmup_epochs": other} for other in (0.0, 1.5) if other != warmup))
    found, _ = compared("plain", phases, options, without=without)
    start = 1 / 3 if warmup == 0.5 else 1 / 6 if warmup else 1 / 25 if schedule == "one_cycle" else 1.0
    assert [found.lines[phase, 0]["lr"]["head"] for phase in (0, 1)] == pytest.approx([0.05 * start, 0.02 * start])


def test_a_phase_has_a_schedule_of_its_own(compared):
    phases = [
        {"train": "head", "epochs": 2, "schedule": "one_cycle"},
        {"train": "all", "epochs": 2, "schedule": "cosine", "warmup_epochs": 0.5, "lr": 0.005, "weight_decay": 0.0},
    ]
    without = ({"freeze.0.schedule": "constant"}, {"freeze.1.schedule": "constant"}, {"freeze.1.weight_decay": 0.2})
    compared("plain", phases, ADAMW, without=without)


# phases in a row: 'three' and the head stay, 'one' joins, 'two' leaves and comes again

JOINING = [
    {"train": ["two", "three", "head"], "epochs": 1},
    {"train": ["one", "three", "head"], "epochs": 2, "layer_decay": 0.5},
    {"train": "all", "epochs": 2, "lr": 0.004},
]


@pytest.mark.parametrize("state", ["carry", "reset"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_from_phase_to_phase(name, state, compared):
    """What trains in both phases keeps its momenta and adam's count of steps; what joins starts anew, also if it trained before."""
    other = {"carry": "reset", "reset": "carry"}[state]
    phases = [{**phase, "optimizer_state": state} for phase in JOINING]
    without = tuple({f"freeze.{index}.optimizer_state": other} for index in (1, 2))
    found, expected = compared("plain", phases, OPTIMIZERS[name], without=without)
    assert found.lengths == [(1, None), (2, None), (2, None)]


def test_state_is_carried_where_nothing_is_said(compared):
    compared("plain", JOINING, ADAMW, without=({"freeze.1.optimizer_state": "reset"},))


@pytest.mark.parametrize(("first", "second"), [("sgd", "adamw"), ("adamw", "sgd"), ("adam", "adamw")])
def test_another_optimizer_starts_anew(first, second, compared):
    """Its state is other numbers, so 'carry' has nothing to carry; nor has the first optimizer when it comes again."""
    rates = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01}
    phases = [
        {"train": ["three", "head"], "epochs": 1, "optimizer": first, "lr": rates[first]},
        {"train": "all", "epochs": 1, "optimizer": second, "lr": rates[second], "optimizer_state": "carry"},
        {"train": "all", "epochs": 1, "optimizer": first, "lr": rates[first], "optimizer_state": "carry"},
    ]
    compared("plain", phases, {"name": first, "weight_decay": 0.1}, without=({"freeze.1.optimizer": first}, {"freeze.2.optimizer": second}))


def test_frozen_tensors_stay_as_they_were(compared, workbench):
    found, _ = compared("plain", [{"train": ["two", "head"], "epochs": 2}], ADAMW, without=({"freeze.0.train": ["three", "head"]},))
    source = workbench.start("plain")
    same = [name for name, value in source.items() if np.array_equal(found.tensors[name], value)]
    assert same == ["one.weight", "one.bias", "three.weight", "three.bias"]


# L2-SP (Li, Grandvalet & Davoine 2018, equation 3): the loop adds the gradients alpha (w - w⁰) and beta w by hand


def test_l2_sp_draws_back_to_the_source(compared):
    """In the second phase too to the source, not to what the first phase left; the loss has the penalty in it."""
    phases = [{"train": ["three", "head"], "epochs": 2}, {"train": "all", "epochs": 2}]
    transfer = {"type": "model", "method": "l2sp", "alpha": 0.3, "beta": 0.05}
    without = ({"transfer.alpha": 0.0}, {"transfer.beta": 0.0}, {"transfer.alpha": 0.05, "transfer.beta": 0.3}, {"transfer.method": None})
    compared("plain", phases, {"name": "sgd", "lr": 0.05}, transfer=transfer, without=without)


def test_l2_sp_under_clipping_and_adamw(compared):
    transfer = {"type": "model", "method": "l2sp"}
    without = ({"transfer.alpha": 0.0}, {"transfer.beta": 0.0}, {"optimizer.clip_norm": None})
    compared("plain", ALL, {"name": "adamw", "lr": 0.02, "clip_norm": 0.4}, transfer=transfer, without=without)
