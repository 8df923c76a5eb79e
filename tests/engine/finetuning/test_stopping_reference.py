"""When a phase stops, which weights it leaves, and when plateau lowers the rate: whole runs against the float64 loop of conftest.py."""

from __future__ import annotations

import pytest
import torch

SGD = {"name": "sgd", "lr": 0.1}
ADAMW = {"name": "adamw", "lr": 0.02}


def stops(metric, patience, max_epochs, min_delta=0.0):
    return {"metric": metric, "patience": patience, "min_delta": min_delta, "max_epochs": max_epochs}


def best_of(found, metric, phase=0):
    """The epoch, from 1, with the first best value that validation had."""
    values = [line["val"][metric] for (index, _), line in found.lines.items() if index == phase]
    return values.index(min(values) if metric == "loss" else max(values)) + 1


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_until_stops_after_patience_and_restores_the_best(metric, compared):
    """Prechelt 1998, "Early stopping - but when?", section 2.2: so many epochs in turn without a better one. A loss is better below,
    an accuracy above, and one that is only as good is not better."""
    until = stops(f"val.{metric}", patience=3, max_epochs=30)
    other = "accuracy" if metric == "loss" else "loss"
    without = ({"freeze.0.until.patience": 5}, {"freeze.0.until.metric": f"val.{other}"})
    found, _ = compared("plain", [{"train": "all", "until": until}], ADAMW, without=without)
    [(epochs, best)] = found.lengths
    assert best == best_of(found, metric)
    assert 1 < best < epochs == best + 3 < 30


def test_min_delta(compared):
    """A smaller gain than min_delta is none, and the value that it is measured against stays: gains that are small add up."""
    phases = [{"train": "all", "until": stops("val.loss", patience=3, max_epochs=30, min_delta=0.03)}]
    without = ({"freeze.0.until.min_delta": 0.0}, {"freeze.0.until.min_delta": 0.01})
    found, _ = compared("plain", phases, {"name": "adamw", "lr": 0.003}, without=without)
    [(epochs, best)] = found.lengths
    losses = [line["val"]["loss"] for line in found.lines.values()]
    assert epochs == best + 3 < 30
    assert min(losses) < losses[best - 1]  # a later epoch was better, by too little
    assert all(before - after < 0.03 for before, after in zip(losses, losses[1:best], strict=False))  # and none by enough at once


def test_max_epochs_ends_a_phase_that_still_gets_better(compared):
    until = stops("val.loss", patience=5, max_epochs=3)
    found, _ = compared("plain", [{"train": "all", "until": until}], {**SGD, "lr": 0.01}, without=({"freeze.0.until.max_epochs": 4},))
    assert found.lengths == [(3, 3)]


def test_max_epochs_with_the_best_before_the_end(compared):
    until = stops("val.loss", patience=20, max_epochs=12)
    found, _ = compared("plain", [{"train": "all", "until": until}], ADAMW, without=({"freeze.0.until.max_epochs": 2},))
    [(epochs, best)] = found.lengths
    assert best < epochs == 12


def test_a_schedule_spans_max_epochs(compared):
    phases = [{"train": "all", "until": stops("val.loss", patience=2, max_epochs=20)}]
    options = {**ADAMW, "schedule": "cosine", "warmup_epochs": 1.0}
    found, _ = compared("plain", phases, options, without=({"optimizer.schedule": "constant"}, {"freeze.0.until.max_epochs": 40}))
    assert found.lengths[0][0] < 20


def test_each_phase_has_a_best_of_its_own(compared):
    """The second phase goes on from the first one's best weights, with the state that its last step left, and begins without a best."""
    phases = [
        {"train": ["three", "head"], "until": stops("val.loss", patience=2, max_epochs=25)},
        {"train": "all", "until": stops("val.accuracy", patience=4, max_epochs=25), "lr": 0.003},
    ]
    without = ({"freeze.1.optimizer_state": "reset"}, {"freeze.0.until.patience": 3}, {"freeze.1.until.patience": 1})
    found, _ = compared("plain", phases, ADAMW, without=without)
    assert found.lengths[0][0] == found.lengths[0][1] + 2
    assert found.lengths[1][1] == best_of(found, "accuracy", phase=1)


def test_until_restores_statistics_too(compared, assert_counted):
    """Those of normalisation layers are of the best epoch, as the weights are."""
    until = stops("val.loss", patience=2, max_epochs=25)
    found, _ = compared("normalised", [{"train": "all", "until": until}], ADAMW, without=({"freeze.0.until.patience": 4},))
    [(epochs, best)] = found.lengths
    assert best < epochs
    assert_counted(found, one=5 + 6 * best)


# plateau


def test_plateau_divides_the_rate_by_ten_after_three_epochs_without_a_better_loss(compared):
    """As torch.optim.lr_scheduler.ReduceLROnPlateau(factor=0.1, patience=2, threshold=0)."""
    options = {**ADAMW, "schedule": "plateau"}
    found, _ = compared("plain", [{"train": "all", "epochs": 14}], options, without=({"optimizer.schedule": "constant"},))
    rates = [line["lr"]["head"] for line in found.lines.values()]
    assert rates == pytest.approx(expected_rates(found, 0.02))
    assert len({round(rate, 9) for rate in rates}) >= 2


def expected_rates(found, rate):
    """By torch's own scheduler, from the losses that the run had."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2, threshold=0.0, eps=0.0)
    rates = []
    for line in found.lines.values():
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(line["val"]["loss"])
    return rates


def test_plateau_begins_anew_in_each_phase(compared):
    phases = [{"train": ["two", "three", "head"], "epochs": 9}, {"train": "all", "epochs": 4, "lr": 0.005, "warmup_epochs": 1.0}]
    options = {"name": "adamw", "lr": 0.05, "schedule": "plateau"}
    found, _ = compared("plain", phases, options, without=({"optimizer.schedule": "constant"},))
    assert found.lines[0, 8]["lr"]["head"] < 0.05 / 5
    assert [found.lines[1, epoch]["lr"]["head"] for epoch in (0, 1)] == pytest.approx([0.005 / 6, 0.005])


def test_plateau_with_until(compared):
    """Plateau looks at the loss whatever `until` does; the rate falls, the phase goes on, and the best weights come after that."""
    phases = [{"train": "all", "until": stops("val.accuracy", patience=5, max_epochs=40)}]
    options = {"name": "adamw", "lr": 0.05, "schedule": "plateau"}
    found, _ = compared("plain", phases, options, without=({"optimizer.schedule": "constant"}, {"freeze.0.until.patience": 2}))
    [(epochs, best)] = found.lengths
    assert epochs == best + 5 < 40
    assert found.lines[0, best - 1]["lr"]["head"] == pytest.approx(0.005)
