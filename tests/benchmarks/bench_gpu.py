"""On a CUDA device: a ten-epoch linear probe and full fine-tuning against a plain loop that uses all cores and the same precision, whole
processes and images/s. Not run where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cold_run import MODELS, fine_tuning, probe, run_cold
from material import image_folder
from measured_loop import Loop, same_work
from process import python, run
from table import show

PROBE_EPOCHS, EPOCHS = 10, 5
ASK = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def bench(work: Path, *, n_images: int, models: list[str]) -> dict[str, Any]:
    name = run([sys.executable, "-c", ASK]).stdout.strip()
    if not name:
        print("\non a GPU: not run, no CUDA device", flush=True)
        return {"device": None}
    found: dict[str, Any] = {"device": name}
    for model in models:
        root = image_folder(work, n_images)
        target = {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}
        arguments = [model, str(MODELS[model]["weights"](work)), str(root / "train")]
        found[model] = {
            "probe": probed(work, probe(work, model, target, epochs=PROBE_EPOCHS), arguments, name=name),
            "all": tuned(work, fine_tuning(work, model, target, train="all", epochs=EPOCHS), arguments, name=name),
        }
    return found


def probed(work: Path, recipe: dict[str, Any], arguments: list[str], *, name: str) -> dict[str, Any]:
    """Whole processes, and the second run of the same recipe, whose features are stored already."""
    found, rows = {}, []
    for precision in ("float32", "bfloat16"):
        plain = run(python("plain_gpu.py", *arguments, str(PROBE_EPOCHS), precision, "head"))
        told = json.loads(plain.last_line)
        made = run_cold(work, recipe, precision=precision, device="cuda")
        extraction = made.images / made.extract_seconds
        train = made.result["timing"]["train_seconds"]
        found[precision] = {
            "plain_seconds": plain.seconds,
            "plain_epoch_seconds": told["seconds"],
            "xfer_seconds": made.done.seconds,
            "extraction_images_per_second": extraction,
            "train_seconds": train,
        }
        loop = told["images"] * (PROBE_EPOCHS - 1) / sum(told["seconds"][1:])
        rows.append(
            [
                precision,
                f"{plain.seconds:.1f}",
                f"{made.done.seconds:.1f}",
                f"{plain.seconds / made.done.seconds:.2f}",
                f"{sum(told['seconds']):.1f}",
                f"{made.extract_seconds:.1f} + {train:.1f}",
                f"{loop:.0f}",
                f"{extraction:.0f}",
            ]
        )
    head = ["precision", "plain, s", "xfer, s", "ratio", "its loop, s", "extraction + head, s", "plain images/s", "extraction images/s"]
    show(f"{PROBE_EPOCHS}-epoch linear probe, {recipe['name']}, {told['images']} JPEG files at 224 px, {name}", head, rows)
    return found


def tuned(work: Path, recipe: dict[str, Any], arguments: list[str], *, name: str) -> dict[str, Any]:
    found, rows = {}, []
    for precision in ("float32", "bfloat16"):
        plain = Loop.plain(run(python("plain_gpu.py", *arguments, str(EPOCHS), precision, "all")))
        ours = Loop.xfer(run_cold(work, recipe, precision=precision, device="cuda"))
        same_work({"plain": plain, "xfer": ours})
        found[precision] = {"plain": plain.figures(), "xfer": ours.figures()}
        for who, loop in (("plain", plain), ("xfer", ours)):
            rates = (loop.rate, loop.rates[0], loop.later_rate)
            rows.append([f"{who} {precision}", *(f"{rate:.0f}" for rate in rates), f"{loop.process_seconds:.1f}", loop.learning])
    head = ["process", "images/s, all epochs", "first epoch", "later epochs", "process seconds", "loss, first → last"]
    show(f"Full fine-tuning, {recipe['name']}, batches of 32 at 224 px, {EPOCHS} epochs, {name}", head, rows)
    return found
