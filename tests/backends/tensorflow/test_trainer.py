"""One phase's training: many batches in one graph or one at a time, half precision, and losses that are no numbers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml

from xfer import plugins
from xfer.backends.backend import Batch
from xfer.backends.tensorflow import trainer
from xfer.backends.tensorflow.backend import TensorflowBackend
from xfer.backends.tensorflow.network import TensorflowNetwork
from xfer.compile.compiler import compile_plan
from xfer.errors import DivergedError
from xfer.plan.model_map import PIXELS
from xfer.plan.plan import Plan
from xfer.recipe.loader import read

SIDE, BATCH = 32, 8
NETWORKS = Path(__file__).parents[2] / "engine" / "small_keras.py"
small_keras: Any = sys.modules[plugins.load_local(NETWORKS.read_text(), stem=NETWORKS.stem)]
HEAD = {"train": "head", "epochs": 4, "average": 0.9, "schedule": "cosine"}
Start = Callable[..., TensorflowNetwork]


@pytest.fixture
def start(tmp_path) -> Start:
    """A network at the beginning of a recipe's one phase."""
    np.savez(tmp_path / "images.npz", images=np.zeros((30, SIDE, SIDE, 3), np.uint8), labels=np.arange(30) % 3)

    def begin(phase: dict[str, Any], *, model: str = "small/plain", precision: str = "float32", **sections: Any) -> TensorflowNetwork:
        content = {
            "source": {"model": model, "weights": "none"},
            "target": {"dataset": "arrays", "path": str(tmp_path / "images.npz"), "image_size": SIDE, "batch_size": BATCH},
            "transfer": {"type": "model"},
            "freeze": [phase],
            "runtime": {"precision": "float32" if precision == "float32" else "bfloat16", "device": "cpu"},
            "plugins": [str(NETWORKS)],
            **sections,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        plan = compile_plan(read(tmp_path / "recipe.yaml"))
        if precision == "float16":  # which a recipe gets on a GPU alone
            plan = Plan.model_validate_json(plan.model_dump_json().replace('"bfloat16"', '"float16"'))
        network = TensorflowBackend().build(plan)
        network.begin_phase(plan.phases[0], steps_per_epoch=10, class_weights=None)
        return network

    return begin


def batches_for(network: TensorflowNetwork, n: int, *, last: int = BATCH) -> list[Batch]:
    """n batches of noise with a channel that tells the class, at the phase's cut."""
    place, random = network.trainer.phase.input, np.random.default_rng(1)  # type: ignore[union-attr]
    made = []
    for number in range(n):
        size = last if number == n - 1 else BATCH
        labels = (np.arange(size) + number) % 3
        pixels = random.integers(0, 155, (size, SIDE, SIDE, 3), dtype=np.uint8)
        pixels[np.arange(size), ..., labels] += 100
        rows = pixels if place.cut == PIXELS else network.compute(pixels, start=PIXELS, end=place.cut, pooled=place.pooled)
        made.append(Batch(np.arange(size) + BATCH * number, rows, labels))
    return made


def bits(network: TensorflowNetwork) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in network.state().items()}


def sized(*sizes: int, width: int = 1) -> list[Batch]:
    return [Batch(np.arange(n), np.zeros((n, width), np.float32), np.zeros(n, np.int64)) for n in sizes]


def test_chunks_are_runs_of_batches_of_one_size():
    given = sized(8, 8, 8, 8, 8, 5)
    found = list(trainer.chunks(given, 2))
    assert [[len(batch.labels) for batch in chunk] for chunk in found] == [[8, 8], [8, 8], [8], [5]]
    assert [batch for chunk in found for batch in chunk] == given
    assert [len(chunk) for chunk in trainer.chunks(sized(8, 9), 64)] == [1, 1]
    assert list(trainer.chunks([], 64)) == []


def test_chunks_are_never_large():
    width = trainer.CHUNK_BYTES // 4 // 8 // 3  # three batches fit
    assert [len(chunk) for chunk in trainer.chunks(sized(*[8] * 7, width=width), 64)] == [3, 3, 1]


