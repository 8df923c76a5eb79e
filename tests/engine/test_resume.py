"""Fine-tuning that is killed goes on where it was, and ends with the same numbers: three phases, `until`, augmentation, averages."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

RECIPE = """
name: shapes
source: {model: torchvision/resnet18, weights: none, preprocess: {resize: 40, crop: 32}}
target: {dataset: folder, path: %(data)s, image_size: 32, batch_size: 8, splits: {val: 0.2, test: 0.3}, augment: standard}
transfer: {type: model}
head: {hidden: [16], dropout: 0.3}
freeze:
  - {train: head, until: {metric: val.loss, patience: 2, max_epochs: 4}, lr: 1e-2}
  - {train: [layer4, head], until: {metric: val.accuracy, patience: 2, max_epochs: 5}, average: 0.9, lr: 1e-3}
  - {train: all, epochs: 2, layer_decay: 0.8, schedule: cosine, clip_norm: 1.0, reestimate_norm: true, lr: 1e-3}
optimizer: {name: adamw, lr: 1e-3}
runtime: {cache: %(cache)s, precision: float32, checkpoint: 2, keep: 2}
"""
VIEWS = "target.augment={policy: standard, views: 2}"
STREAMED = "runtime.cache_budget=1B"
LATE = "runtime.checkpoint=1h"  # then only the ends of phases are saved


def everything(bundle, read_numbers):
    """All that a run may not lose by being killed: each epoch's metrics, the test's, the phases and every exported bit."""
    result = json.loads((bundle / "result.json").read_text())
    for phase in result["phases"]:
        phase.pop("seconds")
        phase.pop("images_per_second")
        phase["input"].pop("mode")
    tensors = load_file(bundle / "model" / "weights.safetensors")
    bits = {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in tensors.items()}
    return {**read_numbers(bundle), "phases": result["phases"], "bits": bits}


def differing(found, expected):
    """Names of what differs: a whole comparison would print megabytes."""
    return [name for name in expected if found[name] != expected[name]]


class Place:
    """The recipe in a folder of its own; undisturbed runs are made once for each set of overrides."""

    def __init__(self, workplace) -> None:
        self.workplace, self.whole = workplace, {}
        workplace.recipe.write_text(RECIPE % {"data": workplace.data, "cache": workplace.cache})

    def undisturbed(self, *overrides):
        if overrides not in self.whole:
            self.whole[overrides] = self.workplace.run(*overrides, out=f"whole-{len(self.whole)}")
        return self.whole[overrides]

    def killed(self, name, *overrides, moments, how=signal.SIGKILL, fresh=True):
        """(bundle, how many signals hit a living run); `moments` are seconds, or what must be true of the bundle."""
        if fresh:
            shutil.rmtree(self.workplace.cache, ignore_errors=True)
        bundle, hits = self.workplace.folder / name, 0
        begin = ("run", str(self.workplace.recipe), *overrides, "--out", name)
        process = self.workplace.start(*begin)
        for moment in moments:
            self.wait(process, bundle, moment)
            if process.poll() is None:
                process.send_signal(how)
                hits += 1
            _, err = process.communicate(timeout=120)
            if process.returncode == 0:
                return bundle, hits
            assert process.returncode == (130 if how == signal.SIGINT else -how), err
            started = (bundle / "plan.json").exists()
            if not started:
                shutil.rmtree(bundle, ignore_errors=True)
            process = self.workplace.start(*(("run", "--resume", name) if started else begin))
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return bundle, hits

    def wait(self, process, bundle, moment):
        if not callable(moment):
            time.sleep(moment)
            return
        while process.poll() is None and not moment(bundle):
            time.sleep(0.005)


@pytest.fixture(scope="module")
def place(make_workplace, tmp_path_factory):
    return Place(make_workplace(tmp_path_factory.mktemp("resume")))


def at(phase, epoch, step=0):
    """True once a checkpoint was written in the middle of an epoch of a phase."""

    def reached(bundle):
        for file in sorted(bundle.glob("checkpoints/[0-9]*/progress.json")):
            try:
                found = json.loads(file.read_text())
            except (FileNotFoundError, ValueError):  # dropped meanwhile
                continue
            if (found["phase"], found["epoch"], found["step"]) >= (phase, epoch, step) and not found["finished"]:
                return True
        return False

    return reached


def after(phase):
    """True once a phase is finished and saved."""

    def reached(bundle):
        for file in sorted(bundle.glob("checkpoints/[0-9]*/progress.json")):
            try:
                found = json.loads(file.read_text())
            except (FileNotFoundError, ValueError):
                continue
            if found["phase"] > phase or (found["phase"] == phase and found["finished"]):
                return True
        return False

    return reached


def test_the_recipe_is_what_it_should_be(place, read_result):
    """Otherwise the tests below would test less than they say."""
    bundle = place.undisturbed()
    phases = read_result(bundle)["phases"]
    assert [phase["input"] for phase in phases] == [
        {"cut": "pooled", "mode": "stored"},
        {"cut": "layer3.1", "mode": "stored"},
        {"cut": "pixels", "mode": "stored"},
    ]
    assert all(phase["frozen_changed"] == 0 for phase in phases)
    plan = json.loads((bundle / "plan.json").read_text())
    assert [phase["augment"]["policy"] for phase in plan["phases"]] == ["standard"] * 3
    assert len(list((bundle / "checkpoints").glob("[0-9]*"))) == 2


def test_a_second_run_computes_nothing(place, read_result, read_numbers):
    """Though the last phases read what an earlier one made of the weights: it made the same."""
    once = place.undisturbed()
    again = place.workplace.run(out="again")
    assert read_result(again)["data"]["computed"] == 0
    assert differing(everything(again, read_numbers), everything(once, read_numbers)) == []


def test_sigkill_in_two_phases_and_between(place, read_numbers):
    whole = place.undisturbed()
    moments = [after(0), at(1, 0, 2), at(2, 0, 2)]
    bundle, hits = place.killed("three-kills", moments=moments)
    assert hits == 3
    assert differing(everything(bundle, read_numbers), everything(whole, read_numbers)) == []


def test_sigint_goes_on_too(place, read_numbers):
    bundle, hits = place.killed("interrupted", moments=[at(1, 1), at(2, 1)], how=signal.SIGINT, fresh=False)
    assert hits == 2
    assert differing(everything(bundle, read_numbers), everything(place.undisturbed(), read_numbers)) == []


def test_the_cache_may_go_between_kill_and_resume(place, read_numbers):
    bundle = place.workplace.folder / "without-cache"
    process = place.workplace.start("run", str(place.workplace.recipe), "--out", bundle.name)
    place.wait(process, bundle, at(2, 0, 2))
    process.kill()
    process.communicate()
    shutil.rmtree(place.workplace.cache)
    place.workplace.xfer("run", "--resume", bundle.name)
    assert differing(everything(bundle, read_numbers), everything(place.undisturbed(), read_numbers)) == []


@pytest.mark.parametrize("overrides", [(), pytest.param((VIEWS,), marks=pytest.mark.slow)], ids=["random", "views"])
def test_streamed_and_stored_are_the_same_run(place, read_numbers, overrides):
    streamed = place.undisturbed(*overrides, STREAMED)
    phases = json.loads((streamed / "plan.json").read_text())["phases"]
    assert {(phase["input"]["mode"], phase["augment"]["mode"]) for phase in phases} == {("streamed", "streamed")}
    assert differing(everything(streamed, read_numbers), everything(place.undisturbed(*overrides), read_numbers)) == []


def test_eval_and_predict_agree_with_the_run(place, read_result):
    bundle = place.workplace.folder / "evaluated"
    shutil.copytree(place.undisturbed(), bundle)
    out, _ = place.workplace.xfer("eval", str(bundle), "--json")
    assert json.loads(out)["metrics"] == read_result(bundle)["metrics"]["test"]
    table = pq.read_table(bundle / "predictions.parquet").to_pydict()
    out, _ = place.workplace.xfer("predict", str(bundle), str(place.workplace.data), "--json")
    found = {entry["path"].removeprefix(f"{place.workplace.data}/"): entry for entry in json.loads(out)["predictions"]}
    for path, probabilities in zip(table["path"], table["probabilities"], strict=True):
        assert list(found[path]["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)


def test_a_run_as_source_starts_from_what_it_learned(place):
    first = place.undisturbed()
    overrides = (f"source.model=run:{first}", "source.weights=DEFAULT", "target.augment=none", "freeze=[{train: head, epochs: 1}]")
    second = place.workplace.run(*overrides, out="from-run")
    one, two = (load_file(bundle / "model" / "weights.safetensors") for bundle in (first, second))
    kept = [name for name in one if not name.startswith("head.")]
    assert [name for name in kept if not np.array_equal(one[name], two[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), (VIEWS,), (STREAMED,), (LATE,)], ids=["random", "views", "streamed", "late"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_ten_random_moments_in_one_run(place, read_numbers, overrides, how):
    whole = place.undisturbed(*overrides)
    moments = np.random.default_rng(how + len(overrides)).uniform(1.5, 9.0, size=10)
    name = f"ten-{how}-{'-'.join(overrides)}".replace("/", "-").replace(" ", "")
    bundle, hits = place.killed(name, *overrides, moments=moments, how=how)
    assert hits >= 2
    assert differing(everything(bundle, read_numbers), everything(whole, read_numbers)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_one_kill_at_a_random_moment(place, read_numbers, seed):
    whole = place.undisturbed()
    moment = np.random.default_rng(100 + seed).uniform(1.5, 15.0)
    bundle, _ = place.killed(f"once-{seed}", moments=[moment])
    assert differing(everything(bundle, read_numbers), everything(whole, read_numbers)) == []
