"""Batch normalisation's statistics and the moving average of weights: whole runs against the float64 loop of conftest.py."""

from __future__ import annotations

import numpy as np
import pytest

SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.02}
ADAMW = {"name": "adamw", "lr": 0.02, "weight_decay": 0.1}
ALL = {"train": "all", "epochs": 2}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def unchanged(found, source):
    return {name for name, value in source.items() if np.array_equal(found.tensors[name], value)}


# batch normalisation by torch's definitions (Ioffe & Szegedy 2015; torch.nn.BatchNorm2d)


@pytest.mark.parametrize("options", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_normalisation_that_trains(options, compared, assert_counted):
    without = ({"freeze.0.norm": "frozen"}, {"freeze.0.norm_momentum": 0.2})
    found, _ = compared("normalised", [{**ALL, "norm": "train"}], options, without=without)
    assert_counted(found, one=5 + 2 * 6)


def test_normalisation_that_is_frozen(compared, workbench):
    """Its scale, shift and statistics stay to the bit, and the batch is normalised with the stored statistics."""
    found, _ = compared("normalised", [{**ALL, "norm": "frozen"}], SGD, without=({"freeze.0.norm": "train"},))
    source = workbench.start("normalised")
    assert unchanged(found, source) == {name for name in source if ".norm." in name}


def test_normalisation_of_frozen_groups_is_frozen(compared, workbench):
    found, _ = compared("normalised", [{"train": ["two", "head"], "epochs": 2}], ADAMW, without=({"freeze.0.train": "all"},))
    source = workbench.start("normalised")
    assert unchanged(found, source) == {name for name in source if name.startswith("one.")}


def test_normalisation_of_a_frozen_group_above_a_trained_one_is_frozen(compared, workbench):
    """Gradients pass through it, with its stored statistics; the frozen group has no share in layer_decay."""
    phases = [{"train": ["one", "head"], "epochs": 2, "layer_decay": 0.5}]
    found, _ = compared("normalised", phases, SGD, without=({"freeze.0.train": "all"}, {"freeze.0.layer_decay": 0.25}))
    source = workbench.start("normalised")
    assert unchanged(found, source) == {name for name in source if name.startswith("two.")}


def test_norm_may_differ_between_phases(compared, assert_counted):
    phases = [{**ALL, "norm": "train"}, {**ALL, "norm": "frozen"}, {"train": ["two", "head"], "epochs": 1, "layer_decay": 0.5}]
    without = ({"freeze.1.norm": "train"}, {"freeze.2.norm": "frozen"})
    found, _ = compared("normalised", phases, ADAMW, without=without)
    assert_counted(found, one=5 + 12, two=5 + 12 + 6)


def test_normalisation_joins_a_group_that_has_momenta(compared):
    """Its own start anew, beside those that are carried."""
    phases = [{**ALL, "norm": "frozen"}, {**ALL, "norm": "train"}]
    compared("normalised", phases, SGD, without=({"freeze.0.norm": "train"}, {"freeze.1.optimizer_state": "reset"}))


def test_norm_momentum_is_of_its_phase(compared):
    """A layer has its own momentum back in the next phase."""
    phases = [{**ALL, "norm_momentum": 0.4}, {"train": "all", "epochs": 1}]
    without = ({"freeze.0.norm_momentum": None}, {"freeze.1.norm_momentum": 0.4}, {"freeze.0.norm_momentum": 1.0})
    compared("normalised", phases, SGD, without=without)


def test_norm_momentum_for_all_phases(compared):
    phases = [{"train": ["two", "head"], "epochs": 1}, {"train": "all", "epochs": 1}]
    compared("normalised", phases, {**SGD, "norm_momentum": 1.0}, without=({"optimizer.norm_momentum": None},))


# estimated anew: the mean over the training batches of their own statistics (Wu & Johnson 2021, section 3.1)


def test_reestimated_statistics_are_the_mean_over_the_batches(compared, assert_counted):
    found, _ = compared("normalised", [{**ALL, "reestimate_norm": True}], SGD, without=({"freeze.0.reestimate_norm": False},))
    assert_counted(found, one=6, two=6)


def test_only_statistics_of_trained_groups_are_estimated_anew(compared, workbench):
    phases = [{"train": ["two", "head"], "epochs": 2, "reestimate_norm": True}]
    found, _ = compared("normalised", phases, ADAMW, without=({"freeze.0.reestimate_norm": False},))
    source = workbench.start("normalised")
    assert unchanged(found, source) >= {name for name in source if name.startswith("one.norm.") and name.endswith(STATISTICS)}


def test_the_next_phase_goes_on_from_what_was_estimated(compared):
    phases = [{**ALL, "reestimate_norm": True, "norm_momentum": 0.3}, {"train": ["two", "head"], "epochs": 2}]
    without = ({"freeze.0.reestimate_norm": False}, {"freeze.1.norm_momentum": 0.3})
    compared("normalised", phases, SGD, without=without)


def test_statistics_are_estimated_for_the_best_weights(compared):
    until = {"metric": "val.loss", "patience": 2, "min_delta": 0.0, "max_epochs": 20}
    phases = [{"train": "all", "until": until, "reestimate_norm": True}]
    found, _ = compared("normalised", phases, ADAMW, without=({"freeze.0.reestimate_norm": False}, {"freeze.0.until.patience": 5}))
    [(epochs, best)] = found.lengths
    assert best < epochs


# the moving average (TensorFlow's ExponentialMovingAverage with num_updates; Polyak & Juditsky 1992 for why)


@pytest.mark.parametrize(("network", "decay"), [("plain", 0.3), ("plain", 0.999), ("normalised", 0.8)])
def test_the_average_is_what_validation_sees_and_what_is_left(network, decay, compared):
    """Its decay rises as (1 + step) / (10 + step) up to the one given: 0.3 is reached at once, 0.999 never here."""
    without = ({"freeze.0.average": None}, {"freeze.0.average": 0.5}, {"freeze.0.epochs": 2})
    found, expected = compared(network, [{"train": "all", "epochs": 3, "average": decay}], SGD, without=without)
    assert found.lines[0, 0]["val"]["loss"] == pytest.approx(expected.lines[0, 0]["val"]["loss"], rel=1e-5)


def test_statistics_are_averaged_and_counts_are_taken_over(compared, assert_counted):
    phases = [{"train": "all", "epochs": 2, "average": 0.9}]
    found, _ = compared("normalised", phases, ADAMW, without=({"freeze.0.average": None}, {"freeze.0.norm": "frozen"}))
    assert_counted(found, two=5 + 12)


def test_the_average_with_frozen_groups_and_frozen_normalisation(compared):
    phases = [{"train": ["two", "head"], "epochs": 2, "average": 0.9, "norm": "frozen"}]
    compared("normalised", phases, ADAMW, without=({"freeze.0.average": None}, {"freeze.0.norm": "train"}))


def test_each_phase_averages_anew_from_the_average_before(compared):
    """The next phase starts at the averages with the optimizer's state; the decay rises anew."""
    phases = [
        {"train": ["two", "three", "head"], "epochs": 2, "average": 0.7},
        {"train": "all", "epochs": 2, "average": 0.9},
        {"train": "all", "epochs": 1},
    ]
    without = ({"freeze.0.average": None}, {"freeze.1.average": None}, {"freeze.1.optimizer_state": "reset"}, {"freeze.2.average": 0.9})
    compared("plain", phases, ADAMW, without=without)


def test_until_and_plateau_judge_the_average_and_restore_it(compared):
    until = {"metric": "val.loss", "patience": 5, "min_delta": 0.0, "max_epochs": 40}
    phases = [{"train": "all", "until": until, "average": 0.9}]
    options = {"name": "sgd", "lr": 0.05, "schedule": "plateau"}
    without = ({"freeze.0.average": None}, {"optimizer.schedule": "constant"})
    found, _ = compared("normalised", phases, options, without=without, seed=1)
    [(epochs, best)] = found.lengths
    assert best < epochs == best + 5
    assert found.lines[0, best - 1]["lr"]["head"] == pytest.approx(0.005)  # the best came after the rate fell


def test_statistics_are_estimated_for_the_average(compared):
    phases = [{**ALL, "average": 0.8, "reestimate_norm": True}]
    compared("normalised", phases, ADAMW, without=({"freeze.0.average": None}, {"freeze.0.reestimate_norm": False}))


def test_l2_sp_with_normalisation_and_an_average(compared):
    """The penalty draws scales and shifts back too, and statistics not at all."""
    transfer = {"type": "model", "method": "l2sp", "alpha": 0.2}
    without = ({"transfer.alpha": 0.0}, {"transfer.beta": 0.0}, {"freeze.0.average": None})
    compared("normalised", [{**ALL, "average": 0.8}], {"name": "sgd", "lr": 0.05}, transfer={**transfer, "beta": 0.02}, without=without)
