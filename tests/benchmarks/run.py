"""What `make bench` runs: every benchmark, or a part, as tables and as JSON. It measures; it never fails because a machine is slow.

    python tests/benchmarks/run.py --part probe --only resnet18 --images 200
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_extraction
import bench_finetune
import bench_last_stage
import bench_memory
import bench_probe
import bench_spatial_memory
import bench_startup
from cold_run import MODELS

PARTS = ("startup", "memory", "extraction", "probe", "finetune")
PIECES = ("finetune-all", "finetune-last", "finetune-memory")  # what the part finetune is made of


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return {
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "vector_units": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags],
        "python": platform.python_version(),
        **{library: version(library) for library in ("torch", "torchvision", "timm", "xfer-runner")},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS + PIECES, help="one benchmark; may be given again (default: all)")
    parser.add_argument("--only", action="append", choices=list(MODELS), help="one model (default: both)")
    images = "how many photographs, up to 2000 (fine-tuning: up to 384); memory is scaled likewise"
    parser.add_argument("--images", type=int, default=2000, help=images)
    repeats = "how often xfer is run for a median; the plain scripts, and all of fine-tuning, run once"
    parser.add_argument("--repeats", type=int, default=3, help=repeats)
    parser.add_argument("--work", type=Path, default=Path("bench"), help="where images, weights and results are put")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = chosen.only or list(MODELS)
    found: dict[str, Any] = {"machine": machine(), "images": chosen.images, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()), flush=True)
    benches = {
        "startup": lambda: bench_startup.bench(work),
        "memory": lambda: bench_memory.bench(work, scale=chosen.images / 2000),
        "extraction": lambda: bench_extraction.bench(work, n_images=chosen.images, models=models, repeats=chosen.repeats),
        "probe": lambda: bench_probe.bench(work, n_images=chosen.images, models=models, repeats=chosen.repeats),
        "finetune-all": lambda: bench_finetune.bench(work, n_images=chosen.images, models=models),
        "finetune-last": lambda: bench_last_stage.bench(work, n_images=chosen.images, models=models),
        "finetune-memory": lambda: bench_spatial_memory.bench(work, scale=chosen.images / 2000),
    }
    for part in chosen.part or PARTS:
        for piece in PIECES if part == "finetune" else (part,):
            found[piece] = benches[piece]()
            (work / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {work / 'results.json'}")


if __name__ == "__main__":
    main()
