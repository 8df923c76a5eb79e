"""Full fine-tuning, every layer, SGD, batches of 32 at 224 px: xfer with an empty cache against a plain PyTorch loop in the same precision.

The plain loop runs as its users run it, in float32 once more with the C library's allocator set as xfer sets it. Each process runs once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cold_run import MODELS, fine_tuning, run_cold
from material import image_folder
from measured_loop import Loop, same_work
from process import python, run
from table import against, show

MOST_IMAGES, EPOCHS = 384, 3
COMPARED = (
    "plain: train mode, NCHW; 2 workers decode the files beside the loop in every epoch, and its images/s hold that; no validation",
    "xfer: the same photographs; images/s as its result (all epochs) and its metrics (by epoch) tell them of the phase;",
    "  in the process's seconds alone: what is extracted before the phase, validation on a tenth more photographs after each epoch,",
    "  the baseline probe's features, the bundle",
    "each draws its own head and its own order of the images, so that losses are alike and not the same",
)
TARGETS = {"resnet18": 1.0, "tf_efficientnet_lite0": 1.4}  # images/s in float32, over all epochs, the plain loop as its users run it


def bench(work: Path, *, n_images: int, models: list[str]) -> dict[str, Any]:
    return {model: one(work, model, n_images=min(n_images, MOST_IMAGES)) for model in models}


def one(work: Path, model: str, *, n_images: int) -> dict[str, Any]:
    root = image_folder(work, n_images)
    target = {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}
    recipe = fine_tuning(work, model, target, train="all", epochs=EPOCHS)
    arguments = ["plain_finetune.py", model, str(MODELS[model]["weights"](work)), str(root / "train"), str(EPOCHS)]
    loops, notes, found = {}, [], {}
    for precision in ("float32", "bfloat16"):
        plain = Loop.plain(run(python(*arguments, precision)))
        made = run_cold(work, recipe, precision=precision)
        ours = Loop.xfer(made)
        loops |= {f"plain {precision}": plain, f"xfer {precision}": ours}
        ratios = {
            "all_epochs": ours.rate / plain.rate,
            "later_epochs": ours.later_rate / plain.later_rate,
            "process": plain.process_seconds / ours.process_seconds,
        }
        found[precision] = {"ratios": ratios, "timing": made.result["timing"]}
        all_epochs = ratios["all_epochs"]
        notes += [
            f"xfer {precision} against the plain loop, images/s in training: "
            f"{against(all_epochs, TARGETS[model]) if precision == 'float32' else f'{all_epochs:.3g}'}; "
            f"after the first epoch {ratios['later_epochs']:.3g}; whole processes {ratios['process']:.3g}",
            f"inside xfer {precision}: extraction, outside its epochs, {made.extract_seconds:.1f} s over {made.images} images, "
            f"training {made.result['timing']['train_seconds']:.1f} s",
        ]
    tuned = Loop.plain(run(python("with_tuned_allocator.py", *arguments, "float32")))
    loops["plain float32, allocator tuned"] = tuned
    same_work(loops)
    found["float32"]["ratios"]["all_epochs_allocator_tuned"] = with_tuned = loops["xfer float32"].rate / tuned.rate
    notes.append(f"xfer float32 against the plain loop with the allocator tuned: {with_tuned:.3g}")
    rows = [
        [name, *(f"{rate:.1f}" for rate in (loop.rate, loop.rates[0], loop.later_rate)), f"{loop.process_seconds:.1f}", loop.learning]
        for name, loop in loops.items()
    ]
    title = f"Full fine-tuning of {model}, {n_images} JPEG files at 224 px, batches of 32, {EPOCHS} epochs, SGD, each once"
    head = ["process", "images/s, all epochs", "first epoch", "later epochs", "process seconds", "loss, first → last"]
    show(title, head, rows, notes=[*COMPARED, *notes])
    return {"loops": {name: loop.figures() for name, loop in loops.items()}, **found}
