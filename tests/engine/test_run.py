"""A whole run through the command line: what the bundle holds, and that what it says is so."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from safetensors.numpy import load_file


def test_bundle_holds_what_the_design_names(finished, read_result):
    names = {path.name for path in finished.bundle.iterdir()}
    assert {
        "recipe.yaml", "recipe.resolved.yaml", "plan.json", "lock.json", "metrics.jsonl", "checkpoints", "model", "predictions.parquet",
        "quarantine.csv", "result.json", "report.html", "ledger.jsonl",
    } <= names  # fmt: skip
    assert {path.name for path in (finished.bundle / "model").iterdir()} == {"weights.safetensors", "labels.json", "preprocessing.json"}


def test_result_has_the_numbers(finished, read_result):
    result = read_result(finished.bundle)
    assert (result["status"], result["backend"], result["error"]) == ("finished", "torch", None)
    assert result["metrics"]["test"]["accuracy"] > result["baseline"]["majority"]
    low, high = result["metrics"]["test"]["interval"]["accuracy"]
    assert low <= result["metrics"]["test"]["accuracy"] <= high
    assert result["data"] == {"images": 60, "classes": 3, "quarantined": 0, "computed": 60}
    phase = result["phases"][0]
    assert (phase["train"], phase["epochs"], phase["trainable_parameters"]) == (["head"], 12, 512 * 3 + 3)
    assert (phase["frozen_tensors"], phase["frozen_changed"]) == (50, 0)
    assert phase["input"] == {"cut": "pooled", "mode": "stored"}


def test_predictions_agree_with_the_metrics(finished, read_result):
    table = pq.read_table(finished.bundle / "predictions.parquet").to_pydict()
    assert (
        np.mean([a == b for a, b in zip(table["label"], table["predicted"], strict=True)])
        == read_result(finished.bundle)["metrics"]["test"]["accuracy"]
    )


def test_frozen_tensors_are_the_source_s_bit_for_bit(finished):
    saved = load_file(finished.bundle / "model" / "weights.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = torchvision.models.squeezenet1_1().state_dict()
    kept = {name: value for name, value in source.items() if not name.startswith("classifier")}
    assert set(saved) == set(kept) | {"head.output.weight", "head.output.bias"}
    assert all(np.array_equal(saved[name], value.numpy()) for name, value in kept.items())


def test_test_labels_are_opened_once(finished):
    lines = (finished.bundle / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["the run's own test, after everything was chosen"]


def test_a_second_run_extracts_nothing_and_agrees(finished, read_result, read_numbers):
    again = finished.run(out="again")
    assert read_result(again)["data"]["computed"] == 0
    assert read_numbers(again) == read_numbers(finished.bundle)


def test_streamed_and_stored_agree_to_the_bit(finished, read_result, read_numbers):
    streamed = finished.run("runtime.cache_budget=1B", out="streamed")
    assert read_result(streamed)["phases"][0]["input"] == {"cut": "pooled", "mode": "streamed"}
    assert read_numbers(streamed) == read_numbers(finished.bundle)
    one, other = (pq.read_table(folder / "predictions.parquet").to_pydict() for folder in (streamed, finished.bundle))
    assert one == other


def test_eval_gives_the_run_s_numbers_and_goes_into_the_ledger(finished, read_result):
    copy = finished.folder / "copy"
    shutil.copytree(finished.bundle, copy)
    out, _ = finished.xfer("eval", str(copy), "--json")
    found = json.loads(out)
    assert found["metrics"] == read_result(finished.bundle)["metrics"]["test"]
    assert len((copy / "ledger.jsonl").read_text().splitlines()) == 2


def test_predict_json(finished):
    broken = finished.folder / "pictures" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"\xff\xd8\xff nothing")
    shutil.copy(finished.data / "red" / "000.png", broken.parent / "a.png")
    out, _ = finished.xfer("predict", str(finished.bundle), str(broken.parent), "--json")
    found = json.loads(out)
    assert [entry["path"].rsplit("/", 1)[1] for entry in found["predictions"]] == ["a.png"]
    assert set(found["predictions"][0]["probabilities"]) == {"blue", "green", "red"}
    assert sum(found["predictions"][0]["probabilities"].values()) == pytest.approx(1)
    assert [(entry["path"].rsplit("/", 1)[1], entry["reason"]) for entry in found["quarantined"]] == [
        ("broken.jpg", "damaged file: its header can't be read")
    ]


def test_resume_of_a_finished_bundle_only_makes_the_report_again(finished):
    ledger, result = ((finished.bundle / name).read_bytes() for name in ("ledger.jsonl", "result.json"))
    (finished.bundle / "report.html").unlink()
    out, _ = finished.xfer("run", "--resume", str(finished.bundle))
    assert out == f"{finished.bundle}\n"
    assert (finished.bundle / "report.html").exists()
    assert ((finished.bundle / "ledger.jsonl").read_bytes(), (finished.bundle / "result.json").read_bytes()) == (ledger, result)


def test_a_run_as_source(finished, read_result):
    again = finished.run(f"source.model=run:{finished.bundle}", "source.weights=DEFAULT", out="from-run")
    assert read_result(again)["status"] == "finished"


def test_bad_images_are_quarantined_and_too_many_stop_the_run(workplace, read_result):
    (workplace.data / "red" / "000.png").write_bytes(b"")
    bundle = workplace.run("target.max_bad=0.05")
    assert read_result(bundle)["data"]["quarantined"] == 1
    assert (bundle / "quarantine.csv").read_text().splitlines()[1:] == ["red/000.png,empty file"]
    _, err = workplace.xfer("run", str(workplace.recipe), "--out", "stops", code=2)
    assert "1 of 60 images can't be read, more than target.max_bad = 0.01 allows:\n  red/000.png: empty file" in err
    assert read_result(workplace.folder / "stops")["status"] == "failed"


FAILING = """
import torch

