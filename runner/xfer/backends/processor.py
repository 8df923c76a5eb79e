"""What the processor can do, without a framework: its features, and whether bfloat16 pays on it."""

from __future__ import annotations

from pathlib import Path

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
VECTOR_FLAGS = ("avx2", "avx512f", "asimd", "sve")


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
