"""Training together, in processes of their own that TF_CONFIG connects, against one process that takes the same batches whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from xfer.backends.backend import Batch
from xfer.backends.tensorflow.team import join, place_of
from xfer.errors import UsageError, XferError

WORKER = Path(__file__).with_name("team_worker.py")
NETWORKS = Path(__file__).parents[2] / "engine" / "small_keras.py"
SIDE, SECONDS = 32, 900
SIZES = (8, 8, 5, 1)  # that two workers, or three, can't halve; one that they can't even share
SGD, ADAM = {"name": "sgd", "lr": 0.02}, {"name": "adam", "lr": 1e-3}
TENTH_OF_A_STEP = 1e-4  # of Adam, which moves a weight by its rate, however small and ill-determined the gradient is
EVERYTHING = {"train": "all", "epochs": 2}
CRITIC = '''
from xfer.methods.method import Method, OwnTensor, Step
from xfer.ops import arrays


class Adversary(Method):
    """A critic learns to tell classes by the features; the network learns them, and to be in the critic's way."""

    type = "model"

    def tensors(self, facts):
        return (OwnTensor("critic.weight", (facts.classes, facts.features), fan_in=facts.features),)

    def steps(self):
        return Step("critic", self.criticise, ("method.critic",)), Step("network", self.hide, ("network", "head"))

    def error(self, seen, features):
        found = arrays.log_softmax(arrays.matmul(features, arrays.transpose(seen.own["critic.weight"])))
        return -arrays.reduce_mean(arrays.reduce_sum(found * arrays.one_hot(seen.labels, 3), 1))

    def criticise(self, seen):
        return self.error(seen, arrays.stop_gradient(seen.features))

    def hide(self, seen):
        return seen.task_loss() + self.error(seen, arrays.reverse_gradient(seen.features, 0.3))


