"""SGD, Adam and AdamW against torch.optim over 50 steps in float32: each key, rates of groups, and state that goes from one to another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from xfer.backends.tensorflow.optimizer import PhaseOptimizer, clipped
from xfer.ops.schedules import factor
from xfer.plan.plan import OptimizerPlan, PhasePlan

N_STEPS, PER_EPOCH = 50, 5
SHAPES = {"body.kernel": (3, 3, 2, 4), "body.bias": (4,), "head.weight": (3, 7), "head.bias": (3,)}
GROUP_OF = {name: name.partition(".")[0] for name in SHAPES}
PLAIN: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant"}
# Relative to how far each tensor moved. A step's own rounding, and a beta that the kernel holds in float32, are all that may differ.
TOLERANCE = 2e-5


def phase_of(rates: dict[str, float] | None = None, **options: Any) -> PhasePlan:
    """Only what an optimizer reads of it."""
    plan = OptimizerPlan(**{**PLAIN, **options})
    shared = dict.fromkeys(("body", "head"), plan.lr)
    return PhasePlan.model_construct(optimizer=plan, epochs=N_STEPS // PER_EPOCH, until=None, learning_rates=rates or shared)


def start(names: Any = SHAPES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: drawn[name] for name in names}


def slopes(step: int, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a bowl around zero with noise: they depend on where the weights are, as in training."""
    random = np.random.default_rng(step + 1)
    return {name: (0.3 * value + random.normal(size=value.shape) * 0.5).astype(np.float32) for name, value in w.items()}


class Ours:
    """The optimizer in a graph, as the trainer runs it."""

    def __init__(self, phase: PhasePlan, w: dict[str, np.ndarray]) -> None:
        self.variables = {name: tf.Variable(value) for name, value in w.items()}
        self.optimizer = PhaseOptimizer(phase, self.variables, GROUP_OF, steps_per_epoch=PER_EPOCH)
        self.apply = tf.function(self.optimizer.apply, autograph=False, reduce_retracing=True)

    def step(self, step: int, gradients: dict[str, np.ndarray], *, scale: float = 1.0) -> None:
        multiplier = tf.constant(self.optimizer.multiplier(step, scale=scale), tf.float64)
        self.apply({name: tf.constant(value) for name, value in gradients.items()}, multiplier)

    @property
    def w(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.variables.items()}


class Torchs:
    """torch.optim and torch.nn.utils, used as anyone would."""

    def __init__(self, phase: PhasePlan, w: dict[str, np.ndarray]) -> None:
        plan, self.phase = phase.optimizer, phase
        self.parameters = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in w.items()}
        self.rates = [phase.learning_rates[GROUP_OF[name]] for name in w]
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(self.parameters.values(), self.rates, strict=True)]
        if plan.name == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)
        else:
            kind = torch.optim.AdamW if plan.name == "adamw" else torch.optim.Adam
            self.optimizer = kind(groups, plan.lr, betas=plan.betas, eps=plan.epsilon, weight_decay=plan.weight_decay)

    def step(self, step: int, gradients: dict[str, np.ndarray], *, scale: float = 1.0) -> None:
        plan, steps = self.phase.optimizer, N_STEPS
        multiplier = scale * factor(plan.schedule, step, steps=steps, warmup_steps=plan.warmup_epochs * PER_EPOCH)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier
        for name, parameter in self.parameters.items():
            parameter.grad = torch.from_numpy(gradients[name].copy()) if name in gradients else None
        if plan.clip_norm:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), plan.clip_norm)
        self.optimizer.step()

    @property
    def w(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy().copy() for name, parameter in self.parameters.items()}


