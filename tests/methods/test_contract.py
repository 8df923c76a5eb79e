"""What the contract of a method promises, held to account by methods in local plugin files, as a user would write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from xfer.backends.backend import Batch
from xfer.backends.torch.backend import TorchBackend
from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.ops.initial import draw, head_start
from xfer.plan.model_map import PIXELS
from xfer.recipe.loader import read

SIDE, BATCH, CLASSES = 32, 8, 3
SQUEEZENET, RESNET = "torchvision/squeezenet1_1", "torchvision/resnet18"  # without and with batch normalisation
N_FEATURES = 512  # of both
LAST = {"train": ["features.12", "head"], "epochs": 1}


@pytest.fixture
def place(mine: Callable[..., Any]) -> Any:
    return mine(model=SQUEEZENET, lr=1e-3, load=load_file)


def source_of(model: str) -> dict[str, torch.Tensor]:
    """The tensors of a source with `weights: none`: drawn from the seed."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, model.partition("/")[2])()
    return {name: value for name, value in network.state_dict().items() if not name.startswith(("fc.", "classifier."))}


class Bench:
    """A network and its method in their first phase, with batches of noise."""

    def __init__(self, file: Path) -> None:
        self.plan = compile_plan(read(file))
        self.phase = self.plan.phases[0]
        self.network = TorchBackend().build(self.plan)
        self.network.begin_phase(self.phase, steps_per_epoch=4, class_weights=None)
        self.method: Any = self.network.parts.method

    def train(self, n_batches: int = 1) -> list[float]:
        """The losses of the first of the method's steps."""
        place, random = self.phase.input, np.random.default_rng(1)
        batches = []
        for number in range(n_batches):
            rows = random.integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
            inputs = rows if place.cut == PIXELS else self.network.compute(rows, start=PIXELS, end=place.cut, pooled=place.pooled)
            batches.append(Batch(np.arange(BATCH) + BATCH * number, inputs, np.arange(BATCH) % CLASSES))
        return self.network.train(batches, epoch=0, first_step=0, scale=1.0).losses

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.named.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# (a) tensors of its own, trained in turn with the network

CRITIC = '''
from xfer.methods.method import Method, OwnTensor, Step
from xfer.ops import arrays

xfer_plugins = {}


class Adversary(Method):
    """A critic tells images of class 0 from the others by their features; the network learns the classes, and to hide that one."""

    type = "model"

    def __init__(self, *, weight: float = 0.5):
        self.weight, self.seen = weight, []

    def tensors(self, facts):
        return OwnTensor("critic.weight", (1, facts.features), fan_in=facts.features), OwnTensor("critic.bias", (1,))

    def steps(self):
        return Step("critic", self.criticise, ("method.critic",)), Step("network", self.hide, ("network", "head"))

    def error(self, seen, features):
        """Logistic loss, with log(1 + e^-x) as a softmax over (x, 0)."""
        self.watch(seen)
        margin = arrays.matmul(features, arrays.transpose(seen.own["critic.weight"])) + seen.own["critic.bias"]
        pair = arrays.concat([margin, arrays.zeros_like(margin)], 1)
        is_first = arrays.reshape(arrays.one_hot(seen.labels, 3)[:, 0], (-1, 1))
        return -arrays.reduce_mean(arrays.reduce_sum(arrays.log_softmax(pair) * arrays.concat([is_first, 1 - is_first], 1), 1))

    def criticise(self, seen):
        return self.error(seen, arrays.stop_gradient(seen.features))

    def hide(self, seen):
        return seen.task_loss() + self.error(seen, arrays.reverse_gradient(seen.features, self.weight))

    def watch(self, seen):
        """What a step finds: the one before it made it so."""
        parts = {"own": seen.own, "trained": seen.trained, "head": seen.head}
        found = {f"{part}/{name}": value.detach().clone() for part, values in parts.items() for name, value in values.items()}
        self.seen.append((seen.progress, found))


xfer_plugins = {"methods": {"mine": Adversary}}
'''
OWN = {"method.critic.weight", "method.critic.bias"}
LAST_LAYERS = {f"features.12.{part}.{kind}" for part in ("squeeze", "expand1x1", "expand3x3") for kind in ("weight", "bias")}
HEAD = {"head.output.weight", "head.output.bias"}