from xfer.methods.method import Method


class Failing(Method):
    type, trains_source, default_policy = "feature", False, "head"

    def __init__(self, *, how: str):
        self.how, self.n_losses = how, 0

    def loss(self, seen):
        self.n_losses += 1
        if self.n_losses == 10 and self.how == "raise":
            raise KeyError("of the method's own")
        if self.n_losses == 10:
            torch.empty(1 << 60, dtype=torch.uint8)
        return seen.task_loss()


xfer_plugins = {"methods": {"failing": Failing}}
"""


@pytest.mark.parametrize("how", ["raise", "fill"])
def test_a_run_that_ends_in_an_unforeseen_way(workplace, read_result, how):
    """Whatever it was, the bundle says so and keeps what it had; too little memory is no fault of the code's, so no trace is shown."""
    (workplace.folder / "failing.py").write_text(FAILING)
    overrides = ("plugins=[./failing.py]", "transfer={type: feature, method: failing, how: " + how + "}", "runtime.extraction_batch=16")
    _, err = workplace.xfer("run", str(workplace.recipe), *overrides, "--out", "stops", code=1)
    result, folder = read_result(workplace.folder / "stops"), (workplace.folder / "stops").resolve()
    assert (result["status"], result["data"]["computed"]) == ("failed", 60)
    assert (folder / "report.html").exists()
    if how == "raise":
        assert result["error"] == """KeyError: "of the method's own\""""
        assert err.endswith(f"what the run had is kept; when the cause is gone, go on with: xfer run --resume {folder}\n")
    else:
        assert result["error"].startswith("cpu has too little memory: ")
        hint = "start anew with a smaller target.batch_size (8) or runtime.extraction_batch (16); what fits of the features that were"
        assert f"error: {result['error']}\n  {hint} computed is used again\n" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("overrides", [
    ("head.hidden=[16]", "head.dropout=0.3", "optimizer.label_smoothing=0.1", "optimizer.class_weights=balanced"),
    ("optimizer.name=sgd", "optimizer.schedule=cosine", "optimizer.warmup_epochs=1", "optimizer.clip_norm=1.0", "transfer.at=stage1"),
    ("optimizer.name=adam", "optimizer.schedule=one_cycle", "freeze=[{train: head, until: {metric: val.loss, max_epochs: 4}}]"),
])  # fmt: skip
def test_options_of_head_and_optimizer(workplace, read_result, overrides):
    bundle = workplace.run(*overrides, "runtime.checkpoint=4")
    result = read_result(bundle)
    assert result["status"] == "finished"
    assert result["metrics"]["val"]["accuracy"] > 0.4


