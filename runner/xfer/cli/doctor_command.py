"""`xfer doctor`: what matters for a run on this machine, and what is in its way."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import psutil

LIBRARIES = (
    "xfer-runner", "torch", "torchvision", "timm", "tensorflow", "keras", "h5py", "ray", "numpy", "pillow", "omegaconf", "pydantic",
)  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
def command(as_json: bool) -> None:
    """Show versions, hardware and settings that matter."""
    found = look()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for section, values in found.items():
        click.echo(section)
        for name, value in values.items():
            click.echo(f"  {name:<16} {value if value is not None else 'not installed'}")


def look() -> dict[str, dict[str, Any]]:
    """Versions without importing anything, the processor, memory, GPUs and the cache folder."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = {
        "processor": platform.machine(),
        "features": " ".join(flag for flag in FLAGS if flag in _flags()) or "none that matter",
        "cores": usable,
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "gpu": _gpus(),
        "allocator": "glibc, tuned when a network is built" if platform.libc_ver()[0] == "glibc" else "left as it is (not glibc)",
    }
    return {"versions": versions, "hardware": hardware, "cache": _cache()}


def _cache() -> dict[str, Any]:
    folder = Path(os.environ.get("XFER_CACHE", "~/.cache/xfer")).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    sizes = list(_sizes(folder))
    return {
        "folder": str(folder),
        "writable": "yes" if os.access(there, os.W_OK) else f"no: {there} can't be written to; set runtime.cache or XFER_CACHE",
        "holds": f"{sum(sizes) / 1e6:.1f} MB in {len(sizes)} files",
        "free": f"{shutil.disk_usage(there).free / 1e9:.1f} GB",
    }


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes of each file below a folder; a run that goes on meanwhile may take files away."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(place, name)).st_size


def _gpus() -> str:
    """What the NVIDIA driver says is there, by name; 'none' where there is no driver."""
    names = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = information.read_text(errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(names) or ("an NVIDIA device" if Path("/dev/nvidia0").exists() else "none")


def _flags() -> frozenset[str]:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return frozenset()
    for line in information.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