def test_own_tensors_are_in_the_plan(place):
    plan = compile_plan(read(place.recipe(CRITIC, [LAST, {"train": "head", "epochs": 1}])))
    assert [(tensor.name, tensor.shape, tensor.kind) for tensor in plan.method.tensors] == [
        ("method.critic.weight", (1, N_FEATURES), "parameter"),
        ("method.critic.bias", (1,), "parameter"),
    ]
    assert plan.method.groups == ("method.critic",)
    source = source_of(SQUEEZENET)
    for phase, layers in zip(plan.phases, (LAST_LAYERS, set()), strict=True):
        assert phase.train[-1] == "method.critic"
        assert set(phase.trainable) == layers | HEAD | OWN
        assert not OWN & set(phase.frozen)
        assert phase.learning_rates["method.critic"] == 1e-3
        assert phase.trainable_parameters == sum(source[name].numel() for name in layers) + (N_FEATURES + 1) * (CLASSES + 1)
    assert plan.total_parameters == sum(value.numel() for value in source.values()) + (N_FEATURES + 1) * (CLASSES + 1)


def test_own_tensors_start_as_they_say(place):
    named = Bench(place.recipe(CRITIC, [LAST])).tensors()
    drawn = draw("method.critic.weight", (1, N_FEATURES), fan_in=N_FEATURES, seed=0)
    assert np.array_equal(named["method.critic.weight"].numpy(), drawn)
    assert named["method.critic.bias"].tolist() == [0.0]
    other = Bench(place.recipe(CRITIC, [LAST])).tensors()
    assert changed(named, other) == set()


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "weight_decay": 0.1}, {"name": "sgd", "momentum": 0.9}])
def test_each_step_updates_only_what_it_names(place, optimizer):
    """Momentum and weight decay too leave alone what a step does not name."""
    bench = Bench(place.recipe(CRITIC, [LAST], optimizer=optimizer))
    before = bench.tensors()
    bench.train(3)
    seen = bench.method.seen
    assert [progress for progress, _ in seen] == [step / 4 for step in (0, 0, 1, 1, 2, 2)]
    states = [found for _, found in seen]
    critic = {"own/critic.weight", "own/critic.bias"}
    network = {f"trained/{name}" for name in LAST_LAYERS} | {"head/output.weight", "head/output.bias"}
    assert set(states[0]) == critic | network
    turns = [changed(one, other) for one, other in zip(states, states[1:], strict=False)]
    assert turns == [critic, network, critic, network, critic]
    assert changed(before, bench.tensors()) == LAST_LAYERS | HEAD | OWN


def test_a_critic_alone_learns_to_tell_and_a_network_hides_it(place):
    """The first step's loss is the critic's: it falls where the network does not answer, and the opposite loss drives it up."""
    losses = {}
    for weight in (0.0, 100.0):
        bench = Bench(place.recipe(CRITIC, [LAST], options={"weight": weight}, optimizer={"lr": 3e-3}))
        losses[weight] = [bench.train()[0] for _ in range(30)]  # of one batch, again and again
    assert np.mean(losses[0.0][-5:]) < 0.9 * losses[0.0][0]
    assert np.mean(losses[100.0][-5:]) > np.mean(losses[0.0][-5:]) + 0.1


def test_a_step_with_nothing_to_update_in_a_phase_is_left_out(place):
    """A method does not know the schedule: while only the head trains, the network has nothing that could move."""
    method = CRITIC.replace('("network", "head")', '("network",)')
    bench = Bench(place.recipe(method, [{"train": "head", "epochs": 1}]))
    before = bench.tensors()
    bench.train(2)
    assert changed(before, bench.tensors()) == OWN


def test_a_step_that_updates_what_there_is_not(place):
    found = place.faults(place.recipe(CRITIC.replace('("method.critic",)', '("method.critc",)'), [LAST]))
    assert [fault.message for fault in found] == [
        "method mine: its step 'critic' updates 'method.critc'; there is everything, head, method.critic, network"
    ]
    assert [fault.path for fault in found] == ["transfer.method"]


def test_own_tensors_survive_a_kill(place):
    phases = [{"train": "head", "epochs": 2}, {"train": ["features.12", "head"], "epochs": 14}]
    file = place.recipe(CRITIC, phases, runtime={"checkpoint": 3}, optimizer={"name": "adamw", "lr": 1e-3, "average": 0.9})
    place.finish("run", str(file), "--out", "whole", "--quiet")

    state, progress = place.kill_after(8, "run", str(file), "--out", "killed", "--quiet", out="killed")
    assert (progress["phase"], progress["finished"]) == (1, False)
    for name in sorted(OWN):
        assert {f"model/{name}", f"average/{name}", f"optimizer/{name}/exp_avg", f"optimizer/{name}/step"} <= set(state)
    before = state["model/method.critic.weight"]

    (place.folder / "mine.py").unlink()  # the bundle keeps it
    place.finish("run", "--resume", "killed", "--quiet")
    assert place.numbers("killed") == place.numbers("whole")
    one, other = place.exported("killed"), place.exported("whole")
    assert set(one) >= OWN
    assert changed(one, other) == set()
    assert not np.array_equal(one["method.critic.weight"].numpy(), before)


