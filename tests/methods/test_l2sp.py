"""L2-SP against its formula in numpy float64, against torch's own gradients and weight decay, and what it does to a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from xfer.backends.backend import Batch
from xfer.backends.seen import Computed, Look
from xfer.backends.torch.backend import TorchBackend
from xfer.compile.compiler import check
from xfer.methods.l2sp import L2SP, penalty
from xfer.recipe.loader import read

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 4)}
HEAD = {"output.weight": (3, 5), "output.bias": (3,)}


def draw(shapes, seed):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


WEIGHTS, START, HEADS = draw(SHAPES, 1), draw(SHAPES, 2), draw(HEAD, 3)
FEATURES, LABELS = np.random.default_rng(4).normal(size=(6, 5)), np.array([0, 1, 2, 2, 1, 0])


def look(weights=WEIGHTS, start=START, heads=HEADS):
    """A step's view over these numbers, in float64, with a linear head on fixed features; and the leaves that carry gradients."""
    trained = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in weights.items()}
    head = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in heads.items()}
    source = {name: torch.from_numpy(value.copy()) for name, value in start.items()}
    features = torch.from_numpy(FEATURES)
    logits = functional.linear(features, head["output.weight"], head["output.bias"]) if head else torch.zeros(6, 3).double()
    seen = Look(
        torch.from_numpy(LABELS),
        Computed(features, logits, {}),
        progress=0.0,
        tensors={"own": {}, "trained": trained, "source": source, "head": head},
        teach=lambda: pytest.fail("it has no teacher"),
        cross_entropy=functional.cross_entropy,
    )
    return seen, trained, head


def formula(weights, start, heads, alpha, beta):
    """Li, Grandvalet & Davoine 2018, equation 3, one number at a time."""
    total = 0.0
    for name in weights:
        for now, before in zip(weights[name].ravel(), start[name].ravel(), strict=True):
            total += alpha / 2 * (now - before) ** 2
    for name in heads:
        for now in heads[name].ravel():
            total += beta / 2 * now**2
    return total


def chances(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.01), (1.0, 0.0), (0.0, 1.0), (7.0, 3.0)])
def test_the_penalty_is_the_formula(alpha, beta):
    seen, _, _ = look()
    assert penalty(seen, alpha=alpha, beta=beta).item() == pytest.approx(formula(WEIGHTS, START, HEADS, alpha, beta), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.01), (1.0, 0.0), (0.0, 1.0)])
def test_its_gradient_is_that_of_the_formula(alpha, beta):
    seen, trained, head = look()
    penalty(seen, alpha=alpha, beta=beta).backward()
    # autograd over the formula as it stands in the paper
    written_out, other, other_head = look()
    pulled = sum((value - written_out.source[name]).pow(2).sum() for name, value in other.items())
    (alpha / 2 * pulled + beta / 2 * sum(value.pow(2).sum() for value in other_head.values())).backward()
    for ours, theirs in ((trained, other), (head, other_head)):
        for name, value in ours.items():
            torch.testing.assert_close(value.grad, theirs[name].grad, rtol=1e-12, atol=1e-12)
    # and its closed form
    for name, value in trained.items():
        np.testing.assert_allclose(value.grad.numpy(), alpha * (WEIGHTS[name] - START[name]), rtol=1e-12, atol=1e-14)
    for name, value in head.items():
        np.testing.assert_allclose(value.grad.numpy(), beta * HEADS[name], rtol=1e-12, atol=1e-14)


def test_the_loss_is_cross_entropy_with_the_penalty():
    seen, _, _ = look()
    logits = FEATURES @ HEADS["output.weight"].T + HEADS["output.bias"]
    expected = -np.log(chances(logits)[np.arange(6), LABELS]).mean() + formula(WEIGHTS, START, HEADS, 0.1, 0.01)
    assert L2SP().loss(seen).item() == pytest.approx(expected, rel=1e-12)  # the paper's values are the defaults


def test_nothing_is_lost_at_the_source():
    seen, _, _ = look(weights=START)
    assert penalty(seen, alpha=1e6, beta=0.0).item() == 0.0


def test_only_what_trains_is_counted():
    """While the head trains alone, the source has no say; with a head that is frozen, only the source has one."""
    alone, _, _ = look(weights={}, start={})
    assert penalty(alone, alpha=1.0, beta=2.0).item() == pytest.approx(formula({}, {}, HEADS, 1.0, 2.0), rel=1e-12)
    headless, _, _ = look(heads={})
    assert penalty(headless, alpha=1.0, beta=2.0).item() == pytest.approx(formula(WEIGHTS, START, {}, 1.0, 2.0), rel=1e-12)
    nothing, _, _ = look(weights={}, start={}, heads={})
    assert float(penalty(nothing, alpha=1.0, beta=2.0)) == 0.0


# whole runs

L2 = {"type": "model", "method": "l2sp"}
PLAIN = {"name": "sgd", "lr": 1e-2, "momentum": 0.0}


