"""What a device is called, what an unknown one says, and threads of a run that goes on."""

from __future__ import annotations

import platform

import pytest
import tensorflow as tf

from xfer.backends.tensorflow.hardware import find, is_memory_full, n_threads, place, prepare
from xfer.errors import UsageError


def test_the_cpu_is_always_there():
    device = find("cpu")
    assert (device.name, place(device), device.threads) == ("cpu", "/CPU:0", n_threads())
    assert device.kind.split()[:2] == ["cpu", platform.machine()]
    if not tf.config.list_physical_devices("GPU"):
        assert find("auto") == device


@pytest.mark.parametrize(("wanted", "message"), [
    ("tpu", "runtime.device: 'tpu' is not one of auto, cpu, cuda, cuda:N"),
    ("cuda:x", "runtime.device: 'cuda:x' is not one of auto, cpu, cuda, cuda:N"),
    ("cuda:64", f"runtime.device: 'cuda:64' is not here: TensorFlow {tf.__version__} sees "
                f"{len(tf.config.list_physical_devices('GPU'))} CUDA devices"),
])  # fmt: skip
def test_a_device_that_is_not_here(wanted, message):
    with pytest.raises(UsageError) as caught:
        find(wanted)
    assert caught.value.message == message


def test_the_second_card_has_a_name_too():
    device = find("cpu")
    assert place(type(device)("cuda:1", "cuda sm90", True, 4)) == "/GPU:1"
    assert place(type(device)("cuda", "cuda sm90", True, 4)) == "/GPU:0"


def test_threads_can_t_change_once_it_computes():
    """A run that had another number would end with other last digits."""
    tf.reduce_sum(tf.ones(3))
    n = n_threads()
    prepare(None)
    prepare(n)
    with pytest.raises(UsageError) as caught:
        prepare(n + 1)
    assert caught.value.message == f"the run was begun with {n + 1} threads, and TensorFlow computes with {n} in this process already"
    assert caught.value.hint == "resume it in a process of its own: xfer run --resume"
    assert n_threads() == n


def test_too_little_memory_is_told_from_other_errors():
    with pytest.raises(tf.errors.ResourceExhaustedError) as full:
        tf.zeros([1 << 45])
    assert is_memory_full(full.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as other:
        tf.ones([1, 2]) @ tf.ones([3, 1])
    assert not is_memory_full(other.value)