def test_a_run_with_own_tensors_is_a_source_and_can_be_evaluated(place):
    place.run(place.recipe(CRITIC, [LAST]))
    assert run(["eval", "bundle"]) == 0
    plain = {"type": "model", "method": "finetune"}
    again = place.recipe(CRITIC, [{"train": "head", "epochs": 1}], model="run:bundle", transfer=plain, source={"weights": "DEFAULT"})
    _, saved = place.run(again, out="again")
    before = place.exported("bundle")
    assert set(before) - set(saved) == OWN
    assert {name for name in saved if not torch.equal(saved[name], before[name])} == HEAD


# (b) a teacher, and taps

DELTA = '''
from xfer.methods.method import Method
from xfer.ops import arrays


class Delta(Method):
    """The distance of feature maps to the source's own, without attention (Li et al. 2019, "DELTA", equation 4)."""

    type = "model"
    teacher = True

    def __init__(self, *, weight: float = 1.0, first: str = "stage1"):
        self.weight, self.first, self.seen = weight, first, []

    def taps(self):
        return self.first, "stage2"

    def tensors(self, facts):
        self.shapes = dict(facts.taps)
        return ()

    def loss(self, seen):
        away = {tap: arrays.reduce_sum(arrays.square(seen.taps[tap] - seen.teacher.taps[tap])) for tap in self.taps()}
        kept = {"requires_grad": any(seen.teacher.taps[tap].requires_grad for tap in self.taps()) or seen.teacher.features.requires_grad}
        kept |= {"away": {tap: float(value.detach()) for tap, value in away.items()}}
        kept |= {"shapes": {tap: tuple(seen.taps[tap].shape) for tap in self.taps()}}
        kept |= {"teacher": {tap: seen.teacher.taps[tap].clone() for tap in self.taps()}, "features": seen.teacher.features.clone()}
        kept |= {"same": float(arrays.reduce_sum(arrays.square(seen.features - seen.teacher.features)).detach())}
        self.seen.append(kept)
        return seen.task_loss() + self.weight * sum(away.values())


xfer_plugins = {"methods": {"mine": Delta}}
'''
UPPER = {"train": ["stage2", "stage3", "head"], "epochs": 2}


def test_taps_are_cuts_in_the_plan(place):
    plan = compile_plan(read(place.recipe(DELTA, [{"train": "all", "epochs": 1}])))
    assert plan.method.taps == {"stage1": "features.4", "stage2": "features.7"}
    assert plan.method.teacher


@pytest.mark.parametrize(
    ("train", "first", "expected"),
    [
        ("head", "stage1", "features.4"),  # nothing below the head trains: still the taps must be computed
        (["features.12", "head"], "stage1", "features.4"),
        (["stage2", "head"], "stage1", "features.4"),
        (["features.4", "head"], "stage1", "features.3"),
        (["features.0", "features.12", "head"], "stage1", "pixels"),
        (["features.12", "head"], "features.0", "features.0"),
    ],
)
def test_a_phase_starts_at_or_below_the_first_tap(place, train, first, expected):
    plan = compile_plan(read(place.recipe(DELTA, [{"train": train, "epochs": 1}], options={"first": first})))
    assert (plan.phases[0].input.cut, plan.phases[0].input.pooled) == (expected, False)


def test_the_teachers_rows_are_the_sources_own(place):
    """A later phase starts below what an earlier one trained, or the teacher would see what the trained network makes."""
    plan = compile_plan(read(place.recipe(DELTA, [{"train": ["features.0", "head"], "epochs": 1}, {"train": "head", "epochs": 1}])))
    assert [phase.input.cut for phase in plan.phases] == ["pixels", "pixels"]


@pytest.mark.parametrize("train", ["all", ["features.12", "head"], ["stage2", "head"], "head"])
def test_at_the_first_step_teacher_and_network_are_the_same(place, train):
    bench = Bench(place.recipe(DELTA, [{"train": train, "epochs": 1}]))
    bench.train(3)
    first, *_, last = bench.method.seen
    assert first["away"] == {"stage1": 0.0, "stage2": 0.0}
    assert first["same"] == 0.0
    assert first["shapes"] == {tap: (BATCH, *shape) for tap, shape in bench.method.shapes.items()}
    lowest = {"all": 1, "head": 9}.get(train, 9) if isinstance(train, str) else {"features.12": 8, "stage2": 3}[train[0]]
    assert (last["away"]["stage1"] > 0) == (lowest == 1)
    assert (last["away"]["stage2"] > 0) == (lowest <= 3)
    assert (last["same"] > 0) == (lowest <= 8)


