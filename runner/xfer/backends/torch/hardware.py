"""What torch can compute on here."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from xfer.backends.backend import Device
from xfer.backends.processor import BFLOAT16_FLAGS, cpu_flags, fast_bfloat16, vendor
from xfer.errors import UsageError


def find(wanted: str) -> Device:
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' means on this machine."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        flags = cpu_flags()
        found = [flag for flag in BFLOAT16_FLAGS if flag in flags]
        kind = " ".join(["cpu", platform.machine(), torch.backends.cpu.get_cpu_capability(), *found])
        return Device("cpu", kind, fast_bfloat16(flags, vendor()), torch.get_num_threads())
    name, _, index = wanted.partition(":")
    if name != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"runtime.device: '{wanted}' is not one of auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        raise UsageError(f"runtime.device: '{wanted}' is not here: torch {torch.__version__} sees {count} CUDA devices")
    major, minor = torch.cuda.get_device_capability(int(index or 0))
    return Device(f"cuda:{index or 0}", f"cuda sm{major}{minor}", major >= 8, torch.get_num_threads())


def is_memory_full(error: BaseException) -> bool:
    """Whether torch asked for memory that the device has not. For that of the CPU it has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


@contextlib.contextmanager
def threads(n_threads: int | None) -> Iterator[None]:
    """Within it torch computes with so many threads; None leaves them as they are.

    A head's step takes microseconds: a second thread costs more than it does, and milliseconds on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(n_threads: int | None) -> None:
    """As many threads as the run that is resumed had; by default what torch took by itself (OMP_NUM_THREADS counts)."""
    if n_threads is not None:
        torch.set_num_threads(n_threads)