def test_what_is_frozen_costs_nothing(place):
    """In the real network: every tensor lies 0.001 beside the source, as if an earlier phase had moved it, and only one group trains."""
    plan = place.plan(freeze=[{"train": ["features.12", "head"], "epochs": 1}], transfer={**L2, "alpha": 0.7, "beta": 0.03})
    network, (phase,) = TorchBackend().build(plan), plan.phases
    with torch.no_grad():
        for name, tensor in network.named.items():
            if name.startswith("features."):
                tensor.add_(1e-3)
    network.begin_phase(phase, steps_per_epoch=1, class_weights=None)
    pixels = np.random.default_rng(1).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    rows = network.compute(pixels, start="pixels", end=phase.input.cut, pooled=phase.input.pooled)
    logits = network.logits(rows, start=phase.input.cut, pooled=phase.input.pooled).astype(np.float64)
    task = -np.log(chances(logits)[np.arange(6), LABELS]).mean()
    n_trained = sum(tensor.numel() for name, tensor in network.named.items() if name.startswith("features.12."))
    head = np.concatenate([network.named[f"head.{name}"].detach().double().flatten().numpy() for name in HEAD])
    record = network.train([Batch(np.arange(6), rows, LABELS)], epoch=0, first_step=0, scale=1.0)
    assert record.losses[0] == pytest.approx(task + 0.7 / 2 * n_trained * 1e-6 + 0.03 / 2 * (head @ head), rel=1e-5)


def test_a_strong_pull_keeps_the_network_near_the_source(place, distance_of):
    phases = [{"train": ["last 2 stages", "head"], "epochs": 10}]
    free = place.run("free", freeze=phases, optimizer=PLAIN)
    weak = place.run("weak", freeze=phases, optimizer=PLAIN, transfer={**L2, "alpha": 2.0, "beta": 0.0})
    held = place.run("held", freeze=phases, optimizer=PLAIN, transfer={**L2, "alpha": 50.0, "beta": 0.0})
    assert set(free.result["phases"][0]["distance"]) == {f"features.{n}" for n in (6, 7, 9, 10, 11, 12)}
    assert 0 < distance_of(held) < 0.2 * distance_of(free)
    assert distance_of(held) < distance_of(weak) < distance_of(free)
    for group, distance in held.result["phases"][0]["distance"].items():
        assert distance < free.result["phases"][0]["distance"][group]


def test_without_any_pull_it_is_plain_fine_tuning_to_the_bit(place):
    plain = place.run("plain")
    without = place.run("without", transfer={**L2, "alpha": 0.0, "beta": 0.0})
    assert all(torch.equal(value, without.tensors[name]) for name, value in plain.tensors.items())
    other = place.run("other", transfer=L2)
    assert not all(torch.equal(value, other.tensors[name]) for name, value in plain.tensors.items())


def test_beta_is_the_head_s_weight_decay(place):
    """torch's sgd couples its decay: the gradient of beta/2 · ||w||² is what it adds."""
    phases = [{"train": "head", "epochs": 4}]
    ours = place.run("ours", freeze=phases, transfer={**L2, "alpha": 5.0, "beta": 0.3})
    theirs = place.run("theirs", freeze=phases, optimizer={"name": "sgd", "lr": 1e-2, "weight_decay": 0.3})
    neither = place.run("neither", freeze=phases)
    for name in ("head.output.weight", "head.output.bias"):
        torch.testing.assert_close(ours.tensors[name], theirs.tensors[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(ours.tensors[name], neither.tensors[name], rtol=1e-3)


HOME = """
from xfer.methods.l2sp import penalty
from xfer.methods.method import Method


class Home(Method):
    type = "model"

    def loss(self, seen):
        return penalty(seen, alpha=10.0, beta=0.0) if "features.0.weight" in seen.trained else seen.task_loss()


xfer_plugins = {"methods": {"home": Home}}
"""


def test_the_pull_is_to_the_source_in_a_later_phase_too(place):
    """Not to what the phase before left: a phase of nothing but pull brings the network home, by 1 - lr · alpha with each step."""
    run = place.run(
        freeze=[{"train": ["features.12", "head"], "epochs": 2}, {"train": "all", "epochs": 4}],
        optimizer=PLAIN,
        transfer={"type": "model", "method": "home"},
        plugins=[place.plugin("home", HOME)],
    )
    away, back = (phase["distance"] for phase in run.result["phases"])
    steps = 4 * -(-sum(run.plan.data.counts["train"].values()) // 8)
    assert away["features.12"] > 1e-4
    assert back["features.12"] == pytest.approx(away["features.12"] * 0.9**steps, rel=1e-3)
    assert {distance for group, distance in back.items() if group != "features.12"} == {0.0}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": "strong"}, "transfer.alpha: must be a number, not 'strong'"),
        ({"gamma": 1}, "transfer.gamma: unknown key; method l2sp takes alpha, beta"),
    ],
)
def test_options_that_it_has_not(place, option, message):
    (found,) = check(read(place.recipe(transfer={**L2, **option})))
    assert str(found).endswith(message)
