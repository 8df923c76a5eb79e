"""What torch can compute on here."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from xfer.backends.backend import Device
from xfer.errors import UsageError

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")


def find(wanted: str) -> Device:
    """The device that 'auto', 'cpu', 'cuda' or 'cuda:1' means on this machine."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        flags = cpu_flags()
        fast = [flag for flag in BFLOAT16_FLAGS if flag in flags]
        kind = " ".join(["cpu", platform.machine(), torch.backends.cpu.get_cpu_capability(), *fast])
        return Device("cpu", kind, bool(fast), torch.get_num_threads())
    name, _, index = wanted.partition(":")
    if name != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"runtime.device: '{wanted}' is not one of auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        raise UsageError(f"runtime.device: '{wanted}' is not here: torch {torch.__version__} sees {count} CUDA devices")
    major, minor = torch.cuda.get_device_capability(int(index or 0))
    return Device(f"cuda:{index or 0}", f"cuda sm{major}{minor}", major >= 8, torch.get_num_threads())


def cpu_flags() -> frozenset[str]:
    """The processor's feature names, as Linux gives them; empty elsewhere."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return frozenset()
    for line in information.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


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
