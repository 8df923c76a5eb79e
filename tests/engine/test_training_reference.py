"""The head's whole training against a float64 loop written here by hand, over the rows that the store holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from xfer.data.order import epoch_order
from xfer.data.splits import assign
from xfer.ops.initial import head_start
from xfer.plan.plan import Plan

EPOCHS, BATCH, SEED = 3, 8, 0


def stored_features(cache):
    """float64 [rows, 512] from the store's files themselves."""
    shards = sorted(cache.glob("features/**/*.npy"))
    return np.concatenate([np.load(path) for path in shards]).astype(np.float64)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def gradient(weight, bias, x, y, smoothing):
    target = np.full((len(y), len(bias)), smoothing / len(bias))
    target[np.arange(len(y)), y] += 1 - smoothing
    error = (softmax(x @ weight.T + bias) - target) / len(y)
    return error.T @ x, error.sum(0)


def rate(step, steps, warmup):
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


def steps_of(rows):
    for epoch in range(EPOCHS):
        order = epoch_order(rows, seed=SEED, phase=0, epoch=epoch, mode="full", shard_rows=512)
        yield from (order[first : first + BATCH] for first in range(0, len(order), BATCH))


def sgd(x, y, rows, weight, bias):
    state = [np.zeros_like(weight), np.zeros_like(bias)]
    batches = list(steps_of(rows))
    per_epoch = len(batches) // EPOCHS
    for step, batch in enumerate(batches):
        for index, (value, slope) in enumerate(zip((weight, bias), gradient(weight, bias, x[batch], y[batch], 0.1), strict=True)):
            slope = slope + 0.01 * value  # coupled weight decay
            state[index] = slope if step == 0 else 0.9 * state[index] + slope
            value -= 0.05 * rate(step, len(batches), per_epoch) * state[index]
    return weight, bias


def adamw(x, y, rows, weight, bias):
    first, second = ([np.zeros_like(weight), np.zeros_like(bias)] for _ in range(2))
    for step, batch in enumerate(steps_of(rows), start=1):
        for index, (value, slope) in enumerate(zip((weight, bias), gradient(weight, bias, x[batch], y[batch], 0.0), strict=True)):
            value *= 1 - 0.01 * 0.1  # decoupled weight decay
            first[index] = 0.9 * first[index] + 0.1 * slope
            second[index] = 0.999 * second[index] + 0.001 * slope**2
            value -= 0.01 * (first[index] / (1 - 0.9**step)) / (np.sqrt(second[index] / (1 - 0.999**step)) + 1e-8)
    return weight, bias


SCHEDULE = ("optimizer.schedule=cosine", "optimizer.warmup_epochs=1")
CASES = {
    "sgd": (sgd, ["optimizer.lr=0.05", "optimizer.weight_decay=0.01", "optimizer.label_smoothing=0.1", *SCHEDULE]),
    "adamw": (adamw, ["optimizer.lr=0.01", "optimizer.weight_decay=0.1"]),
}


@pytest.mark.parametrize("name", CASES)
def test_head_training_is_the_textbook_loop(finished, name):
    reference, overrides = CASES[name]
    bundle = finished.run(f"optimizer.name={name}", f"freeze.0.epochs={EPOCHS}", *overrides, out=f"reference-{name}")
    predictions = json.loads((bundle / "plan.json").read_text())["data"]["counts"]
    plan = Plan.read(bundle / "plan.json")
    x = stored_features(finished.cache)
    files = sorted(path.relative_to(finished.data).as_posix() for path in finished.data.rglob("*.png"))
    y = np.array([plan.data.classes.index(key.split("/")[0]) for key in files])
    rows = training_rows(plan, files, y)
    assert len(rows) == sum(predictions["train"].values())
    start = head_start(((tensor.name, tensor.shape) for tensor in plan.head.tensors), seed=SEED)
    weight, bias = reference(x, y, rows, start["head.output.weight"].astype(np.float64), start["head.output.bias"].astype(np.float64))
    saved = load_file(bundle / "model" / "weights.safetensors")
    assert np.abs(saved["head.output.weight"] - weight).max() < 2e-5
    assert np.abs(saved["head.output.bias"] - bias).max() < 2e-5


def training_rows(plan, files, labels):
    given = np.full(len(files), "")
    found = assign(labels, given, files, classes=plan.data.classes, val=plan.data.val, test=plan.data.test, seed=plan.data.split_seed)
    return np.flatnonzero(found == "train")