def test_taps_and_features_are_what_the_network_computes(place):
    """Against torchvision's own network, run by hand."""
    bench = Bench(place.recipe(DELTA, [{"train": "all", "epochs": 1}], source={"preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1]}}))
    bench.train()
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1().eval()
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        maps = [x := layer(x) for layer in network.features]  # pooling belongs to the group before it
    (seen,) = bench.method.seen
    torch.testing.assert_close(seen["teacher"]["stage1"], maps[5])
    torch.testing.assert_close(seen["teacher"]["stage2"], maps[8])
    torch.testing.assert_close(seen["features"], maps[-1].mean((2, 3)))


def test_the_teacher_never_changes(place):
    bench = Bench(place.recipe(DELTA, [{"train": "all", "epochs": 1}], optimizer={"lr": 1e-2}, options={"weight": 0.0}))
    teacher = bench.network.parts.teacher.network
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    source = source_of(SQUEEZENET)
    assert {name for name, value in source.items() if not torch.equal(before[name], value)} == set()
    start = bench.tensors()
    bench.train(1)
    bench.train(1)  # the same batch again
    assert set(source) <= changed(start, bench.tensors())
    assert changed(before, dict(teacher.state_dict())) == set()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    first, second = bench.method.seen
    assert not first["requires_grad"]
    assert second["same"] > 0
    assert changed({**first["teacher"], "features": first["features"]}, {**second["teacher"], "features": second["features"]}) == set()


def test_the_teacher_s_maps_hold_the_network_nearer_to_the_source(place):
    """SGD: the distance's gradient grows with the distance, and one that is held moves only along what the maps don't show."""
    sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0}
    moved = {}
    for weight in (0.0, 0.003):
        options = {"weight": weight}
        result, saved = place.run(place.recipe(DELTA, [UPPER], options=options, optimizer=sgd), out=f"at-{weight}")
        assert result["phases"][0]["frozen_changed"] == 0
        moved[weight] = result["phases"][0]["distance"]
        assert set(OWN).isdisjoint(saved)
    assert all(moved[0.0][group] > 0 for group in ("features.6", "features.7"))
    for group in ("features.6", "features.7"):  # what lies below the last tap
        assert moved[0.003][group] < 0.9 * moved[0.0][group], moved


def test_the_teacher_is_the_source_after_a_resume_too(place):
    """The second phase's network has moved; the state of the first, put into a new network, leaves the teacher as it was."""
    phases = [{"train": "all", "epochs": 1}, {"train": "all", "epochs": 1}]
    file = place.recipe(DELTA, phases, optimizer={"lr": 1e-2}, options={"weight": 0.0})
    bench = Bench(file)
    bench.train(2)
    other = Bench(file)
    other.network.load_state(bench.network.state())
    assert changed(bench.tensors(), other.tensors()) == set()
    teacher = dict(other.network.parts.teacher.network.state_dict())
    source = source_of(SQUEEZENET)
    assert {name for name, value in source.items() if not torch.equal(teacher[name], value)} == set()
    other.train()
    assert other.method.seen[-1]["same"] > 0


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            "stage7",
            f"no group matches 'stage7'; {SQUEEZENET} has features, stage0, stage1, stage2, stage3, head; did you mean 'stage3'?",
        ),
        ("head", "the tap can't be put on the head; name a stage or a group"),
    ],
)
def test_a_tap_that_names_nothing(place, first, message):
    (fault,) = place.faults(place.recipe(DELTA, [UPPER], options={"first": first}))
    assert (fault.path, str(fault).partition("transfer.method: ")[2]) == ("transfer.method", message)
    assert run(["run", "recipe.yaml", "--out", "bundle"]) == 2
    assert not (place.folder / "bundle").exists()


def test_a_tap_behind_the_head(place):
    (fault,) = place.faults(place.recipe(DELTA, [{"train": "head", "epochs": 1}], options={"at": "stage1"}))
    assert (fault.path, fault.message) == ("transfer.at", "method mine looks at 'stage2', which lies behind the head's place 'features.4'")


# (c) the head stays as it was drawn

