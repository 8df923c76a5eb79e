"""A ten-epoch linear probe, whole processes from start to end: xfer with an empty cache against two plain PyTorch scripts.

What is compared: the scripts train on the photographs in train/ and do nothing else. xfer trains on the same photographs, has a tenth more
in val/ (mirrored copies) to decode, put through the backbone and measure after each epoch, and writes its bundle.
The scripts run as their users run them. The careful one is run once more with the C library's allocator set as xfer sets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cold_run import MODELS, probe, run_cold
from material import image_folder
from process import median, python, run
from table import against, show

EPOCHS = 10
TARGETS = {"resnet18": True, "tf_efficientnet_lite0": False}  # whether a target was set; the same figures are printed for both


def bench(work: Path, *, n_images: int, models: list[str], repeats: int) -> dict[str, Any]:
    found = {}
    for model in models:
        found[model] = one(work, model, n_images=n_images, repeats=repeats)
    return found


def one(work: Path, model: str, *, n_images: int, repeats: int) -> dict[str, Any]:
    root = image_folder(work, n_images)
    weights = str(MODELS[model]["weights"](work))
    arguments = [model, weights, str(root / "train"), str(EPOCHS)]
    recipe = probe(work, model, {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}, epochs=EPOCHS)
    seconds = {"classic": run(python("plain_classic.py", *arguments)).seconds}
    seconds["careful"] = run(python("plain_careful.py", *arguments)).seconds
    seconds["careful, allocator tuned"] = run(python("with_tuned_allocator.py", "plain_careful.py", *arguments)).seconds
    inside = {}
    for precision in ("float32", "bfloat16"):
        runs = [run_cold(work, recipe, precision=precision) for _ in range(repeats)]
        seconds[f"xfer {precision}"] = median([each.done.seconds for each in runs])
        inside[precision] = {**runs[-1].result["timing"], "images": runs[-1].images}
    classic = seconds["classic"] / seconds["xfer bfloat16"]
    careful = seconds["careful"] / seconds["xfer float32"]
    notes = [
        f"xfer bfloat16 against the classic script: {against(classic, 15) if TARGETS[model] else f'{classic:.3g}'}",
        f"xfer float32 against the careful script: {against(careful, 7) if TARGETS[model] else f'{careful:.3g}'}",
    ]
    notes += [
        f"inside xfer {precision}: extraction {t['extract_seconds']:.1f} s, training {t['train_seconds']:.1f} s, {t['images']} images"
        for precision, t in inside.items()
    ]
    rows = [[name, f"{value:.1f}", f"{n_images * EPOCHS / value:.0f}"] for name, value in seconds.items()]
    show(f"{EPOCHS}-epoch linear probe, {model} at 224 px, {n_images} JPEG files", ["process", "seconds", "images/s"], rows, notes=notes)
    return {"seconds": seconds, "timing": inside, "bfloat16_against_classic": classic, "float32_against_careful": careful}
