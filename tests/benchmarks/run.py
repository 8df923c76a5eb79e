"""What `make bench` runs: every benchmark, or a part, as tables and as JSON. It measures; it never fails because a machine is slow.

python tests/benchmarks/run.py --part probe --only resnet18 --images 200
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench_cluster
import bench_extraction
import bench_finetune
import bench_gpu
import bench_keras
import bench_last_stage
import bench_memory
import bench_probe
import bench_spatial_memory
import bench_startup
from cold_run import MODELS

PIECES = {  # what each part is made of
    "startup": ("startup",),
    "memory": ("memory",),
    "extraction": ("extraction",),
    "probe": ("probe",),
    "finetune": ("finetune-all", "finetune-last", "finetune-memory"),
    "keras": ("keras-probe", "keras-finetune", "keras-extraction"),
    "gpu": ("gpu",),
    "cluster": ("cluster",),
}
LIBRARIES = ("torch", "torchvision", "timm", "tensorflow", "keras", "ray", "xfer-runner")
PHOTOGRAPHS = 2000  # as many as there are


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
        **{library: version_of(library) for library in LIBRARIES},
    }


def version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def arguments() -> argparse.Namespace:
    choices = list(dict.fromkeys([*PIECES, *(piece for pieces in PIECES.values() for piece in pieces)]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=choices, help="one benchmark; may be given again (default: all)")
    parser.add_argument("--only", action="append", choices=list(MODELS), help="one model on PyTorch (default: both)")
    images = (
        f"how many photographs, up to {PHOTOGRAPHS} (fine-tuning: up to 384); memory is scaled likewise; "
        f"with Keras how many small images (default {bench_keras.SET_FOR_IMAGES}, fine-tuning: up to {bench_keras.FINETUNE_IMAGES})"
    )
    parser.add_argument("--images", type=int, help=images)
    repeats = "how often xfer is run for a median; the plain scripts, and all of fine-tuning, run once"
    parser.add_argument("--repeats", type=int, default=3, help=repeats)
    parser.add_argument("--work", type=Path, default=Path("bench"), help="where images, weights and results are put")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = chosen.only or list(MODELS)
    n_images, n_small = chosen.images or PHOTOGRAPHS, chosen.images or bench_keras.SET_FOR_IMAGES
    found: dict[str, Any] = {"machine": machine(), "images": n_images, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()), flush=True)
    benches = {
        "startup": lambda: bench_startup.bench(work),
        "memory": lambda: bench_memory.bench(work, scale=n_images / PHOTOGRAPHS),
        "extraction": lambda: bench_extraction.bench(work, n_images=n_images, models=models, repeats=chosen.repeats),
        "probe": lambda: bench_probe.bench(work, n_images=n_images, models=models, repeats=chosen.repeats),
        "finetune-all": lambda: bench_finetune.bench(work, n_images=n_images, models=models),
        "finetune-last": lambda: bench_last_stage.bench(work, n_images=n_images, models=models),
        "finetune-memory": lambda: bench_spatial_memory.bench(work, scale=n_images / PHOTOGRAPHS),
        "cluster": lambda: bench_cluster.bench(work, n_images=n_images, repeats=chosen.repeats),
        "gpu": lambda: bench_gpu.bench(work, n_images=n_images, models=models),
        "keras-probe": lambda: bench_keras.probe(work, n_images=n_small, repeats=chosen.repeats),
        "keras-finetune": lambda: bench_keras.finetune(work, n_images=n_small),
        "keras-extraction": lambda: bench_keras.extraction(work, n_images=n_small, repeats=chosen.repeats),
    }
    for part in chosen.part or PIECES:
        for piece in PIECES.get(part, (part,)):
            found[piece] = benches[piece]()
            (work / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {work / 'results.json'}")


if __name__ == "__main__":
    main()