HYPOTHESIS = '''
from xfer.methods.method import Method


class Hypothesis(Method):
    """The features learn to suit a head that stays as it is (as in Liang et al. 2020, SHOT)."""

    type = "model"
    freezes_head = %s


xfer_plugins = {"methods": {"mine": Hypothesis}}
'''


def test_a_method_that_freezes_the_head_may_leave_it_out_of_the_schedule(place):
    result, saved = place.run(place.recipe(HYPOTHESIS % True, [{"train": ["features.11", "features.12"], "epochs": 1}]))
    drawn = head_start([(name, tuple(saved[name].shape)) for name in ("head.output.weight", "head.output.bias")], seed=0)
    assert [name for name, value in drawn.items() if not np.array_equal(saved[name].numpy(), value)] == []
    source = source_of(SQUEEZENET)
    moved = {name for name, value in source.items() if not torch.equal(saved[name], value)}
    assert moved == {name for name in source if name.startswith(("features.11.", "features.12."))}
    (phase,) = result["phases"]
    assert (phase["frozen_tensors"], phase["frozen_changed"]) == (len(source) - len(moved) + len(HEAD), 0)


def test_any_other_method_may_not(place):
    (fault,) = place.faults(place.recipe(HYPOTHESIS % False, [{"train": "features.12", "epochs": 1}]))
    assert fault.message == "no phase trains the head, so its random start would be the result; add 'head' to train"


# (d) statistics that follow the batches

REWRITES = '''
from xfer.methods.method import Method


class Rewrites(Method):
    """Batch normalisation everywhere takes the target's statistics (Li et al. 2016, AdaBN) while the schedule runs."""

    type = "model"
    rewrites_statistics = %s


xfer_plugins = {"methods": {"mine": Rewrites}}
'''
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("train", ["head", ["layer4.1", "head"]])
def test_statistics_of_frozen_groups_move_and_their_weights_do_not(place, train):
    result, saved = place.run(place.recipe(REWRITES % True, [{"train": train, "epochs": 2}], model=RESNET))
    source = source_of(RESNET)
    moved = {name for name, value in source.items() if not torch.equal(saved[name], value)}
    statistics = {name for name in source if name.endswith(STATISTICS)}
    assert len(statistics) == 60
    trained = {name for name in source if train != "head" and name.startswith("layer4.1.")}
    assert moved == statistics | trained
    (phase,) = result["phases"]
    assert phase["input"]["cut"] == "conv1"  # bn1 is the first of them
    assert (phase["frozen_tensors"], phase["frozen_changed"]) == (len(set(source) - statistics - trained), 0)


def test_rewritten_statistics_are_those_of_a_network_in_train_mode(place):
    """torchvision's own network, left in train mode for the same two steps: frozen weights, and statistics that follow."""
    bench = Bench(place.recipe(REWRITES % True, [{"train": "head", "epochs": 1}], model=RESNET))
    bench.train(2)
    torch.manual_seed(0)
    network = torchvision.models.resnet18().train()
    random, preprocess = np.random.default_rng(1), bench.plan.source.preprocess
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        for _ in range(2):
            pixels = torch.from_numpy(random.integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
            network((pixels / 255 - mean) / std)
    expected = {name: value for name, value in network.state_dict().items() if name.endswith(STATISTICS)}
    assert {name: value.item() for name, value in expected.items() if value.ndim == 0} == {
        name: value.item() for name, value in bench.network.named.items() if name.endswith("num_batches_tracked")
    }
    for name, value in expected.items():
        torch.testing.assert_close(bench.network.named[name], value, rtol=1e-4, atol=1e-5)


def test_a_method_that_does_not_rewrite_them_leaves_them(place):
    """So that what moved above did so by the declaration."""
    _, saved = place.run(place.recipe(REWRITES % False, [{"train": ["layer4.1", "head"], "epochs": 1}], model=RESNET))
    source = source_of(RESNET)
    moved = {name for name, value in source.items() if not torch.equal(saved[name], value)}
    assert moved == {name for name in source if name.startswith("layer4.1.")}


def test_a_phase_after_one_that_rewrote_statistics_reads_what_it_left(place):
    """The stored rows of the second phase are not those of the source: it starts below the first statistics again."""
    phases = [{"train": ["layer4.1", "head"], "epochs": 1}, {"train": "head", "epochs": 1}]
    plan = compile_plan(read(place.recipe(REWRITES % True, phases, model=RESNET)))
    assert [phase.input.cut for phase in plan.phases] == ["conv1", "conv1"]
    for phase in plan.phases:
        held = set(phase.frozen) | set(phase.trainable)
        assert not any(name.endswith(STATISTICS) for name in held)
