"""The contract of a method on TensorFlow, where a step is a graph: by the methods of test_contract.py, on small Keras networks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from xfer import plugins
from xfer.backends.backend import Batch
from xfer.backends.tensorflow.backend import TensorflowBackend, seeded
from xfer.backends.tensorflow.graph import named_variables
from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.ops.initial import draw
from xfer.plan.model_map import PIXELS
from xfer.recipe.loader import read

SIDE, BATCH, CLASSES = 32, 8, 3
NETWORKS = Path(__file__).parents[1] / "engine" / "small_keras.py"
small_keras: Any = sys.modules[plugins.load_local(NETWORKS.read_text(), stem=NETWORKS.stem)]
PLAIN, NORMED = "small/plain", "small/batch_norm"
LAST = {"train": ["late", "head"], "epochs": 1}
N_FEATURES = {PLAIN: 20, NORMED: 24}


@pytest.fixture
def place(mine: Callable[..., Any]) -> Any:
    return mine(model=PLAIN, lr=1e-2, load=load_file, plugins=(str(NETWORKS),))


def source_network(model: str) -> keras.Model:
    """The network of a source with `weights: none`: drawn from the seed."""
    with seeded(0):
        return small_keras.NETWORKS[model.partition("/")[2]]()


def source_of(model: str) -> dict[str, np.ndarray]:
    tensors = {name: variable.numpy() for name, variable in named_variables(source_network(model)).items()}
    return {name: value for name, value in tensors.items() if not name.startswith("fc/")}


class Bench:
    """A network and its method in their first phase, with batches of noise."""

    def __init__(self, file: Path) -> None:
        self.plan = compile_plan(read(file))
        self.phase = self.plan.phases[0]
        self.network = TensorflowBackend().build(self.plan)
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

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: variable.numpy() for name, variable in self.network.named.items()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if value.tobytes() != after[name].tobytes()}


# what a step finds, told from inside the graph: `show` is run by the graph, at that moment of the step

SHOWING = '''
import numpy as np
import tensorflow as tf


def show(kept, **found):
    """Appends the tensors' values to `kept`."""
    names, tensors = list(found), list(found.values())
    tf.numpy_function(lambda *values: kept.append({name: np.array(value) for name, value in zip(names, values)}), tensors, [])
'''

# (a) tensors of its own, trained in turn with the network

CRITIC = (
    SHOWING
    + '''
from xfer.methods.method import Method, OwnTensor, Step
from xfer.ops import arrays


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
        parts = {"own": seen.own, "trained": seen.trained, "head": seen.head}
        show(self.seen, progress=seen.progress, **{f"{part}:{name}": v for part, values in parts.items() for name, v in values.items()})
        margin = arrays.matmul(features, arrays.transpose(seen.own["critic.weight"])) + seen.own["critic.bias"]
        pair = arrays.concat([margin, arrays.zeros_like(margin)], 1)
        is_first = arrays.reshape(arrays.one_hot(seen.labels, 3)[:, 0], (-1, 1))
        return -arrays.reduce_mean(arrays.reduce_sum(arrays.log_softmax(pair) * arrays.concat([is_first, 1 - is_first], 1), 1))

    def criticise(self, seen):
        return self.error(seen, arrays.stop_gradient(seen.features))

    def hide(self, seen):
        return seen.task_loss() + self.error(seen, arrays.reverse_gradient(seen.features, self.weight))