def test_a_chunk_is_read_before_the_next_is_asked_for():
    """The engine's generator ends where a checkpoint is due: what it gave by then is trained, and no more is taken."""
    taken = []
    given = (taken.append(len(taken)) or batch for batch in sized(*[8] * 6))
    reading = trainer.chunks(given, 3)
    next(reading)
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("head", [{}, {"hidden": [16], "dropout": 0.3}], ids=["linear", "hidden"])
def test_together_or_one_by_one_is_the_same_to_the_bit(start, head):
    """A resume begins in the middle of what was one graph's loop before."""
    states, records = [], []
    for parts in ((10,), (1,) * 10, (3, 1, 6)):
        network = start(HEAD, head=head, optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.1})
        batches, first, record = batches_for(network, 10, last=5), 0, []
        for n in parts:
            done = network.train(batches[first : first + n], epoch=0, first_step=first, scale=1.0)
            record += list(zip(done.losses, done.correct, done.counts, strict=True))
            first += n
        states.append(bits(network))
        records.append(record)
    assert records[0] == records[1] == records[2]
    assert states[0] == states[1] == states[2]
    assert [count for _, _, count in records[0]] == [8] * 9 + [5]
    assert records[0][-1][0] < records[0][0][0]


@pytest.mark.parametrize(("model", "precision"), [
    ("small/plain", "bfloat16"),
    ("small/plain", "float16"),
    pytest.param("small/batch_norm", "bfloat16", marks=pytest.mark.slow),
    pytest.param("small/batch_norm", "float16", marks=pytest.mark.slow),
    pytest.param("small/layer_norm", "bfloat16", marks=pytest.mark.slow),
    pytest.param("small/layer_norm", "float16", marks=pytest.mark.slow),
])  # fmt: skip
def test_half_precision_is_near_to_float32(start, monkeypatch, model, precision):
    """Weights and statistics stay float32, rows are stored in half, and gradients come through."""
    monkeypatch.setattr("xfer.backends.tensorflow.hardware.fast_bfloat16", lambda *_: True)  # as on a processor that computes in it
    losses = {}
    for kind in ("float32", precision):
        network = start({"train": "all", "epochs": 4}, model=model, precision=kind, optimizer={"name": "sgd", "lr": 0.005})
        batches = batches_for(network, 6)
        losses[kind] = [loss for _ in range(3) for loss in network.train(batches, epoch=0, first_step=0, scale=1.0).losses]
        dtypes = {variable.dtype for variable in network.named.values()}
        assert dtypes == {tf.float32}
    assert network.parts.compute_dtype.name == precision
    assert any("scaler/" in name for name in network.state()) == (precision == "float16")
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.1)
    assert losses[precision] != losses["float32"]
    assert np.mean(losses[precision][-6:]) < np.mean(losses[precision][:6])
    pixels = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    rows = network.compute(pixels, start=PIXELS, end="pooled", pooled=False)
    assert rows.dtype == {"bfloat16": np.uint16, "float16": np.float16}[precision]
    assert network.logits(pixels, start=PIXELS, pooled=False).dtype == np.float32


def test_a_step_that_overflows_in_float16_is_left_out(start):
    """The first scale is too large for these gradients: weights stay as they are, the scale is halved until it fits."""
    network = start({"train": "all", "epochs": 4}, precision="float16", optimizer={"name": "sgd", "lr": 0.005, "momentum": 0.9})
    network.trainer.scaler.scale.assign(2.0**40)
    before, batches = bits(network), batches_for(network, 1)
    network.train(batches, epoch=0, first_step=0, scale=1.0)
    after = bits(network)
    assert {name for name in after if after[name] != before.get(name)} == {"scaler/scale"}
    for step in range(1, 40):
        network.train(batches, epoch=0, first_step=step, scale=1.0)
    assert float(network.trainer.scaler.scale) < 2.0**30
    assert bits(network)["model/late/kernel"] != before["model/late/kernel"]
    assert all(np.isfinite(value).all() for value in network.state().values())


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_loss_that_is_no_number_ends_the_run(start, train):
    network = start({"train": train, "epochs": 4}, optimizer={"name": "sgd", "lr": 1e9, "momentum": 0.0})
    batches = batches_for(network, 10)
    if train == "head":  # alone it is too tame
        batches = [dataclasses.replace(batch, inputs=batch.inputs * np.float32(1e20)) for batch in batches]
    with pytest.raises(DivergedError) as caught:
        network.train(batches, epoch=2, first_step=20, scale=1.0)
    assert caught.value.message == f"phase '1: {train}', epoch 3: the loss is not a finite number any more"
    assert caught.value.hint == "lower the learning rate (now 1e+09), or set optimizer.clip_norm; then start a new run"