def kill_and_resume(workplace, moments, *, how, overrides=()):
    """Kill a run after each of `moments` seconds, resume until it ends; returns how many kills hit a living run."""
    hits = 0
    process = workplace.start("run", str(workplace.recipe), *overrides, "--out", "killed")
    for moment in moments:
        time.sleep(moment)
        if process.poll() is None:
            process.send_signal(how)
            hits += 1
        process.communicate(timeout=300)
        if process.returncode == 0:
            return hits
        if not (workplace.folder / "killed" / "plan.json").exists():
            shutil.rmtree(workplace.folder / "killed", ignore_errors=True)
            process = workplace.start("run", str(workplace.recipe), *overrides, "--out", "killed")
        else:
            process = workplace.start("run", "--resume", "killed")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return hits


LONG = ("freeze.0.epochs=150", "head.dropout=0.2", "head.hidden=[32]", "runtime.checkpoint=20", "optimizer.schedule=cosine")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_sigkill_at_random_moments(workplace, read_numbers, seed):
    began = time.monotonic()
    whole = workplace.run(*LONG, out="whole")
    # The short life first: the whole run may have met a busier machine than the others will.
    moments = np.sort(np.random.default_rng(seed).uniform(0.1, 0.8, size=3)) * (time.monotonic() - began)
    shutil.rmtree(workplace.cache)
    assert kill_and_resume(workplace, moments, how=signal.SIGKILL, overrides=LONG) >= 1
    assert read_numbers(workplace.folder / "killed") == read_numbers(whole)


def test_sigint_while_the_head_trains(workplace, read_numbers, read_result):
    whole = workplace.run(*LONG, out="whole")
    process = workplace.start("run", str(workplace.recipe), *LONG, "--out", "killed")
    metrics = workplace.folder / "killed" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 40:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == [
        "error: stopped after the step was finished and saved",
        f"  go on with: xfer run --resume {workplace.folder / 'killed'}",
    ]
    assert read_result(workplace.folder / "killed")["status"] == "interrupted"
    workplace.xfer("run", "--resume", "killed")
    assert read_numbers(workplace.folder / "killed") == read_numbers(whole)


def test_sigkill_while_the_head_trains(workplace, read_numbers):
    whole = workplace.run(*LONG, out="whole")
    process = workplace.start("run", str(workplace.recipe), *LONG, "--out", "killed")
    metrics = workplace.folder / "killed" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 101:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    workplace.xfer("run", "--resume", "killed")
    assert read_numbers(workplace.folder / "killed") == read_numbers(whole)


@pytest.mark.slow
def test_three_runs_at_once_on_one_empty_cache_agree(workplace, read_numbers):
    processes = [workplace.start("run", str(workplace.recipe), "--out", f"run{index}") for index in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    first, *others = (read_numbers(workplace.folder / f"run{index}") for index in range(3))
    assert all(other == first for other in others)


def test_a_flipped_byte_is_found_and_rebuilt(workplace, read_numbers, read_result):
    whole = workplace.run()
    shard = max((path for path in workplace.cache.glob("features/**/*.npy")), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-100] ^= 0x10
    shard.write_bytes(content)
    again = workplace.run(out="again")
    assert read_result(again)["data"]["computed"] == 60
    assert read_numbers(again) == read_numbers(whole)
