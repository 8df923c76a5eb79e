"""What torch can compute on here."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from xfer.backends.backend import Device
from xfer.errors import UsageError

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


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


def fast_bfloat16(flags: frozenset[str], vendor: str) -> bool:
    """Whether convolutions in bfloat16 beat float32 on a processor with these features.

    Intel's avx512_bf16 alone does as many products a cycle as float32 does, and loses time on conversions (ResNet-18 on two
    cores: 40 images/s against 55); it takes the AMX tiles. AMD's, and Arm's bf16, do twice as many.
    """
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD") or "bf16" in flags


def vendor() -> str:
    """The processor's maker, as Linux gives it; empty elsewhere."""
    return _processor_line("vendor_id")


def cpu_flags() -> frozenset[str]:
    """The processor's feature names, as Linux gives them; empty elsewhere."""
    return frozenset(_processor_line("flags", "Features").split())


def _processor_line(*keys: str) -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return ""
    for line in information.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return ""


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
