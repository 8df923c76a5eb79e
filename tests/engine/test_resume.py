"""Fine-tuning that ends at any moment and goes on has, to the bit, the numbers of a run that was left alone.

A life ends in two ways. A listener in this process counts what it hears of, and stops or kills the run at a moment of its choice, dozens
of times a run. And real signals go to real processes, at chosen moments and, marked slow, at random ones.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from safetensors.numpy import load_file

from xfer.cli.main import run
from xfer.compile.compiler import compile_plan
from xfer.engine.bundle import Bundle
from xfer.engine.reporter import Silent
from xfer.engine.runner import Run
from xfer.engine.target import Target
from xfer.errors import InterruptedRun
from xfer.recipe.loader import read

NETWORK = '''
"""A source with what a resume may get wrong: batch statistics, and dropout inside the network."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.drop = nn.Dropout2d(0.2)

    def forward(self, x):
        return self.drop(torch.relu(self.norm(self.conv(x))))


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = Block(3, 8, 1), Block(8, 12, 2), Block(12, 16, 2), Block(16, 24, 1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(self.four(self.three(self.two(self.one(x)))).mean((2, 3)))


def build():
    return Dropping()
'''
ON_KERAS = '''
"""The same on Keras: composite layers, and groups of single ones."""

import keras


class Block(keras.layers.Layer):
    def __init__(self, n_out, stride, **options):
        super().__init__(**options)
        self.conv = keras.layers.Conv2D(n_out, 3, strides=stride, padding="same", use_bias=False, name="conv")
        self.norm, self.drop = keras.layers.BatchNormalization(momentum=0.9, name="norm"), keras.layers.SpatialDropout2D(0.2)

    def call(self, x, training=False):
        return self.drop(keras.ops.relu(self.norm(self.conv(x), training=training)), training=training)


def single_layers(x, name, n_out, stride):
    x = keras.layers.Conv2D(n_out, 3, strides=stride, padding="same", use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.SpatialDropout2D(0.2, name=f"{name}_drop")(keras.layers.ReLU(name=f"{name}_relu")(x))


def build():
    entry = keras.Input((16, 16, 3))
    x = Block(12, 2, name="two")(single_layers(entry, "one", 8, 1))
    x = Block(24, 1, name="four")(single_layers(x, "three", 16, 2))
    return keras.Model(entry, keras.layers.Dense(5, name="fc")(keras.layers.GlobalAveragePooling2D(name="pool")(x)))
'''
SOURCE = '''

class DroppingSource:
    backend, provider = "%s", "dropping"

    def library(self):
        return "dropping 1"

    def models(self):
        return ["small"]

    def build(self, name, *, pretrained, image_size=None):
        return build()

    def tags(self, name):
        return []

    def preprocess(self, name, tag):
        from xfer.plan.preprocess import Preprocess

        return Preprocess(resize=16, crop=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def adapt(self, name, tensors, *, image_size=None):
        return tensors

    def input_size(self, name):
        return 16


xfer_plugins = {"sources": {"dropping": DroppingSource}}
'''
NETWORKS = {"torch": NETWORK + SOURCE % "torch", "tensorflow": ON_KERAS + SOURCE % "tensorflow"}
PHASES = [
    {"train": "head", "until": {"metric": "val.loss", "patience": 2, "max_epochs": 12}, "lr": 1.0},
    {"train": ["three", "four", "head"], "until": {"metric": "val.loss", "patience": 2, "max_epochs": 12}, "average": 0.8, "lr": 0.01},
    {"train": "all", "epochs": 3, "layer_decay": 0.7, "schedule": "cosine", "clip_norm": 1.0, "reestimate_norm": True},
]
RECIPE = {
    "plugins": ["./dropping_network.py"],
    "source": {"model": "dropping/small", "weights": "none"},
    "target": {"dataset": "folder", "batch_size": 8, "augment": "standard", "splits": {"val": 0.3, "test": 0.25}},
    "transfer": {"type": "model"},
    "head": {"dropout": 0.2},
    "freeze": PHASES,
    "optimizer": {"name": "adamw", "lr": 0.01},
    "runtime": {"precision": "float32", "device": "cpu", "checkpoint": 1},
}
VIEWS = "target.augment={policy: standard, views: 2}"
STREAMED = "runtime.cache_budget=1B"
LATE = "runtime.checkpoint=1h"  # then only the ends of phases are saved
VARIANTS = {
    "random": (),
    "views": (VIEWS,),
    "streamed": (STREAMED,),
    "streamed views": (VIEWS, STREAMED),
    "seldom saved": ("runtime.checkpoint=7",),
    "plain": ("target.augment=none", "freeze.0.optimizer=sgd", "freeze.1.optimizer_state=reset", "freeze.2.average=0.5"),
}
QUICK = [
    ("stopped", "random"), ("stopped", "streamed views"), ("stopped", "plain"),
    ("killed", "random"), ("killed", "views"), ("killed", "streamed"), ("killed", "seldom saved"),
]  # fmt: skip
WRITTEN = ["ledger.jsonl", "predictions.parquet", "model/weights.safetensors", "model/labels.json", "model/preprocessing.json"]
Where = tuple[int, int, int]  # phase, epoch, step: what comes next


class Killed(BaseException):
    """The end of a life: nothing of ours catches it."""


class Countdown(Silent):
    """Ends the run at the `n`th thing that it hears of: asks it to stop, as SIGINT does, or is `rude`, as SIGKILL."""

    def __init__(self, n: int, *, rude: bool) -> None:
        self.left, self.rude = n, rude

    def stop(self) -> bool:
        self.left -= not self.rude
        return self.left <= 0 and not self.rude

    def advance(self, n: int) -> None:
        self._hear()

    def epoch(self, record: dict[str, Any]) -> None:
        self._hear()

    def _hear(self) -> None:
        self.left -= self.rude
        if self.left <= 0 and self.rude:
            raise Killed


class Watch(Silent):
    """Kills the run once its newest checkpoint is where it is wanted."""

    def __init__(self, bundle: Path, wanted: Callable[[Where], bool]) -> None:
        self.bundle, self.wanted = bundle, wanted

    def advance(self, n: int) -> None:
        at = where(self.bundle)
        if at is not None and self.wanted(at):
            raise Killed


def where(bundle: Path) -> Where | None:
    """Where the newest checkpoint lets a run go on."""
    for file in sorted((bundle / "checkpoints").glob("[0-9]*/progress.json"), reverse=True):
        try:
            found = json.loads(file.read_text())
        except FileNotFoundError:  # dropped meanwhile
            continue
        return (found["phase"] + 1, 0, 0) if found["finished"] else (found["phase"], found["epoch"], found["step"])
    return None


class Place:
    """The recipe in a folder of its own; undisturbed runs are made once for each set of overrides."""

    def __init__(self, workplace: Any, backend: str) -> None:
        self.backend = backend
        self.folder, self.cache, self.data, self.start = workplace.folder, workplace.cache, workplace.data, workplace.start
        self.whole: dict[tuple[str, ...], Path] = {}
        for name, other in (("blue", "green"), ("green", "red"), ("red", "blue")):
            for index in range(4):  # wrong labels, so that `until` has a reason to stop
                (self.data / name / f"{index:03d}.png").rename(self.data / other / f"not-{index}.png")
        (self.folder / "dropping_network.py").write_text(NETWORKS[backend])
        self.recipe = self.folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        self.places = (f"runtime.cache={self.cache}", f"target.path={self.data}")

    def begin(self, name: str, *overrides: str) -> Path:
        """A new bundle, with nothing done yet."""
        reading = read(self.recipe, (*self.places, *overrides))
        Bundle.create(self.folder / name, compile_plan(reading), recipe=reading.text, resolved=reading.text)
        return self.folder / name

    def live(self, bundle: Path, listener: Any = None, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """One life of a run."""
        opened = Bundle(bundle)
        try:
            return Run(opened, reporter=listener or Silent(), stop=stop).execute()
        finally:
            opened._held.close()  # as the end of a process does

    def undisturbed(self, *overrides: str) -> Path:
        if overrides not in self.whole:
            self.whole[overrides] = self.begin(f"whole {len(self.whole)}", *overrides)
            self.live(self.whole[overrides])
        return self.whole[overrides]

    def lives(
        self, name: str, *overrides: str, rude: bool, seed: int, longest: int = 12, between: Callable[[], None] = lambda: None
    ) -> list[Where | None]:
        """Ends a run after 1 to `longest` more things, again and again until it is through; returns where its lives ended."""
        random = np.random.default_rng(seed)
        bundle, ends = self.begin(name, *overrides), []
        while len(ends) < 500:
            countdown = Countdown(int(random.integers(1, longest + 1)), rude=rude)
            try:
                self.live(bundle, countdown, countdown.stop)
            except Killed:
                pass
            except InterruptedRun as error:
                result = json.loads((bundle / "result.json").read_text())
                told = (error.hint, result["status"], result["error"])
                assert told == (f"go on with: xfer run --resume {bundle}", "interrupted", error.message)  # noqa: PT017
            else:
                return ends
            ends.append(where(bundle))
            between()
        raise AssertionError(f"it never came to its end: {ends[-10:]}")

    def started(self, name: str, *overrides: str) -> subprocess.Popen[str]:
        """A process that begins a run."""
        process: subprocess.Popen[str] = self.start("run", str(self.recipe), *self.places, *overrides, "--out", name)
        return process

    def signalled(self, process: subprocess.Popen[str], how: signal.Signals, *, when: Callable[[], bool]) -> str:
        """Sends the signal at that moment, which must come before the process's end; returns its stderr."""
        while not when():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(how)
        _, err = process.communicate(timeout=300)
        assert process.returncode == (130 if how == signal.SIGINT else -how), err
        return err

    def resumed(self, name: str) -> None:
        """Resumes in a process and comes to the end."""
        ended(self.start("run", "--resume", name))

    def signalled_at(self, moments: Iterable[float], name: str, *overrides: str, how: signal.Signals) -> int:
        """A run in processes that get a signal so many seconds after they began to work; returns how many of them ended by it."""
        shutil.rmtree(self.cache, ignore_errors=True)
        result, n_ended = self.folder / name / "result.json", 0
        process = self.started(name, *overrides)
        for moment in moments:
            wait_for_work(process, result)
            time.sleep(moment)
            process.send_signal(how)
            _, err = process.communicate(timeout=300)
            if process.returncode == 0:  # it was through already, or as good as
                return n_ended
            assert process.returncode == (130 if how == signal.SIGINT else -how), err
            n_ended += 1
            process = self.start("run", "--resume", name)
        ended(process)
        return n_ended


def ended(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def wait_for_work(process: subprocess.Popen[str], result: Path) -> None:
    """Until this process has written its first result.json: before that there is nothing to lose, or no bundle yet."""
    born = time.time()
    while process.poll() is None and not (result.exists() and result.stat().st_mtime > born):
        time.sleep(0.005)


@pytest.fixture(scope="module", params=NETWORKS)
def place(make_workplace, tmp_path_factory, request) -> Iterator[Place]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Place(make_workplace(tmp_path_factory.mktemp("resume")), request.param)
    torch.set_num_threads(before)


@pytest.fixture
def everything(read_numbers) -> Callable[[Path], dict[str, Any]]:
    """All that a run may not lose: each epoch's metrics, the test's, the baselines, the phases, every exported file's bits."""

    def of(bundle: Path) -> dict[str, Any]:
        result = json.loads((bundle / "result.json").read_text())
        for phase in result["phases"]:
            for name in ("seconds", "images_per_second"):
                phase.pop(name)
            phase["input"].pop("mode")
        result["data"].pop("computed")
        files = {path.name: path.read_bytes() for path in (bundle / "model").iterdir()}
        predictions = pq.read_table(bundle / "predictions.parquet").to_pydict()
        parts = {name: result[name] for name in ("status", "error", "phases", "data")}
        bad = (bundle / "quarantine.csv").read_text()
        return {**read_numbers(bundle), **parts, "files": files, "predictions": predictions, "quarantine": bad}

    return of


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The first place of each part where they part: a whole comparison would print megabytes."""
    parts = sorted(found.keys() | expected.keys())
    return [name + first_difference(found.get(name), expected.get(name)) for name in parts if found.get(name) != expected.get(name)]


def first_difference(found: Any, expected: Any) -> str:
    """Where two different nested values part, and how: '[3].loss: 0.5, not 0.25'."""
    if isinstance(found, dict) and isinstance(expected, dict):
        key = next(key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key))
        return f".{key}{first_difference(found.get(key), expected.get(key))}"
    if isinstance(found, (list, bytes)) and type(found) is type(expected) and len(found) == len(expected):
        places = [index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
        return f"[{places[0]}]{first_difference(found[places[0]], expected[places[0]])} ({len(places)} of {len(found)})"
    return f": {str(found)[:60]}, not {str(expected)[:60]}"


def test_a_difference_is_named():
    one = {"lines": [{"loss": 0.5, "lr": {"head": 1.0}}, {"loss": 0.5}], "files": {"a": b"abc"}, "status": "finished"}
    other = {"lines": [{"loss": 0.5, "lr": {"head": 1.0}}, {"loss": 0.25}], "files": {"a": b"azc"}}
    told = ["files.a[1]: 98, not 122 (1 of 3)", "lines[1].loss: 0.5, not 0.25 (1 of 2)", "status: finished, not None"]
    assert (differing(one, one), differing(one, other)) == ([], told)


def test_the_recipe_is_what_the_tests_below_need(place, read_result):
    result = read_result(place.undisturbed())
    head, late, whole = result["phases"]
    assert 0 < head["best_epoch"] == head["epochs"] - 2 < 10  # by patience
    assert 1 < late["best_epoch"] == late["epochs"] - 2 < 10  # after it had learned
    assert (whole["epochs"], whole["best_epoch"]) == (3, None)
    assert [phase["input"]["cut"] for phase in result["phases"]] == ["pooled", "two", "pixels"]
    assert [phase["frozen_changed"] for phase in result["phases"]] == [0, 0, 0]
    assert set(whole["distance"]) == {"one", "two", "three", "four"}
    assert 0 < whole["distance"]["one"] < whole["distance"]["four"]
    assert result["baseline"]["probe"] != result["baseline"]["majority"]


# ended by the listener, again and again


@pytest.mark.parametrize(("how", "variant"), [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(("stopped", "killed"), VARIANTS)
])  # fmt: skip
def test_a_run_that_ends_again_and_again(place, everything, how, variant):
    name, seldom = f"{how} {variant}", variant == "seldom saved"
    ends = place.lives(name, *VARIANTS[variant], rude=how == "killed", seed=1, longest=20 if seldom else 12)
    assert {end[0] for end in ends if end} >= {0, 1, 2}
    assert any(end and end[2] for end in ends)  # inside an epoch
    assert len(set(ends)) > 4
    whole = place.undisturbed(*(() if seldom else VARIANTS[variant]))  # how often it is saved changes nothing
    assert differing(everything(place.folder / name), everything(whole)) == []


def test_a_run_that_is_saved_at_the_ends_of_phases_alone(place, everything):
    ends = place.lives("late", LATE, rude=True, seed=2, longest=60)
    assert {(1, 0, 0), (2, 0, 0)} <= {end for end in ends if end} <= {(1, 0, 0), (2, 0, 0), (3, 0, 0)}
    assert differing(everything(place.folder / "late"), everything(place.undisturbed())) == []


def test_the_cache_may_go_between_two_lives(place, everything):
    ends = place.lives("cacheless", rude=True, seed=1, longest=30, between=lambda: shutil.rmtree(place.cache))
    assert {end[0] for end in ends if end} >= {1, 2}
    assert differing(everything(place.folder / "cacheless"), everything(place.undisturbed())) == []


def test_killed_before_the_baselines_were_made(place, everything):
    bundle = place.begin("early", STREAMED)
    with pytest.raises(Killed):
        place.live(bundle, Countdown(1, rude=True))
    assert list((bundle / "checkpoints").iterdir()) == []
    place.live(bundle)
    assert differing(everything(bundle), everything(place.undisturbed(STREAMED))) == []


def test_the_baselines_outlive_the_source_s_weights(place, everything):
    """In the last phase nothing has the source's own features any more."""
    bundle = place.begin("baselines")
    with pytest.raises(Killed):
        place.live(bundle, Watch(bundle, lambda at: at > (2, 0, 1)))
    shutil.rmtree(place.cache)
    place.live(bundle)
    assert differing(everything(bundle), everything(place.undisturbed())) == []


@pytest.mark.parametrize("last", ["checkpoint", *WRITTEN])
def test_killed_while_the_end_was_written(place, everything, last):
    """After `last`, in the order of writing."""
    bundle = place.folder / f"end {last}".replace("/", " ")
    shutil.copytree(place.undisturbed(), bundle)
    for name in WRITTEN[WRITTEN.index(last) + 1 if last in WRITTEN else 0 :]:
        (bundle / name).unlink()
    result = json.loads((bundle / "result.json").read_text())
    (bundle / "result.json").write_text(json.dumps({**result, "status": "running", "metrics": {}, "baseline": {}, "phases": []}))
    place.live(bundle)
    assert differing(everything(bundle), everything(place.undisturbed())) == []
    openings = (bundle / "ledger.jsonl").read_text().splitlines()
    assert len(openings) == (1 if last == "checkpoint" else 2)  # the labels were looked at twice, and it says so


def test_what_could_not_be_read_is_still_known_after_the_last_phase(place, everything, draw):
    """Nothing reads a clean training image there."""
    data = draw(place.folder / "damaged", per_class=10)
    overrides = (f"target.path={data}", "target.max_bad=0.2", "freeze=[{train: all, epochs: 1}]")
    whole = place.begin("damaged whole", *overrides)
    target = Target.open(Bundle(whole).plan.data)
    names = [target.dataset.keys[target.rows(split)[0]] for split in ("train", "test")]
    for name in names:
        (data / name).write_bytes(b"")
    place.live(whole)
    assert [line.split(",")[0] for line in (whole / "quarantine.csv").read_text().splitlines()[1:]] == sorted(names)
    bundle = place.folder / "damaged"
    bundle = place.begin("damaged killed", *overrides)
    shutil.rmtree(bundle / "checkpoints")
    shutil.copytree(whole / "checkpoints", bundle / "checkpoints")
    for name in ("lock.json", "metrics.jsonl"):
        shutil.copy(whole / name, bundle / name)
    place.live(bundle)
    assert differing(everything(bundle), everything(whole)) == []


# checkpoints


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_says_how_many_checkpoints_stay(place, keep):
    bundle, seen = place.begin(f"keep {keep}", f"runtime.keep={keep}", "freeze=[{train: head, epochs: 3}]"), []

    class Counting(Silent):
        def advance(self, n: int) -> None:
            seen.append(len(list((bundle / "checkpoints").glob("[0-9]*"))))

    place.live(bundle, Counting())
    assert (max(seen), seen[-1]) == (keep, keep)
    assert len(list((bundle / "checkpoints").iterdir())) == keep + 1  # baselines.json too


def test_an_epoch_of_one_step_is_saved_too(place):
    bundle = place.begin("large batches", "target.batch_size=64", "freeze=[{train: head, epochs: 6}]")
    with pytest.raises(Killed):
        place.live(bundle, Watch(bundle, lambda at: at == (0, 3, 0)))


# stored and streamed


@pytest.mark.parametrize("overrides", [(), (VIEWS,)], ids=["random", "views"])
def test_stored_and_streamed_augmentation_are_the_same_run(place, everything, overrides):
    modes = {}
    for budget in ((), (STREAMED,)):
        phases = Bundle(place.undisturbed(*overrides, *budget)).plan.phases
        modes[budget] = {(phase.input.mode, phase.augment.mode) for phase in phases if phase.augment}
    assert modes == {(): {("stored", "stored")}, (STREAMED,): {("streamed", "streamed")}}
    assert differing(everything(place.undisturbed(*overrides, STREAMED)), everything(place.undisturbed(*overrides))) == []


def test_random_views_stored_views_and_clean_images_are_different_runs(place, everything):
    """Else the test above could not fail."""
    runs = [everything(place.undisturbed(*overrides))["files"] for overrides in ((), (VIEWS,), ("target.augment=none",))]
    assert [index for index, files in enumerate(runs) if files in runs[index + 1 :]] == []


def test_a_prefix_that_was_trained_has_a_store_of_its_own(place, everything):
    phases = "freeze=[{train: [four, head], epochs: 1}, {train: [two, head], epochs: 2}, {train: [four, head], epochs: 1}]"
    overrides = ("target.augment=none", phases)
    places = (*overrides, f"runtime.cache={place.folder / 'own cache'}")
    once = place.begin("trained prefix", *places)
    assert place.live(once)["data"]["computed"] == 4 * 60  # the baselines' features, and each phase's
    assert [phase.input.after_phase for phase in Bundle(once).plan.phases] == [None, None, 1]
    manifests = [json.loads(path.read_text()) for path in (place.folder / "own cache").glob("features/*/manifest.json")]
    first, last = (manifest["key"] for manifest in manifests if manifest["key"]["cut"] == "three")
    assert {name for name in first if first[name] != last[name]} == {"tensors"}
    again = place.begin("trained prefix again", *places)
    assert place.live(again)["data"]["computed"] == 0  # it trained to the same weights
    assert differing(everything(again), everything(once)) == []
    streamed = place.undisturbed(*overrides, STREAMED)
    assert {phase.input.mode for phase in Bundle(streamed).plan.phases} == {"streamed"}
    assert differing(everything(streamed), everything(once)) == []


# what a finished bundle is good for


def test_eval_and_predict_agree_with_the_run(place, read_result, capsys):
    bundle = place.folder / "evaluated"
    shutil.copytree(place.undisturbed(), bundle)
    assert run(["eval", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == read_result(bundle)["metrics"]["test"]
    table = pq.read_table(bundle / "predictions.parquet").to_pydict()
    assert run(["predict", str(bundle), str(place.data), "--json"]) == 0
    found = {entry["path"].removeprefix(f"{place.data}/"): entry for entry in json.loads(capsys.readouterr().out)["predictions"]}
    for path, label, probabilities in zip(table["path"], table["predicted"], table["probabilities"], strict=True):
        assert found[path]["label"] == label
        assert list(found[path]["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)


def test_a_run_as_source_starts_from_what_it_learned(place):
    first = place.undisturbed()
    head_alone = (f"source.model=run:{first}", "source.weights=DEFAULT", "target.augment=none", "freeze=[{train: head, epochs: 1}]")
    second = place.begin("from a run", *head_alone)
    place.live(second)
    one, two = (load_file(bundle / "model" / "weights.safetensors") for bundle in (first, second))
    kept = [name for name in one if not name.startswith("head.")]
    assert [name for name in kept if not np.array_equal(one[name], two[name])] == []
    assert len(kept) == {"torch": 24, "tensorflow": 20}[place.backend]  # Keras counts no batches


# real signals


def test_sigkill_right_after_a_phase_and_the_cache_is_gone(place, everything):
    bundle = place.folder / "sigkill late"
    place.signalled(place.started(bundle.name, LATE), signal.SIGKILL, when=lambda: where(bundle) is not None)
    assert where(bundle) in [(1, 0, 0), (2, 0, 0)]
    shutil.rmtree(place.cache)
    place.resumed(bundle.name)
    assert differing(everything(bundle), everything(place.undisturbed())) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_signal_inside_an_epoch(place, everything, read_result, how):
    bundle = place.folder / how.name
    err = place.signalled(place.started(bundle.name), how, when=lambda: (where(bundle) or (0, 0, 0)) > (1, 0, 1))
    ended_at = where(bundle) or (0, 0, 0)
    assert (1, 0, 1) < ended_at < (3, 0, 0)
    if how == signal.SIGINT:
        assert err.splitlines()[-2:] == [
            "error: stopped after the step was finished and saved",
            f"  go on with: xfer run --resume {bundle}",
        ]
        assert read_result(bundle)["status"] == "interrupted"
    place.resumed(bundle.name)
    assert (ended_at, differing(everything(bundle), everything(place.undisturbed()))) == (ended_at, [])


# real signals at random moments, on a real network with batch normalisation and stochastic depth


class Real:
    """Overrides that put EfficientNet-B0 into the recipe; references come from processes, and tell how long they worked."""

    def __init__(self, place: Place) -> None:
        model, weights = self._of_torch(place.folder) if place.backend == "torch" else self._of_keras(place.folder)
        self.place, self.made = place, dict[tuple[str, ...], tuple[Path, float]]()
        self.overrides = (
            f"source.model={model}", f"source.weights={weights}", "source.preprocess={resize: 40, crop: 32}",
            "target.image_size=32", "freeze.0.lr=0.01", "freeze.1.train=[last 1 stages, head]", "freeze.1.lr=0.002", "freeze.2.lr=0.002",
            "runtime.checkpoint=2",
        )  # fmt: skip

    def _of_torch(self, folder: Path) -> tuple[str, Path]:
        """With statistics that fit the weights: without them the last features are all but zero."""
        torch.manual_seed(0)
        network, weights = torchvision.models.efficientnet_b0(), folder / "efficientnet.pth"
        for _ in range(20):
            network.train()(torch.randn(16, 3, 32, 32))
        torch.save(network.state_dict(), weights)
        return "torchvision/efficientnet_b0", weights

    def _of_keras(self, folder: Path) -> tuple[str, Path]:
        import keras

        keras.utils.set_random_seed(0)
        network = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.5
        for step in range(10):
            network(np.random.default_rng(step).uniform(0, 255, (16, 32, 32, 3)).astype(np.float32), training=True)
        network.save_weights(folder / "efficientnet.weights.h5")
        return "keras/EfficientNetB0", folder / "efficientnet.weights.h5"

    def undisturbed(self, *overrides: str) -> tuple[Path, float]:
        """The bundle, and the seconds from the first result.json to the end."""
        if overrides not in self.made:
            shutil.rmtree(self.place.cache, ignore_errors=True)
            bundle = self.place.folder / f"real {len(self.made)}"
            process = self.place.started(bundle.name, *self.overrides, *overrides)
            wait_for_work(process, bundle / "result.json")
            began = time.monotonic()
            ended(process)
            self.made[overrides] = bundle, time.monotonic() - began
        return self.made[overrides]


@pytest.fixture(scope="module")
def real(place) -> Real:
    return Real(place)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["torch"], indirect=True)
@pytest.mark.parametrize(("how", "overrides", "share"), [
    (signal.SIGKILL, (), 0.2),
    (signal.SIGKILL, (VIEWS,), 0.2),
    (signal.SIGKILL, (STREAMED,), 0.2),
    (signal.SIGKILL, (LATE,), 0.8),
    (signal.SIGINT, (), 0.2),
    (signal.SIGINT, (VIEWS, STREAMED), 0.2),
    (signal.SIGINT, (LATE,), 0.2),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_ten_random_moments_of_one_run(real, place, everything, how, overrides, share):
    """Each life is up to `share` of the whole run long, the short ones first: `seconds` may be those of a busier machine."""
    whole, seconds = real.undisturbed(*overrides)
    moments = np.sort(np.random.default_rng(len(overrides)).uniform(0, share * seconds, size=10))
    name = f"ten {how.name} {overrides}".translate(str.maketrans("/{}:", "    "))
    assert place.signalled_at(moments, name, *real.overrides, *overrides, how=how) >= 5
    assert differing(everything(place.folder / name), everything(whole)) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["torch"], indirect=True)
@pytest.mark.parametrize("tenth", range(10))
def test_one_random_moment_of_ten_runs(real, place, everything, tenth):
    """One in each tenth of the run, from the first image that is read to the report."""
    whole, seconds = real.undisturbed()
    moment = (tenth + np.random.default_rng(tenth).uniform()) / 10 * seconds
    place.signalled_at([moment], f"once {tenth}", *real.overrides, how=signal.SIGKILL)
    assert differing(everything(place.folder / f"once {tenth}"), everything(whole)) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tensorflow"], indirect=True)
def test_random_moments_of_a_real_keras_network(real, place, everything):
    """Few: each life traces its graphs anew, for half a minute."""
    whole, seconds = real.undisturbed()
    moments = np.random.default_rng(0).uniform(0.2, 0.5, size=4) * seconds
    assert place.signalled_at(moments, "real killed", *real.overrides, how=signal.SIGKILL) >= 2
    assert differing(everything(place.folder / "real killed"), everything(whole)) == []
