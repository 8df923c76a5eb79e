"""Extraction, decoding included, against a bare inference loop over ready tensors in the same precision, memory format, batch and
allocator setting. The two take turns in processes of their own, and the medians are compared; decoding alone is printed beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cold_run import MODELS, probe, run_cold
from material import image_folder
from process import median, python, run
from table import against, show

TARGET = 0.87


def bench(work: Path, *, n_images: int, models: list[str], repeats: int) -> dict[str, Any]:
    found = {}
    rows, notes = [], []
    for model in models:
        for precision in ("float32", "bfloat16"):
            rates = one(work, model, precision, n_images=n_images, repeats=repeats)
            found[f"{model} {precision}"] = rates
            speeds = [f"{rates[name]:.0f}" for name in ("extraction", "bare", "decoding")]
            rows.append([f"{model} {precision}", *speeds, f"{rates['ratio']:.3f}"])
            if model == "resnet18":
                notes.append(f"extraction against the bare loop, {model} {precision}: {against(rates['ratio'], TARGET)}")
    head = ["images/s at 224 px", "extraction", "bare loop", "decoding alone", "ratio"]
    show(f"Extraction of {n_images} JPEG files, medians of {repeats}", head, rows, notes=notes)
    return found


def one(work: Path, model: str, precision: str, *, n_images: int, repeats: int) -> dict[str, float]:
    root = image_folder(work, n_images)
    weights = str(MODELS[model]["weights"](work))
    target = {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}
    recipe = probe(work, model, target, epochs=1)
    extraction, bare, decoding = [], [], []
    for _ in range(repeats):
        made = run_cold(work, recipe, precision=precision)
        extraction.append(made.images / made.extract_seconds)
        batch = json.loads((made.bundle / "plan.json").read_text())["runtime"]["extraction_batch"]
        bare.append(float(run(python("bare_inference.py", model, weights, precision, str(n_images), str(batch))).last_line))
        decoding.append(float(run(python("decode_only.py", str(root), str(batch), str(os.cpu_count() or 1))).last_line))
    rates = {"extraction": median(extraction), "bare": median(bare), "decoding": median(decoding)}
    return {**rates, "ratio": rates["extraction"] / rates["bare"]}
