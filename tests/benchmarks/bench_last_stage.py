"""The last stage and the head train, all below is frozen: xfer, from activations that it stores once in an empty cache, against a careful
plain script that decodes the files and runs the frozen layers in every epoch. Float32, each process once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cold_run import MODELS, fine_tuning, run_cold
from material import image_folder
from measured_loop import Loop, same_work
from process import python, run
from table import against, show

MOST_IMAGES, EPOCHS = 384, 3
TRAIN = ["last 1 stages", "head"]
TARGET = 2.5
COMPARED = (
    "careful: layers below in eval mode, without gradients, channels last; 2 workers decode the files in every epoch; no validation",
    "xfer: the same photographs; seconds of an epoch's training as its metrics tell them; in the process's seconds alone:",
    "  extraction, validation on a tenth more photographs after each epoch, the baseline probe's features, the bundle",
    "each draws its own head and its own order of the images, so that losses are alike and not the same",
)


def bench(work: Path, *, n_images: int, models: list[str]) -> dict[str, Any]:
    return {model: one(work, model, n_images=min(n_images, MOST_IMAGES)) for model in models}


def one(work: Path, model: str, *, n_images: int) -> dict[str, Any]:
    root = image_folder(work, n_images)
    target = {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}
    recipe = fine_tuning(work, model, target, train=TRAIN, epochs=EPOCHS)
    arguments = ["plain_last_stage.py", model, str(MODELS[model]["weights"](work)), str(root / "train"), str(EPOCHS)]
    loops = {"careful": Loop.plain(run(python(*arguments)))}
    loops["careful, allocator tuned"] = Loop.plain(run(python("with_tuned_allocator.py", *arguments)))
    made = run_cold(work, recipe, precision="float32")
    loops["xfer"] = Loop.xfer(made)
    same_work(loops)
    place = json.loads((made.bundle / "plan.json").read_text())["phases"][0]["input"]
    ratios = {name: loop.later_seconds / loops["xfer"].later_seconds for name, loop in loops.items() if name != "xfer"}
    whole = loops["careful"].process_seconds / loops["xfer"].process_seconds
    notes = [
        f"the careful script against xfer, seconds an epoch after the first: {against(ratios['careful'], TARGET)}; "
        f"allocator tuned {ratios['careful, allocator tuned']:.3g}; whole processes of {EPOCHS} epochs {whole:.3g}",
        f"inside xfer: extraction {made.extract_seconds:.1f} s over {made.images} images, once; it trains from {place['cut']}, "
        f"shape {'x'.join(map(str, place['shape']))}, {place['mode']}; the cache ends at {made.stored_bytes / 1e6:.0f} MB",
    ]
    rows = [
        [
            name,
            f"{loop.seconds[0]:.2f}",
            f"{loop.later_seconds:.2f}",
            f"{loop.later_rate:.0f}",
            f"{loop.process_seconds:.1f}",
            loop.learning,
        ]
        for name, loop in loops.items()
    ]
    title = f"Last stage and head of {model}, {n_images} JPEG files at 224 px, batches of 32, {EPOCHS} epochs, SGD, float32, each once"
    head = ["process", "seconds, first epoch", "a later epoch", "images/s, later", "process seconds", "loss, first → last"]
    show(title, head, rows, notes=[*COMPARED, *notes])
    return {
        "loops": {name: loop.figures() for name, loop in loops.items()},
        "later_epochs_ratios": ratios,
        "process_ratio": whole,
        "timing": made.result["timing"],
        "input": place,
    }
