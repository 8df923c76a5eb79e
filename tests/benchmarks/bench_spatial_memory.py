"""Anonymous memory (RssAnon) at its peak where the store is large: ResNet-18 trains from layer2 up, from stored activations of layer1, over
many images against a quarter of them. The rows lie in a memory-mapped store, so their number should hardly show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cold_run import Run, fine_tuning, run_cold
from material import arrays
from table import against, show

MANY, FEW = 2600, 650
SIDE = 112  # of the images in the array; they are resized and cropped to 224 like photographs
TRAIN = ["layer2", "layer3", "layer4", "head"]
SHAPE = (64, 56, 56)  # what layer1 gives for an image of 224 px
ROW_BYTES = math.prod(SHAPE) * 4
LARGE_BYTES = 2e9
TARGET = 1.3


def bench(work: Path, *, scale: float = 1.0) -> dict[str, Any]:
    peaks, seconds, stored = {}, {}, {}
    for n_images in (int(FEW * scale), int(MANY * scale)):
        root = arrays(work, n_images, SIDE)
        target = {"dataset": "arrays", "path": str(root), "splits": {"val": 0.02, "test": 0.02}}
        made = run_cold(work, fine_tuning(work, "resnet18", target, train=TRAIN, epochs=1), precision="float32", watch_memory=True)
        stored[n_images] = store_bytes(made)
        if made.done.rss_anon_bytes is None:
            print("\nMemory of spatial activations: not run: this system does not tell a process's anonymous memory")
            return {}
        peaks[n_images], seconds[n_images] = made.done.rss_anon_bytes, made.done.seconds
    few, many = sorted(peaks)
    if scale >= 1 and stored[many] <= LARGE_BYTES:
        raise SystemExit(f"the store holds {stored[many] / 1e9:.2f} GB, and this is about more than {LARGE_BYTES / 1e9:g} GB")
    ratio = peaks[many] / peaks[few]
    per_image = (peaks[many] - peaks[few]) / (many - few)
    notes = [
        f"{many} images against {few}: {against(ratio, TARGET, at_most=True)}",
        f"each further image takes {per_image:.0f} bytes of memory; its row in the store takes {ROW_BYTES}",
    ]
    rows = [[f"{n} images", f"{stored[n] / 1e6:.0f}", f"{peaks[n] / 1e6:.0f}", f"{seconds[n]:.1f}"] for n in (few, many)]
    title = f"Peak of anonymous memory, ResNet-18 trains {', '.join(TRAIN)} for one epoch from layer1's stored output {SHAPE}, float32"
    show(title, ["trained over", "store MB", "peak MB", "seconds"], rows, notes=notes)
    return {"peak_bytes": peaks, "store_bytes": stored, "ratio": ratio, "bytes_per_image": per_image}


def store_bytes(made: Run) -> int:
    """Bytes of the rows that the phase trains from; stops where it does not train from layer1's stored output, or the cache held less."""
    place = json.loads((made.bundle / "plan.json").read_text())["phases"][0]["input"]
    if (place["mode"], tuple(place["shape"])) != ("stored", SHAPE):
        raise SystemExit(f"the run trains from {place['cut']} {tuple(place['shape'])}, {place['mode']}, not from stored rows of {SHAPE}")
    n_bytes = made.images * ROW_BYTES
    if made.stored_bytes < n_bytes:
        raise SystemExit(f"the cache held {made.stored_bytes} bytes, and {made.images} rows of {SHAPE} are {n_bytes}")
    return n_bytes