xfer_plugins = {"methods": {"mine": Adversary}}
'''
)
OWN = {"method.critic.weight", "method.critic.bias"}
LATE = {"late/kernel", "late/bias"}
HEAD = {"head.output.weight", "head.output.bias"}


@pytest.mark.parametrize("optimizer", [
    {"name": "adamw", "weight_decay": 0.1},
    pytest.param({"name": "sgd", "momentum": 0.9}, marks=pytest.mark.slow),
])  # fmt: skip
def test_each_step_updates_only_what_it_names(place, optimizer):
    """Momentum and weight decay too leave alone what a step does not name; own tensors start as they say."""
    bench = Bench(place.recipe(CRITIC, [LAST], optimizer=optimizer))
    before = bench.tensors()
    drawn = draw("method.critic.weight", (1, N_FEATURES[PLAIN]), fan_in=N_FEATURES[PLAIN], seed=0)
    assert np.array_equal(before["method.critic.weight"], drawn)
    assert before["method.critic.bias"].tolist() == [0.0]
    bench.train(3)
    seen = bench.method.seen
    assert [float(found.pop("progress")) for found in seen] == [step / 4 for step in (0, 0, 1, 1, 2, 2)]
    critic = {"own:critic.weight", "own:critic.bias"}
    network = {f"trained:{name}" for name in LATE} | {"head:output.weight", "head:output.bias"}
    assert set(seen[0]) == critic | network
    turns = [changed(one, other) for one, other in zip(seen, seen[1:], strict=False)]
    assert turns == [critic, network, critic, network, critic]
    assert changed(before, bench.tensors()) == LATE | HEAD | OWN


def test_a_critic_alone_learns_to_tell_and_a_network_hides_it(place):
    """The first step's loss is the critic's: it falls where the network does not answer, and the opposite loss drives it up."""
    losses = {}
    for weight in (0.0, 100.0):
        bench = Bench(place.recipe(CRITIC, [LAST], options={"weight": weight}, optimizer={"lr": 3e-2}))
        losses[weight] = [bench.train()[0] for _ in range(60)]  # of one batch, again and again
    assert np.mean(losses[0.0][-5:]) < 0.9 * losses[0.0][0]
    assert np.mean(losses[100.0][-5:]) > np.mean(losses[0.0][-5:]) + 0.1


def test_a_step_with_nothing_to_update_in_a_phase_is_left_out(place):
    """A method does not know the schedule: while only the head trains, the network has nothing that could move. Many batches go
    through one graph then, and each of the method's steps through it in turn."""
    method = CRITIC.replace('("network", "head")', '("network",)')
    bench = Bench(place.recipe(method, [{"train": "head", "epochs": 1}]))
    before = bench.tensors()
    bench.train(5)
    assert changed(before, bench.tensors()) == OWN
    assert [float(found["progress"]) for found in bench.method.seen] == pytest.approx([n / 4 for n in range(5) for _ in range(2)])
    states = [{name: value for name, value in found.items() if name.startswith("own:")} for found in bench.method.seen]
    turns = [bool(changed(one, other)) for one, other in zip(states, states[1:], strict=False)]
    assert turns == [True, False] * 4 + [True]


@pytest.mark.slow
def test_own_tensors_survive_a_kill(place):
    phases = [{"train": "head", "epochs": 2}, {"train": ["late", "head"], "epochs": 60}]
    file = place.recipe(CRITIC, phases, runtime={"checkpoint": 3}, optimizer={"name": "adamw", "lr": 1e-3, "average": 0.9})
    place.finish("run", str(file), "--out", "whole", "--quiet")

    state, progress = place.kill_after(20, "run", str(file), "--out", "killed", "--quiet", out="killed")
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
    assert not np.array_equal(one["method.critic.weight"], before)


@pytest.mark.slow
def test_a_run_with_own_tensors_is_a_source_and_can_be_evaluated(place):
    place.run(place.recipe(CRITIC, [LAST]))
    assert run(["eval", "bundle"]) == 0
    plain = {"type": "model", "method": "finetune"}
    again = place.recipe(CRITIC, [{"train": "head", "epochs": 1}], model="run:bundle", transfer=plain, source={"weights": "DEFAULT"})
    _, saved = place.run(again, out="again")
    before = place.exported("bundle")
    assert set(before) - set(saved) == OWN
    assert {name for name in saved if not np.array_equal(saved[name], before[name])} == HEAD


# (b) a teacher, and taps

DELTA = (
    SHOWING
    + '''
from xfer.methods.method import Method
from xfer.ops import arrays


