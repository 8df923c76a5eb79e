"""Anonymous memory (RssAnon) at its peak: a probe over many images against one over a quarter of them. Features lie in a memory-mapped
store, so the number of images should hardly show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cold_run import probe, run_cold
from material import arrays
from table import against, show

MANY, FEW, SIDE = 20_000, 5_000, 64
FEATURE_BYTES = 512 * 4  # one row of ResNet-18's pooled features in float32
TARGET = 1.3


def bench(work: Path, *, scale: float = 1.0) -> dict[str, Any]:
    peaks, seconds = {}, {}
    for n_images in (int(FEW * scale), int(MANY * scale)):
        root = arrays(work, n_images, SIDE)
        target = {"dataset": "arrays", "path": str(root), "image_size": SIDE, "splits": {"val": 0.1, "test": 0.1}}
        recipe = probe(work, "resnet18", target, epochs=3)
        recipe["source"]["preprocess"] |= {"resize": SIDE, "crop": SIDE}
        made = run_cold(work, recipe, precision="float32", watch_memory=True)
        if made.done.rss_anon_bytes is None:
            print("\nMemory: not run: this system does not tell a process's anonymous memory")
            return {}
        peaks[n_images], seconds[n_images] = made.done.rss_anon_bytes, made.done.seconds
    few, many = sorted(peaks)
    ratio = peaks[many] / peaks[few]
    per_image = (peaks[many] - peaks[few]) / (many - few)
    notes = [
        f"{many} images against {few}: {against(ratio, TARGET, at_most=True)}",
        f"each further image takes {per_image:.0f} bytes; its features in the store are {FEATURE_BYTES}, its pixels {SIDE * SIDE * 3}",
    ]
    rows = [[f"{n} images", f"{peaks[n] / 1e6:.0f}", f"{seconds[n]:.1f}"] for n in (few, many)]
    show(f"Peak of anonymous memory, linear probe of ResNet-18 at {SIDE} px", ["probe over", "MB", "seconds"], rows, notes=notes)
    return {"peak_bytes": peaks, "ratio": ratio, "bytes_per_image": per_image}
