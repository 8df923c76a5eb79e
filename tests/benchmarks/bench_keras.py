"""The TensorFlow backend against plain Keras scripts: the same MobileNetV2 with its 1024 head, real small images in CIFAR-10's format,
batches of 32, Adam, float32. Whole processes from start to end; xfer with an empty cache each time.

The plain scripts run as their users run them and once each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cold_run import Run, run_cold
from keras_material import archive, keras_home, n_test_images
from measured_loop import Loop, same_work
from process import Done, median, python, run
from table import against, show

EPOCHS = 10
SET_FOR_IMAGES = 10_000  # what the targets were set for
PROBE_TARGETS = {32: 4.0, 96: 5.0}  # whole processes, against the classic script, by the side of the images in pixels
HEAD_RATE = 8000  # images/s that the head's loop must do for the first of them
FINETUNE_SIDE, FINETUNE_IMAGES, FINETUNE_EPOCHS, FINETUNE_TARGET = 96, 960, 3, 0.95
EXTRACTION_TARGET = 0.9
HEADS = "Keras draws a new head about twice as large as xfer does: its losses begin higher and fall faster at first"
PROBE_COMPARED = (
    "classic: base.trainable = False and model.fit; at 32 px over arrays in memory, else tf.data resizes beside the loop in every epoch",
    "careful: the base once by predict, then the head alone by model.fit; its images/s are those of the head",
    "xfer: the same images; images/s are those of the head's loop, as its metrics tell them; whole process: extraction of the test",
    "  images, the baseline probe, predictions and the bundle too. The scripts and xfer measure once on the test images, none on others",
    HEADS,
)
FINETUNE_COMPARED = (
    "plain: every layer trains in model.fit, over float32 arrays that are resized and normalised before the first epoch; no validation",
    "xfer: the same images, stored as bytes; images/s as its result (all epochs) and its metrics (by epoch) tell them of the phase",
    HEADS,
)


def recipe(side: int, *, transfer: str, train: str, epochs: int, lr: float) -> dict[str, Any]:
    """One phase, as the plain scripts train it."""
    return {
        "name": f"bench-keras-{side}",
        "source": {
            "model": "keras/MobileNetV2",
            "weights": "DEFAULT",
            "preprocess": {"resize": side, "crop": side, "interpolation": "bilinear"},
        },
        "target": {"dataset": "keras/cifar10", "splits": {"val": 0.0, "test": 0.0}, "image_size": side, "batch_size": 32},
        "transfer": {"type": transfer},
        "head": {"hidden": [1024]},
        "freeze": [{"train": train, "epochs": epochs}],
        "optimizer": {"name": "adam", "lr": lr},
    }


def fewer(n_images: int) -> list[str]:
    """What is to be said of a shrunken run."""
    if n_images >= SET_FOR_IMAGES:
        return []
    return [f"shrunk: {n_images} images, and the targets were set for {SET_FOR_IMAGES}: starting up weighs more here"]


def probe(work: Path, *, n_images: int, repeats: int) -> dict[str, Any]:
    return {str(side): one_probe(work, side, n_images=n_images, repeats=repeats) for side in PROBE_TARGETS}


def one_probe(work: Path, side: int, *, n_images: int, repeats: int) -> dict[str, Any]:
    home = keras_home(work, n_images)
    environment = {"KERAS_HOME": str(home)}
    plain = {
        name: run(python(script, str(archive(home)), str(side), str(EPOCHS)), environment=environment)
        for name, script in {"classic": "plain_keras.py", "careful": "plain_keras_careful.py"}.items()
    }
    written = recipe(side, transfer="feature", train="head", epochs=EPOCHS, lr=1e-3)
    runs, loops = [], {name: Loop.plain(done) for name, done in plain.items()}
    for _ in range(repeats):
        runs.append(run_cold(work, written, precision="float32", environment=environment))
        loops["xfer"] = Loop.xfer(runs[-1])  # of the last one: the bundle is there until the next run
    same_work(loops)
    seconds = {name: done.seconds for name, done in plain.items()} | {"xfer": median([each.done.seconds for each in runs])}
    accuracies = {name: told(done)["test_accuracy"] for name, done in plain.items()} | {"xfer": test_accuracy(runs[-1])}
    found = {
        "images": n_images,
        "seconds": seconds,
        "xfer_seconds": [each.done.seconds for each in runs],
        "against_xfer": {name: seconds[name] / seconds["xfer"] for name in plain},
        "loops": {name: loop.figures() for name, loop in loops.items()},
        "head_images_per_second": {name: loops[name].later_rate for name in ("careful", "xfer")},
        "test_accuracy": accuracies,
        "timing": runs[-1].result["timing"],
        "extracted": runs[-1].images,
    }
    show_probe(side, found, loops, repeats=repeats)
    return found


def show_probe(side: int, found: dict[str, Any], loops: dict[str, Loop], *, repeats: int) -> None:
    ratios, rates, timing, n_images = found["against_xfer"], found["head_images_per_second"], found["timing"], found["images"]
    notes = [
        f"the classic script against xfer, whole processes: {against(ratios['classic'], PROBE_TARGETS[side])}; "
        f"careful {ratios['careful']:.3g}",
        f"the head's loop after the first epoch: xfer {rates['xfer']:.0f} images/s (some {HEAD_RATE} are needed at 32 px), "
        f"model.fit {rates['careful']:.0f}",
        f"inside xfer: extraction {timing['extract_seconds']:.1f} s over {found['extracted']} images, "
        f"training {timing['train_seconds']:.1f} s",
        *fewer(n_images),
    ]
    rows = [
        [
            name,
            f"{found['seconds'][name]:.1f}",
            f"{loop.rates[0]:.0f}",
            f"{loop.later_rate:.0f}",
            loop.learning,
            f"{found['test_accuracy'][name]:.3f}",
        ]
        for name, loop in loops.items()
    ]
    title = f"{EPOCHS} epochs of a frozen MobileNetV2 with a 1024 head, {n_images} images at {side} px, Keras; xfer: median of {repeats}"
    head = ["process", "seconds", "images/s, first epoch", "later epochs", "loss, first → last", f"accuracy on {n_test_images(n_images)}"]
    show(title, head, rows, notes=[*PROBE_COMPARED, *notes])


def finetune(work: Path, *, n_images: int) -> dict[str, Any]:
    n_images, side = min(n_images, FINETUNE_IMAGES), FINETUNE_SIDE
    home = keras_home(work, n_images)
    environment = {"KERAS_HOME": str(home)}
    arguments = [str(archive(home)), str(side), str(FINETUNE_EPOCHS)]
    loops = {"plain": Loop.plain(run(python("plain_keras_finetune.py", *arguments), environment=environment))}
    written = recipe(side, transfer="model", train="all", epochs=FINETUNE_EPOCHS, lr=1e-4)
    made = run_cold(work, written, precision="float32", environment=environment)
    loops["xfer"] = Loop.xfer(made)
    same_work(loops)
    plain, ours = loops["plain"], loops["xfer"]
    ratios = {
        "all_epochs": ours.rate / plain.rate,
        "later_epochs": ours.later_rate / plain.later_rate,
        "process": plain.process_seconds / ours.process_seconds,
    }
    notes = [
        f"xfer against model.fit, images/s in training, all epochs: {against(ratios['all_epochs'], FINETUNE_TARGET)}",
        f"after the first epoch, which holds the making of the graph: {against(ratios['later_epochs'], FINETUNE_TARGET)}; "
        f"whole processes {ratios['process']:.3g}",
        *([f"shrunk: {n_images} images instead of {FINETUNE_IMAGES}"] if n_images < FINETUNE_IMAGES else []),
    ]
    rows = [
        [name, *(f"{rate:.1f}" for rate in (loop.rate, loop.rates[0], loop.later_rate)), f"{loop.process_seconds:.1f}", loop.learning]
        for name, loop in loops.items()
    ]
    title = f"Full fine-tuning of MobileNetV2, Keras, {n_images} images at {side} px, {FINETUNE_EPOCHS} epochs, each once"
    head = ["process", "images/s, all epochs", "first epoch", "later epochs", "process seconds", "loss, first → last"]
    show(title, head, rows, notes=[*FINETUNE_COMPARED, *notes])
    return {
        "images": n_images,
        "loops": {name: loop.figures() for name, loop in loops.items()},
        "ratios": ratios,
        "timing": made.result["timing"],
    }


def extraction(work: Path, *, n_images: int, repeats: int) -> dict[str, Any]:
    found, rows, notes = {}, [], []
    for side in PROBE_TARGETS:
        rates = one_extraction(work, side, n_images=n_images, repeats=repeats)
        found[str(side)] = rates
        speeds = [f"{rates[name]:.0f}" for name in ("extraction", "predict_32", "predict_same")]
        rows.append([f"{side} px", *speeds, f"{rates['ratio']:.3f}"])
        notes.append(f"extraction against the faster predict, {side} px: {against(rates['ratio'], EXTRACTION_TARGET)}")
    head = ["images/s", "extraction", "predict, batches of 32", "predict, batches as xfer's", "ratio"]
    title = f"Extraction of {n_images} images, resizing included, against model.predict over ready tensors, medians of {repeats}"
    show(title, head, rows, notes=[*notes, *fewer(n_images)])
    return {"images": n_images, **found}


def one_extraction(work: Path, side: int, *, n_images: int, repeats: int) -> dict[str, float]:
    """The two take turns."""
    home = keras_home(work, n_images)
    environment = {"KERAS_HOME": str(home)}
    written = recipe(side, transfer="feature", train="head", epochs=1, lr=1e-3)
    ours, small, same = [], [], []
    for _ in range(repeats):
        made = run_cold(work, written, precision="float32", environment=environment)
        ours.append(made.images / made.extract_seconds)
        batch = json.loads((made.bundle / "plan.json").read_text())["runtime"]["extraction_batch"]
        arguments = [str(archive(home)), str(side), str(n_images), str(batch)]
        rates = told(run(python("bare_keras_predict.py", *arguments), environment=environment))
        small.append(rates["32"])
        same.append(rates[str(batch)])
    rates = {"extraction": median(ours), "predict_32": median(small), "predict_same": median(same)}
    return {**rates, "ratio": rates["extraction"] / max(rates["predict_32"], rates["predict_same"])}


def told(done: Done) -> dict[str, Any]:
    """The last line of a plain script."""
    found: dict[str, Any] = json.loads(done.last_line)
    return found


def test_accuracy(made: Run) -> float:
    return float(made.result["metrics"]["test"]["accuracy"])