xfer_plugins = {"methods": {"critic": Adversary}}
'''


class Cases:
    """Writes recipes, runs the workers, and reads what they left."""

    def __init__(self, folder: Path, free_ports: Callable[[int], list[int]]) -> None:
        self.folder, self.free_ports, self.given = folder, free_ports, []
        np.savez(folder / "images.npz", images=np.zeros((30, SIDE, SIDE, 3), np.uint8), labels=np.arange(30) % 3)
        (folder / "critic.py").write_text(CRITIC)

    def add(self, name: str, phase: dict[str, Any], recipe: dict[str, Any] | None = None, **case: Any) -> None:
        """`recipe` stands over sections of the recipe, `case` for fields of the worker's Case."""
        content = {
            "source": {"model": "small/batch_norm", "weights": "none"},
            "target": {"dataset": "arrays", "path": str(self.folder / "images.npz"), "image_size": SIDE, "batch_size": 8},
            "transfer": {"type": "model"},
            "freeze": [phase],
            "runtime": {"precision": "float32", "device": "cpu"},
            "plugins": [str(NETWORKS), str(self.folder / "critic.py")],
            **(recipe or {}),
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        self.given.append({"name": name, "recipe": f"{name}.yaml", "sizes": SIZES, **case})

    def start(self, *sizes: int) -> list[subprocess.Popen[str]]:
        """The processes of each team in `sizes`, all at a time."""
        (self.folder / "cases.json").write_text(json.dumps(self.given))
        started = []
        for size in sizes:
            ports = ",".join(map(str, self.free_ports(size)))
            for rank in range(size):
                command = [sys.executable, str(WORKER), str(self.folder / "cases.json"), str(rank), str(size), ports]
                env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
                started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started

    def run(self, *sizes: int) -> Cases:
        processes = self.start(*sizes)
        for process in processes:
            try:
                told = process.communicate(timeout=SECONDS)[0]
            finally:
                if process.poll() is None:
                    for each in processes:
                        each.kill()
            assert process.returncode == 0, told
        return self

    def found(self, name: str, rank: int, size: int) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}-{rank}-of-{size}.npz") as arrays:
            return dict(arrays)

    def compare(self, name: str, size: int, *, within: float, losses: float = 1e-5) -> None:
        """Records equal, but for rounding; states within an absolute tolerance; and training moved what it should have."""
        together, alone = self.found(name, 0, size), self.found(name, 0, 1)
        assert together.keys() == alone.keys()
        for counted in ("counts", "correct"):
            np.testing.assert_array_equal(together[counted], alone[counted])
        np.testing.assert_allclose(together["losses"], alone["losses"], rtol=losses)
        assert len(set(alone["losses"].tolist())) == len(alone["losses"]) > 2
        for key, expected in alone.items():
            np.testing.assert_allclose(together[key], expected, rtol=0, atol=within, err_msg=key)

    def assert_ranks_agree(self, name: str, size: int) -> None:
        """To the bit."""
        first, *others = ({key: value.tobytes() for key, value in self.found(name, rank, size).items()} for rank in range(size))
        assert [other == first for other in others] == [True] * (size - 1)


@pytest.fixture(scope="module")
def make_cases(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Callable[[str], Cases]:
    return lambda name: Cases(tmp_path_factory.mktemp(name), free_ports)


def add_frozen(cases: Cases) -> None:
    phase = {**EVERYTHING, "norm": "frozen", "clip_norm": 0.5, "label_smoothing": 0.1, "class_weights": "balanced"}
    cases.add("frozen", phase, {"optimizer": SGD}, epochs=2, class_weights=(0.5, 1.0, 3.0), begins="disturbed")


def add_train(cases: Cases) -> None:
    phase = {**EVERYTHING, "average": 0.9, "norm_momentum": 0.2}
    cases.add("train", phase, {"optimizer": ADAM}, epochs=2)


@pytest.fixture(scope="module")
def two(make_cases) -> Cases:
    """Two workers, and one process."""
    cases = make_cases("two")
    add_frozen(cases)
    add_train(cases)
    return cases.run(2, 1)


def test_with_norm_frozen_two_workers_are_one_process(two):
    """With balanced classes, clipping, and batches that can't be halved; one worker had other weights before rank 0's were broadcast."""
    two.compare("frozen", 2, within=1e-6)
    two.assert_ranks_agree("frozen", 2)
    assert two.found("frozen", 0, 2)["counts"].tolist() == [*SIZES, *SIZES]


def test_with_norm_train_statistics_are_those_of_the_global_batch(two):
    two.compare("train", 2, within=TENTH_OF_A_STEP)
    two.assert_ranks_agree("train", 2)
    statistics = [key for key in two.found("train", 0, 2) if key.startswith("state/model/") and "moving_" in key]
    assert len(statistics) >= 16


def test_between_steps(two):
    first, second = (two.found("exchanged", rank, 2) for rank in (0, 1))
    for kind in ("float32", "float64", "int64"):
        np.testing.assert_array_equal(first[kind], np.full((2, 3), 3, kind))
        assert first[kind].dtype == kind
    assert first["told"].tolist()[:2] == ["", b"rank 0".hex()]
    assert len(first["told"][2]) == 18
    assert {key: value.tobytes() for key, value in first.items()} == {key: value.tobytes() for key, value in second.items()}
    assert first["x"].tobytes() == np.array([-0.0, np.nan, 1e-45], np.float32).tobytes()
    assert (first["n"].shape, first["n"].item(), first["empty"].shape) == ((), 3, (0, 2))
    np.testing.assert_array_equal(second["t"], np.arange(6.0).reshape(2, 3).T)
    assert "other" not in second
    assert first["nothing"].shape == (0, 4)


@pytest.mark.parametrize("name", ["plain", "masked"])
def test_batch_normalisation_of_parts_is_that_of_the_whole(two, name):
    """What it computes, the gradients that reach a part's rows from all parts, and what is kept: to the bit on both ranks."""
    parts, whole = [two.found("layer", rank, 2) for rank in (0, 1)], two.found("layer", 0, 1)
    for rows in ("y", "slope"):
        joined = np.concatenate([part[f"{name}/{rows}"] for part in parts])
        np.testing.assert_allclose(joined, whole[f"{name}/{rows}"], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(sum(part[f"{name}/gamma"] for part in parts), whole[f"{name}/gamma"], rtol=1e-4, atol=1e-3)
    for kept in ("mean", "variance"):
        np.testing.assert_allclose(parts[0][f"{name}/{kept}"], whole[f"{name}/{kept}"], rtol=1e-5)
        assert parts[0][f"{name}/{kept}"].tobytes() == parts[1][f"{name}/{kept}"].tobytes()


@pytest.fixture(scope="module")
def many(make_cases) -> Cases:
    """Two workers, three, and one process."""
    cases = make_cases("many")
    add_frozen(cases)
    add_train(cases)
    cases.add("statistics", EVERYTHING, {"optimizer": SGD}, statistics=True)
    cases.add("resumed", {**EVERYTHING, "average": 0.9, "class_weights": "balanced"}, {"optimizer": ADAM}, epochs=2, begins="resumed",
              class_weights=(0.5, 1.0, 3.0))  # fmt: skip
    head = {"head": {"hidden": [16], "dropout": 0.3}, "optimizer": {"name": "adamw", "lr": 0.01}}
    cases.add("head", {"train": "head", "epochs": 2}, head, epochs=2)
    cases.add("critic", EVERYTHING, {"transfer": {"type": "model", "method": "critic"}, "optimizer": {**SGD, "momentum": 0.9}})
    half, calm = {"runtime": {"precision": "bfloat16", "device": "cpu"}, "optimizer": SGD}, {**EVERYTHING, "norm": "frozen"}
    cases.add("half", calm, half, precision="float16", scale=2.0**10)
    cases.add("overflow", calm, half, precision="float16", scale=2.0**26, epochs=2)
    cases.add("dropout", EVERYTHING, {"source": {"model": "small/dropout", "weights": "none"}, "optimizer": SGD}, dropout=True)
    return cases.run(2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("name", "within"), [
    ("frozen", 1e-6), ("train", TENTH_OF_A_STEP), ("statistics", 1e-5), ("resumed", TENTH_OF_A_STEP), ("head", 1e-6), ("critic", 1e-5),
    ("half", 2e-2),
])  # fmt: skip
def test_workers_are_one_process(many, name, within, size):
    many.compare(name, size, within=within, losses=2e-3 if name == "half" else 1e-5)
    many.assert_ranks_agree(name, size)


@pytest.mark.slow
def test_a_step_that_overflows_is_left_out_by_all(many):
    """The scale was too large at first: all halve it and go on alike, also where only one's part overflows."""
    for size in (2, 3):
        many.assert_ranks_agree("overflow", size)
        found = many.found("overflow", 0, size)
        assert 2.0**15 < float(found["state/scaler/scale"]) < 2.0**26
        assert found["losses"][len(SIZES)] < found["losses"][0]
        assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_dropout_in_the_network_is_drawn_for_each_part(many, size):
    """So it is not that of one process; but the ranks agree on what came of it."""
    many.assert_ranks_agree("dropout", size)
    together, alone = many.found("dropout", 0, size)["losses"], many.found("dropout", 0, 1)["losses"]
    assert np.abs(together - alone)[0] > 1e-3
    np.testing.assert_allclose(together, alone, rtol=0.8)


@pytest.mark.slow
def test_a_lost_worker_is_told_at_once(make_cases):
    """By an exception that says so, in a process that lives on."""
    cases = make_cases("lost")
    cases.add("lost", {**EVERYTHING, "norm": "frozen"}, {"optimizer": SGD}, quits=True)
    stays, goes = cases.start(2)
    try:
        told = stays.communicate(timeout=SECONDS)[0]
        assert goes.wait(SECONDS) == 9
    finally:
        stays.kill()
        goes.kill()
    assert stays.returncode == 1, told
    assert "tensorflow.python.framework.errors_impl.UnavailableError" in told


def test_what_a_part_is_of_its_batch():
    labels, weights = np.array([0, 2, 2, 1, 0]), np.array([0.5, 1.0, 3.0], np.float32)
    rows, inputs = np.arange(5), np.zeros((5, 2))
    part = Batch(rows[:2], inputs[:2], labels[:2], share=0.4, labels_all=labels)
    assert place_of(part, weights) == {"share": 0.4, "growth": 2.5, "labels_weigh": pytest.approx(8.0 * 0.4)}
    assert place_of(part, None) == {"share": 0.4, "growth": 2.5, "labels_weigh": 0.0}
    whole = Batch(rows, inputs, labels, share=1 / 8, labels_all=labels)  # that each of eight ranks computes
    assert place_of(whole, weights) == {"share": 0.125, "growth": 1.0, "labels_weigh": 8.0}


@pytest.mark.parametrize(("config", "said"), [
    (None, "None of 0"), ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, "0 of 1"),
])  # fmt: skip
def test_a_worker_whose_surroundings_say_something_else(monkeypatch, config, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(XferError) as caught:
        join(1, 2, device="cpu", threads=None)
    assert caught.value.message == f"this process can't be worker 1 of 2: it is worker {said} in TF_CONFIG"
    assert caught.value.hint == (
        "TensorFlow joins its workers once in the life of a process: start each in a process of its own, with its own TF_CONFIG"
    )


def test_a_card_by_its_number_is_no_worker_s(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}))
    with pytest.raises(UsageError) as caught:
        join(1, 2, device="cuda:1", threads=None)
    assert caught.value.message == "runtime.device: 'cuda:1' is a card of one machine, and every worker is given its own"
    assert caught.value.hint == "say cuda, or leave it to auto"