def trained(one: Ours | Torchs, steps: range, *, only: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    for step in steps:
        gradients = slopes(step, one.w)
        one.step(step, gradients if only is None else {name: gradients[name] for name in only})
    return one.w


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        moved = np.abs(value - before[name]).max()
        assert moved > 0, name
        assert np.abs(found[name] - value).max() <= TOLERANCE * moved, name


CASES = {
    "sgd": {"name": "sgd"},
    "sgd without momentum": {"name": "sgd", "momentum": 0.0},
    "sgd, half the momentum": {"name": "sgd", "momentum": 0.5},
    "sgd with decay": {"name": "sgd", "weight_decay": 0.1},
    "sgd with decay, without momentum": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
    "adam": {"name": "adam"},
    "adam with decay": {"name": "adam", "weight_decay": 0.1},
    "adam, other betas": {"name": "adam", "betas": (0.8, 0.95)},
    "adam, large epsilon": {"name": "adam", "epsilon": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.0},
    "adamw with decay": {"name": "adamw", "weight_decay": 0.3},
    "adamw, large epsilon": {"name": "adamw", "weight_decay": 0.3, "epsilon": 0.1},
    "sgd clipped": {"name": "sgd", "clip_norm": 4.0},
    "adam clipped": {"name": "adam", "clip_norm": 4.0, "weight_decay": 0.1},
    "sgd, cosine": {"name": "sgd", "schedule": "cosine", "warmup_epochs": 1.5},
    "adamw, one cycle": {"name": "adamw", "schedule": "one_cycle", "weight_decay": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_are_torch_s(case):
    """With another rate for each group."""
    phase, before = phase_of({"body": 0.003, "head": 0.02}, **CASES[case]), start()
    found, expected = (trained(kind(phase, before), range(N_STEPS)) for kind in (Ours, Torchs))
    assert_same(found, expected, before)


def test_each_case_is_another_training():
    """Else a key could be without effect on both sides."""
    ends = {case: trained(Torchs(phase_of(**options), start()), range(N_STEPS))["body.kernel"].tobytes() for case, options in CASES.items()}
    assert len(set(ends.values())) == len(CASES) - 1  # adam and adamw are the same without decay
    assert ends["adam"] == ends["adamw"]


def test_the_scale_multiplies_all_rates():
    phase, before = phase_of({"body": 0.003, "head": 0.02}, name="sgd"), start()
    ours, theirs = Ours(phase, before), Torchs(phase, before)
    for step in range(6):
        for each in (ours, theirs):
            each.step(step, slopes(step, each.w), scale=0.1)
    assert_same(ours.w, theirs.w, before)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_what_has_no_gradient_is_left_alone(name):
    """A method's step names some tensors: momentum, decay and the count of steps of the others stand still."""
    phase, before = phase_of(name=name, weight_decay=0.1), start()
    ours, theirs = Ours(phase, before), Torchs(phase, before)
    head = ("head.weight", "head.bias")
    for first in (0, 10):
        for each in (ours, theirs):
            trained(each, range(first, first + 5))
            trained(each, range(first + 5, first + 10), only=head)
    assert_same(ours.w, theirs.w, before)
    states = ours.optimizer.state()
    assert states["head.weight/step"] == 20
    assert states["body.kernel/step"] == 10


def test_clipping_is_over_all_gradients_together():
    gradients = {name: value * 3 for name, value in slopes(0, start()).items()}
    norm = float(np.sqrt(sum(np.square(value.astype(np.float64)).sum() for value in gradients.values())))
    for limit in (norm / 10, norm * 2):
        parameters = [torch.nn.Parameter(torch.zeros(value.shape)) for value in gradients.values()]
        for parameter, value in zip(parameters, gradients.values(), strict=True):
            parameter.grad = torch.from_numpy(value.copy())
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        found = clipped({name: tf.constant(value) for name, value in gradients.items()}, limit)
        for parameter, (name, value) in zip(parameters, found.items(), strict=True):
            assert parameter.grad is not None
            np.testing.assert_allclose(value, parameter.grad.numpy(), rtol=1e-6)
            assert np.array_equal(value, gradients[name]) == (limit > norm)


def test_sparse_gradients_are_taken_whole():
    """Looking up rows of a table gives those rows' slopes alone; torch's dense optimizers move the others by their momentum too."""
    phase, table = phase_of(name="adam", clip_norm=1.0), np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    ours = PhaseOptimizer(phase, {"body.table": (variable := tf.Variable(table))}, {"body.table": "body"}, steps_per_epoch=PER_EPOCH)
    parameter = torch.nn.Parameter(torch.from_numpy(table.copy()))
    theirs = torch.optim.Adam([parameter], 0.02)
    for rows in ([0, 2, 2], [1, 2, 4], [0, 0, 0]):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(variable, rows) ** 3)
        slope = tape.gradient(loss, variable)
        assert isinstance(slope, tf.IndexedSlices)
        ours.apply({"body.table": slope}, tf.constant(1.0, tf.float64))
        theirs.zero_grad()
        (parameter[rows] ** 3).sum().backward()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        theirs.step()
    np.testing.assert_allclose(variable.numpy(), parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


# state


@pytest.mark.parametrize("options", [{"name": "sgd"}, {"name": "sgd", "momentum": 0.0}, {"name": "adam"}, {"name": "adamw"}],
                         ids=["sgd", "without momentum", "adam", "adamw"])  # fmt: skip
def test_saved_and_loaded_it_goes_on_to_the_same_bits(options):
    phase = phase_of(**options, weight_decay=0.1)
    whole = trained(Ours(phase, start()), range(N_STEPS))
    first = Ours(phase, start())
    middle = trained(first, range(20))
    saved = first.optimizer.state()
    held = {name: value.copy() for name, value in saved.items()}
    trained(first, range(20, 22))
    assert all(np.array_equal(saved[name], held[name]) for name in held)  # copies, not views of what goes on
    second = Ours(phase, middle)
    second.optimizer.load_state(saved)
    assert {name: value.tobytes() for name, value in trained(second, range(20, N_STEPS)).items()} == {
        name: value.tobytes() for name, value in whole.items()
    }


def test_names_of_its_state_are_torch_s():
    """So that both backends' checkpoints read alike."""
    fields = {"sgd": {"momentum_buffer", "step"}, "adam": {"exp_avg", "exp_avg_sq", "step"}}
    for name, expected in fields.items():
        ours = Ours(phase_of(name=name), start())
        assert ours.optimizer.state() == {}  # nothing was updated yet
        trained(ours, range(2))
        state = ours.optimizer.state()
        assert set(state) == {f"{tensor}/{field}" for tensor in SHAPES for field in expected}
        assert all(state[f"{tensor}/step"] == 2 for tensor in SHAPES)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_state_is_carried_by_name(name):
    """What stays keeps its state, what joins starts anew, what left is forgotten."""
    body, head = ("body.kernel", "body.bias"), ("head.weight", "head.bias")
    phase, before = phase_of(name=name, weight_decay=0.1), start()
    ends = []
    for kind in (Ours, Torchs):
        one = kind(phase, start(head))
        left = trained(one, range(7))
        whole = kind(phase, {**{part: before[part] for part in body}, **left})
        if isinstance(one, Ours) and isinstance(whole, Ours):
            whole.optimizer.load_state(one.optimizer.state() | {"gone.kernel/exp_avg": np.ones(3, np.float32)})
        if isinstance(one, Torchs) and isinstance(whole, Torchs):
            for part in head:
                whole.optimizer.state[whole.parameters[part]] = one.optimizer.state[one.parameters[part]]
        ends.append(trained(whole, range(7, 20)))
    assert_same(*ends, before)
    fresh = Ours(phase, {**{part: before[part] for part in body}, **left})
    assert np.abs(trained(fresh, range(7, 20))["head.weight"] - ends[0]["head.weight"]).max() > 1e-3


@pytest.mark.parametrize(("first", "second"), [("sgd", "adam"), ("adam", "sgd"), ("sgd", "adamw")])
def test_another_kind_takes_nothing(first, second):
    one = Ours(phase_of(name=first), start())
    left = trained(one, range(5))
    taking, fresh = Ours(phase_of(name=second), left), Ours(phase_of(name=second), left)
    taking.optimizer.load_state(one.optimizer.state())
    assert taking.optimizer.state() == {}
    assert {n: v.tobytes() for n, v in trained(taking, range(5)).items()} == {n: v.tobytes() for n, v in trained(fresh, range(5)).items()}
