"""What TensorFlow can compute on here, and with how many threads."""

from __future__ import annotations

import os
import platform

import tensorflow as tf

from xfer.backends.backend import Device
from xfer.backends.processor import BFLOAT16_FLAGS, VECTOR_FLAGS, cpu_flags, fast_bfloat16, vendor
from xfer.errors import UsageError


def find(wanted: str) -> Device:
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' means on this machine."""
    cards = tf.config.list_physical_devices("GPU")
    if wanted == "auto":
        wanted = "cuda" if cards else "cpu"
    if wanted == "cpu":
        flags = cpu_flags()
        found = [flag for flag in (*VECTOR_FLAGS, *BFLOAT16_FLAGS) if flag in flags]
        return Device("cpu", " ".join(["cpu", platform.machine(), *found]), fast_bfloat16(flags, vendor()), n_threads())
    name, _, index = wanted.partition(":")
    if name != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"runtime.device: '{wanted}' is not one of auto, cpu, cuda, cuda:N")
    if int(index or 0) >= len(cards):
        raise UsageError(f"runtime.device: '{wanted}' is not here: TensorFlow {tf.__version__} sees {len(cards)} CUDA devices")
    major, minor = tf.config.experimental.get_device_details(cards[int(index or 0)]).get("compute_capability", (0, 0))
    return Device(f"cuda:{index or 0}", f"cuda sm{major}{minor}", major >= 8, n_threads())


def is_memory_full(error: BaseException) -> bool:
    """Whether TensorFlow asked for memory that the device has not."""
    return isinstance(error, tf.errors.ResourceExhaustedError)


def place(device: Device) -> str:
    """TensorFlow's own name of a device."""
    kind, _, index = device.name.partition(":")
    return "/CPU:0" if kind == "cpu" else f"/GPU:{index or 0}"


def n_threads() -> int:
    """How many threads one operation may use: what was set, or as many as this process has processors."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(tf.config.threading.get_intra_op_parallelism_threads()) or available


def use_one_card(wanted: str) -> None:
    """Before the first computation of a worker: it computes on the first of the cards that it was given, on none where a run is to be
    on the CPU. Raises UsageError for a card by its number: each worker has cards of its own."""
    if wanted.partition(":")[2]:
        raise UsageError(
            f"runtime.device: '{wanted}' is a card of one machine, and every worker is given its own", hint="say cuda, or leave it to auto"
        )
    cards = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices(cards[:1] if wanted != "cpu" else [], "GPU")


def prepare(threads: int | None) -> None:
    """Before the first computation of a process: as many threads as the run that is resumed had, memory of GPUs taken as it is needed,
    and operations that give the same bits each time."""
    try:
        if threads is not None and threads != n_threads():
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        for card in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(card, True)
    except RuntimeError as error:
        if threads is not None and threads != n_threads():
            raise UsageError(
                f"the run was begun with {threads} threads, and TensorFlow computes with {n_threads()} in this process already",
                hint="resume it in a process of its own: xfer run --resume",
            ) from error
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel("ERROR")  # else it advises programmers, where a schedule of many phases needs many graphs
