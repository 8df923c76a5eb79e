"""One process of those that train together: begins a recipe's phase and trains it on its parts of the batches that a case names.

Run by test_team.py as `python team_worker.py CASES RANK SIZE PORTS`. CASES is a JSON file of cases, each an object of `Case`; what came
of one is written beside the file as `NAME-RANK-of-SIZE.npz`. With SIZE 1 the same batches are trained whole, by a process alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xfer.backends.backend import Batch
from xfer.compile.compiler import compile_plan
from xfer.engine.team import ALONE, part_of
from xfer.plan.model_map import PIXELS
from xfer.plan.plan import Plan
from xfer.recipe.loader import read

CLASSES, CHANCES = 3, (0.6, 0.3, 0.1)
ODD = {"x": np.array([-0.0, np.nan, 1e-45], np.float32), "n": np.array(3), "empty": np.zeros((0, 2)), "t": np.arange(6.0).reshape(2, 3).T}


@dataclasses.dataclass(frozen=True)
class Case:
    """`sizes` are those of the global batches of an epoch."""

    name: str
    recipe: str
    sizes: tuple[int, ...]
    epochs: int = 1
    class_weights: tuple[float, ...] | None = None
    precision: str | None = None
    dropout: bool = False  # else the network's own is switched off, which is drawn in another way on parts of a batch
    scale: float | None = None  # that losses are multiplied with at first, in float16
    # or 'disturbed': all ranks but 0 with other weights; or 'resumed': they know nothing of the epochs before the last
    begins: str = "alike"
    statistics: bool = False  # are estimated anew at the end
    quits: bool = False  # the last rank ends in the middle, like one that is killed


def main(cases: Path, rank: int, size: int, ports: list[str]) -> None:
    from xfer.backends.tensorflow.backend import TensorflowBackend

    backend, folder = TensorflowBackend(), cases.parent
    team = None
    if size > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
        team = backend.join(rank, size, device="cpu")
        assert backend.join(rank, size) is team
        np.savez(folder / f"exchanged-{rank}-of-{size}.npz", **exchanged(team))
    np.savez(folder / f"layer-{rank}-of-{size}.npz", **normalised(team))
    for case in (Case(**given) for given in json.loads(cases.read_text())):
        found = trained(backend, case, folder)
        np.savez(folder / f"{case.name}-{rank}-of-{size}.npz", **found)


def exchanged(team: Any) -> dict[str, np.ndarray]:
    """What comes of each exchange between steps."""
    sums = {np.dtype(kind).name: team.sum(np.full((2, 3), team.rank + 1, kind)) for kind in (np.float32, np.float64, np.int64)}
    told = [team.broadcast_bytes(data if team.rank == 0 else b"other") for data in (b"", b"rank 0", os.urandom(9))]
    arrays = team.broadcast(ODD if team.rank == 0 else {"other": np.ones(1)})
    sums["nothing"] = team.sum(np.zeros((0, 4), np.float32))
    return {**sums, "told": np.array([text.hex() for text in told]), **arrays}


def normalised(team: Any) -> dict[str, np.ndarray]:
    """Batch normalisation of 7 rows, or of this rank's part of them, whose mean is far from zero: what it gives, its gradients, what it
    keeps; with a mask too."""
    import keras
    import tensorflow as tf

    from xfer.backends.tensorflow.statistics import live
    from xfer.backends.tensorflow.team import Part

    random, found = np.random.default_rng(5), {}
    x = (random.normal(size=(7, 4, 3)) + [0, 30, -500]).astype(np.float32)
    weights, mask = random.normal(size=x.shape).astype(np.float32), random.uniform(size=(7, 4)) < 0.6
    rows = np.arange(7) if team is None else np.array_split(np.arange(7), team.size)[team.rank]
    part = None if team is None else Part(team, tf.constant(len(rows) / 7, tf.float32), tf.constant(7 / len(rows), tf.float32))
    for name, given in (("plain", None), ("masked", tf.constant(mask[rows]))):
        layer = keras.layers.BatchNormalization(momentum=0.5)
        layer.build((None, 4, 3))
        values = tf.constant(x[rows])
        with live([layer], part), tf.GradientTape() as tape:
            tape.watch(values)
            y = layer(values, mask=given)
            loss = tf.reduce_sum(y * y * weights[rows])
        slopes = tape.gradient(loss, [values, layer.gamma.value, layer.beta.value])
        found |= {f"{name}/y": y.numpy(), f"{name}/slope": slopes[0].numpy(), f"{name}/gamma": slopes[1].numpy()}
        found |= {f"{name}/mean": layer.moving_mean.numpy(), f"{name}/variance": layer.moving_variance.numpy()}
        assert "_moments" not in vars(layer)
    return found


def trained(backend: Any, case: Case, folder: Path) -> dict[str, np.ndarray]:
    """The record of each step, and the network's state after them."""
    team = backend.team or ALONE
    plan = compile_plan(read(folder / case.recipe))
    if case.precision is not None:  # which a recipe gets on a GPU alone
        plan = Plan.model_validate_json(plan.model_dump_json().replace('"bfloat16"', f'"{case.precision}"'))
    network, record = begun(backend, plan, case), {name: [] for name in ("losses", "correct", "counts")}
    if case.begins == "disturbed" and team.size > 1:
        network.load_tensors({name: value + team.rank for name, value in network.tensors().items()})
        network.load_state(team.broadcast(network.state()))
    for epoch in range(case.epochs):
        if case.begins == "resumed" and epoch == case.epochs - 1:
            before = network.state()
            network = begun(backend, plan, case)
            network.load_state(team.broadcast(before))
        batches = global_batches(network, case, plan.model.image_size, epoch=epoch)
        parts = (part(batch, team) for batch in quitting(batches, case.quits and team.rank == team.size - 1))
        done = network.train(parts, epoch=epoch, first_step=epoch * len(case.sizes), scale=1.0)
        for name, values in record.items():
            values += getattr(done, name)
    if case.statistics:
        given = global_batches(network, case, plan.model.image_size, epoch=0)
        network.end_phase(best={}, statistics=(batch.inputs for batch in given))
    return {name: np.asarray(values) for name, values in record.items()} | {f"state/{k}": v for k, v in network.state().items()}