class Delta(Method):
    """The distance of feature maps to the source's own, without attention (Li et al. 2019, "DELTA", equation 4)."""

    type = "model"
    teacher = True

    def __init__(self, *, weight: float = 1.0):
        self.weight, self.seen = weight, []

    def taps(self):
        return "stage0", "stage1"

    def tensors(self, facts):
        self.shapes = dict(facts.taps)
        return ()

    def loss(self, seen):
        away = {tap: arrays.reduce_sum(arrays.square(seen.taps[tap] - seen.teacher.taps[tap])) for tap in self.taps()}
        same = arrays.reduce_sum(arrays.square(seen.features - seen.teacher.features))
        taught = {f"teacher {tap}": seen.teacher.taps[tap] for tap in self.taps()}
        show(self.seen, same=same, **away, **taught, features=seen.teacher.features)
        return seen.task_loss() + self.weight * sum(away.values())


xfer_plugins = {"methods": {"mine": Delta}}
'''
)


@pytest.mark.parametrize(("model", "train", "lowest"), [
    (PLAIN, "all", 0),
    (PLAIN, ["middle_2", "head"], 1),
    pytest.param(PLAIN, ["late", "head"], 2, marks=pytest.mark.slow),
    pytest.param(PLAIN, "head", 3, marks=pytest.mark.slow),
    pytest.param("small/layer_norm", "all", 0, marks=pytest.mark.slow),
])  # fmt: skip
def test_at_the_first_step_teacher_and_network_are_the_same(place, model, train, lowest):
    """Of a network without batch statistics, exactly; after it they part above what trains."""
    bench = Bench(place.recipe(DELTA, [{"train": train, "epochs": 1}], model=model))
    bench.train(3)
    first, *_, last = bench.method.seen
    assert (first["stage0"], first["stage1"], first["same"]) == (0.0, 0.0, 0.0)
    assert {tap: first[f"teacher {tap}"].shape for tap in bench.method.shapes} == {
        tap: (BATCH, *shape) for tap, shape in bench.method.shapes.items()
    }
    assert (last["stage0"] > 0, last["stage1"] > 0, last["same"] > 0) == (lowest <= 0, lowest <= 1, lowest <= 2)


@pytest.mark.parametrize("model", [PLAIN, pytest.param(NORMED, marks=pytest.mark.slow)])
def test_the_teacher_never_changes_and_computes_what_keras_does(place, model):
    """In eval mode, while the network's own batch normalisation trains."""
    preprocess = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    bench = Bench(
        place.recipe(DELTA, [{"train": "all", "epochs": 1}], model=model, options={"weight": 0.0}, source={"preprocess": preprocess})
    )
    start = bench.tensors()
    bench.train(1)
    bench.train(1)  # the same batch again
    source = source_of(model)
    assert set(source) <= changed(start, bench.tensors())
    teacher = {name: v.numpy() for name, v in named_variables(bench.network.parts.teacher.network).items() if not name.startswith("fc/")}
    assert changed(source, teacher) == set()
    first, second = bench.method.seen
    assert second["same"] > 0
    taught = ("teacher stage0", "teacher stage1", "features")
    assert all(np.array_equal(first[name], second[name]) for name in taught)

    network = source_network(model)
    ends = {PLAIN: ("early_relu", "middle_2_relu", "dense"), NORMED: ("block_1_relu", "block_3_relu", "pool")}[model]
    x = np.random.default_rng(1).integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8).astype(np.float32) / 255
    expected = keras.Model(network.input, [network.get_layer(name).output for name in ends])(x, training=False)
    for name, value in zip(taught, expected, strict=True):
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_teacher_is_the_source_after_a_resume_too(place):
    """The second phase's network has moved; the state of the first, put into a new network, leaves the teacher as it was."""
    phases = [{"train": "all", "epochs": 1}, {"train": "all", "epochs": 1}]
    file = place.recipe(DELTA, phases, options={"weight": 0.0})
    bench = Bench(file)
    bench.train(2)
    other = Bench(file)
    other.network.load_state(bench.network.state())
    assert changed(bench.tensors(), other.tensors()) == set()
    teacher = {name: v.numpy() for name, v in named_variables(other.network.parts.teacher.network).items() if not name.startswith("fc/")}
    assert changed(source_of(PLAIN), teacher) == set()
    other.train()
    assert other.method.seen[-1]["same"] > 0


@pytest.mark.slow
def test_the_teacher_s_maps_hold_the_network_nearer_to_the_source(place):
    """SGD: the distance's gradient grows with the distance, and one that is held moves only along what the maps don't show."""
    sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0}
    moved = {}
    for weight in (0.0, 0.003):
        phases = [{"train": ["middle_2", "late", "head"], "epochs": 3}]
        result, _ = place.run(place.recipe(DELTA, phases, options={"weight": weight}, optimizer=sgd), out=f"at-{weight}")
        assert result["phases"][0]["frozen_changed"] == 0
        moved[weight] = result["phases"][0]["distance"]
    assert 0 < moved[0.003]["middle_2"] < 0.9 * moved[0.0]["middle_2"], moved


# (c) statistics that follow the batches

REWRITES = '''
from xfer.methods.method import Method


