"""Which processors compute bfloat16 faster than float32, and what an unknown device says."""

from __future__ import annotations

import pytest
import torch

from xfer.backends.torch.hardware import fast_bfloat16, find, is_memory_full, threads
from xfer.errors import UsageError


@pytest.mark.parametrize(("flags", "vendor", "fast"), [
    ({"avx512f"}, "GenuineIntel", False),
    ({"avx512f", "avx512_bf16"}, "GenuineIntel", False),
    ({"avx512_bf16", "amx_bf16", "amx_tile"}, "GenuineIntel", True),
    ({"avx512_bf16"}, "AuthenticAMD", True),
    ({"asimd", "bf16"}, "", True),
])  # fmt: skip
def test_fast_bfloat16(flags, vendor, fast):
    assert fast_bfloat16(frozenset(flags), vendor) is fast


def test_the_cpu_is_always_there():
    device = find("cpu")
    assert device.name == "cpu"
    assert device.kind.startswith("cpu ")
    assert device.threads == torch.get_num_threads()


@pytest.mark.parametrize(("wanted", "message"), [
    ("tpu", "runtime.device: 'tpu' is not one of auto, cpu, cuda, cuda:N"),
    ("cuda:x", "runtime.device: 'cuda:x' is not one of auto, cpu, cuda, cuda:N"),
    ("cuda:64", f"runtime.device: 'cuda:64' is not here: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"),
])  # fmt: skip
def test_a_device_that_is_not_here(wanted, message):
    with pytest.raises(UsageError) as caught:
        find(wanted)
    assert caught.value.message == message


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_too_little_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_memory_full(caught.value)
    assert is_memory_full(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_memory_full(caught.value)
