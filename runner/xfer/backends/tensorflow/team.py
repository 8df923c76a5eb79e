"""Processes that train one network together on TensorFlow: sums over all of them, inside a step's graph and between steps.

`tf.distribute.MultiWorkerMirroredStrategy` connects them, from TF_CONFIG, which Ray's TensorflowTrainer sets; nothing else of it is used.
Variables are plain ones, and stay equal because every rank applies the same sums to the same numbers. Sums are made by the operation
that the strategy uses too, with keys that are fixed when a graph is made. The strategy takes a new key for each sum of each step, and
TensorFlow keeps a record of every key until the process ends: 1.3 kB, a hundred times in a step that trains batch normalisation. So
they also take a third less time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

from xfer.backends.backend import Batch, Team
from xfer.backends.steps import labels_weigh
from xfer.backends.tensorflow import hardware
from xfer.errors import XferError

IN_GRAPHS, BETWEEN_STEPS = 1001, 1002  # groups of sums; the strategy counts its own from 1
PIECE_BYTES = 64 * 2**20  # of what is broadcast at once: the sum needs as much again
WORD = np.dtype(np.int64)  # bits travel as whole numbers, whose sums with zero are exact


class DeviceTeam(Team):
    """This process as one of `size`, the `rank`-th. Every rank must make the same graphs and call the same methods in the same order."""

    def __init__(self, rank: int, size: int, *, place: str) -> None:
        """Waits until all are there; before any other computation of the process. `place` is TensorFlow's name of the device that trains.
        Sums go around a ring of messages, between GPUs by NCCL, which wants a card for each rank."""
        self.rank, self.size, self.place = rank, size, place
        self.how = "nccl" if "GPU" in place else "ring"
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._keys = {group: count(1) for group in (IN_GRAPHS, BETWEEN_STEPS)}
        with tf.device(place):
            self._order = tf.Variable(0.0, trainable=False)  # sums that are given it run in the order in which a graph was written

    def _sum(self, x: Any, *, group: int, how: str) -> Any:
        return tf.raw_ops.CollectiveReduceV2(
            input=x,
            group_size=self.size,
            group_key=group,
            instance_key=next(self._keys[group]),
            ordering_token=[self._order.handle] if group == IN_GRAPHS else [],
            merge_op="Add",
            final_op="Id",
            communication_hint=how,
        )

    # inside a step's graph

    def total(self, x: Any) -> Any:
        """The sum of `x` over the ranks, the same bits on each. Gradients flow through it: those of all ranks are summed likewise."""

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def summed(x: Any) -> tuple[Any, Any]:
            with tf.device(self.place):
                return self._sum(x, group=IN_GRAPHS, how=self.how), self.total

        return summed(x)

    def totals(self, tensors: Sequence[Any]) -> list[Any]:
        """The sums of several float32 tensors, by one exchange."""
        flat = self.total(tf.concat([tf.reshape(x, [-1]) for x in tensors], 0))
        parts = tf.split(flat, [int(np.prod(x.shape)) for x in tensors])
        return [tf.reshape(part, x.shape) for part, x in zip(parts, tensors, strict=True)]

    # between steps

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Of arrays of one shape and one dtype, float32, float64 or int64."""
        if not values.size:
            return values
        with tf.device("/CPU:0"):
            return self._sum(tf.constant(values), group=BETWEEN_STEPS, how="ring").numpy()  # type: ignore[no-any-return]

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's, whatever the others hold."""
        length = int(self.sum(np.array([0 if self.rank else len(data)], WORD))[0])
        words = np.zeros(-(-length // WORD.itemsize), WORD)
        if not self.rank:
            words.view(np.uint8)[:length] = np.frombuffer(data, np.uint8)
        step = PIECE_BYTES // WORD.itemsize
        for begin in range(0, len(words), step):
            words[begin : begin + step] = self.sum(words[begin : begin + step])
        return words.view(np.uint8)[:length].tobytes()


@dataclass(frozen=True)
class Part:
    """One rank's part of a global batch, inside a step's graph. `share` is its weight, `growth` the number of global rows for each of its
    own; both are float32 scalars."""

    team: DeviceTeam
    share: Any
    growth: Any

    def all(self, x: Any) -> Any:
        """The `x` of every rank, [size, *x.shape]: a sum in which each has a place of its own."""
        place = tf.one_hot(self.team.rank, self.team.size, dtype=x.dtype)
        return self.team.total(tf.tensordot(place, x, 0))


PLACE = ("share", "growth", "labels_weigh")


def place_of(batch: Batch, class_weights: np.ndarray | None) -> dict[str, float]:
    """What a step must know of a batch's place in its global one: the numbers of a `Part`, and what these rows' loss is divided by where
    classes have weights."""
    weighed = 0.0 if class_weights is None else labels_weigh(batch, class_weights)
    return {"share": batch.share, "growth": batch.total / len(batch.labels), "labels_weigh": weighed}


_joined: list[DeviceTeam] = []  # at most one


def join(rank: int, size: int, *, device: str, threads: int | None) -> DeviceTeam:
    """The team of this process; the one that it has joined already, if it is the same. Raises UsageError for a device that a worker
    can't be given, and XferError where TF_CONFIG doesn't say what `rank` and `size` do."""
    if _joined and (_joined[0].rank, _joined[0].size) == (rank, size):
        return _joined[0]
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    index, workers = config.get("task", {}).get("index"), len(config.get("cluster", {}).get("worker", []))
    if _joined or (index, workers) != (rank, size):
        said = f"has joined as worker {_joined[0].rank} of {_joined[0].size}" if _joined else f"is worker {index} of {workers} in TF_CONFIG"
        raise XferError(
            f"this process can't be worker {rank} of {size}: it {said}",
            hint="TensorFlow joins its workers once in the life of a process: start each in a process of its own, with its own TF_CONFIG",
        )
    hardware.prepare(threads)
    hardware.use_one_card(device)
    _joined.append(DeviceTeam(rank, size, place=hardware.place(hardware.find(device))))
    return _joined[0]