def begun(backend: Any, plan: Plan, case: Case) -> Any:
    network = backend.build(plan)
    for layer in network.parts.segments.network._flatten_layers():
        if not case.dropout and hasattr(layer, "rate"):
            layer.rate = 0.0
    weights = None if case.class_weights is None else np.array(case.class_weights, np.float32)
    together = backend.team is not None
    network.begin_phase(plan.phases[0], steps_per_epoch=len(case.sizes), class_weights=weights, together=together)
    if case.scale is not None:
        network.trainer.scaler.scale.assign(case.scale)
    return network


def global_batches(network: Any, case: Case, side: int, *, epoch: int) -> list[Batch]:
    """Batches of noise with a channel that tells the class, at the phase's cut."""
    place, random, made = network.trainer.phase.input, np.random.default_rng(epoch), []
    for number, n in enumerate(case.sizes):
        labels = random.choice(CLASSES, n, p=CHANCES).astype(np.int64)
        pixels = random.integers(0, 155, (n, side, side, 3), dtype=np.uint8)
        pixels[np.arange(n), ..., labels] += 100
        rows = pixels if place.cut == PIXELS else network.compute(pixels, start=PIXELS, end=place.cut, pooled=place.pooled)
        made.append(Batch(np.arange(n) + 100 * number, rows, labels))
    return made


def quitting(batches: list[Batch], quits: bool) -> Iterator[Batch]:
    for number, batch in enumerate(batches):
        if quits and number == 2:
            os._exit(9)
        yield batch


def part(batch: Batch, team: Any) -> Batch:
    """What a rank takes of a global batch."""
    if team.size == 1:
        return batch
    chosen, share = part_of(np.arange(len(batch.labels)), team)
    return Batch(batch.rows[chosen], batch.inputs[chosen], batch.labels[chosen], share=share, labels_all=batch.labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