class Rewrites(Method):
    """Batch normalisation everywhere takes the target's statistics (Li et al. 2016, AdaBN) while the schedule runs."""

    type = "model"
    rewrites_statistics = %s


xfer_plugins = {"methods": {"mine": Rewrites}}
'''


@pytest.mark.parametrize("train", ["head", pytest.param(["block_3", "head"], marks=pytest.mark.slow)])
def test_statistics_of_frozen_groups_move_and_their_weights_do_not(place, train):
    """Those inside a composite layer, which itself is in eval mode, too."""
    result, saved = place.run(place.recipe(REWRITES % True, [{"train": train, "epochs": 2}], model=NORMED))
    source = source_of(NORMED)
    moved = {name for name, value in source.items() if not np.array_equal(saved[name], value)}
    statistics = {name for name in source if "moving_" in name}
    assert len(statistics) == 20
    trained = {name for name in source if train != "head" and name.startswith("block_3_")}
    assert moved == statistics | trained
    (phase,) = result["phases"]
    assert phase["input"]["cut"] == "pixels"  # the first of them is in the first group
    assert (phase["frozen_tensors"], phase["frozen_changed"]) == (len(set(source) - statistics - trained), 0)


def test_rewritten_statistics_are_those_of_a_network_whose_batch_norm_trains(place):
    """Keras' own layers, one by one, with batch normalisation alone in train mode: the dropout beside it stays off."""
    bench = Bench(place.recipe(REWRITES % True, [{"train": "head", "epochs": 1}], model=NORMED))
    bench.train(2)
    network, random, preprocess = source_network(NORMED), np.random.default_rng(1), bench.plan.source.preprocess
    inner = network.get_layer("inner")

    def called(layer: Any, x: Any) -> Any:
        if layer is not inner:
            return layer(x, training=isinstance(layer, keras.layers.BatchNormalization))
        return keras.ops.relu(inner.layer_norm(inner.norm(inner.conv(x), training=True)))

    for _ in range(2):
        pixels = random.integers(0, 255, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
        values = {network.input: ((pixels / 255 - preprocess.mean) / preprocess.std).astype(np.float32)}
        for layer in network.layers[1:]:
            read_from = layer.input
            given = [values[x] for x in read_from] if isinstance(read_from, list) else values[read_from]
            values[layer.output] = called(layer, given)
    for name, variable in named_variables(network).items():
        if "moving_mean" in name:
            np.testing.assert_allclose(bench.network.named[name].numpy(), variable.numpy(), rtol=1e-4, atol=1e-5)
        if "moving_variance" in name:  # torch's unbiased one: the share of each batch is n / (n - 1) larger
            added = bench.network.named[name].numpy() - 0.99**2
            assert np.all(added > variable.numpy() - 0.99**2)
            np.testing.assert_allclose(added, variable.numpy() - 0.99**2, rtol=0.02)


@pytest.mark.slow
def test_a_method_that_does_not_rewrite_them_leaves_them(place):
    """So that what moved above did so by the declaration."""
    _, saved = place.run(place.recipe(REWRITES % False, [{"train": ["block_3", "head"], "epochs": 1}], model=NORMED))
    source = source_of(NORMED)
    moved = {name for name, value in source.items() if not np.array_equal(saved[name], value)}
    assert moved == {name for name in source if name.startswith("block_3_")}
