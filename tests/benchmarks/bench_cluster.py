"""What a run costs beside its work: in one process against a script that does the same by hand, over two workers of a Ray on this machine
against one process, and how extraction by a pool scales from one worker to two."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from cold_run import MODELS, probe, run_cold
from material import image_folder
from process import median, python, run, xfer
from table import against, show

EPOCHS, MOST_IMAGES = 10, 400
IMPORTING = "import torch, torchvision, timm"
FILL = """
import sys
from pathlib import Path
from xfer.engine.from_anywhere import from_anywhere
from xfer.cluster.connect import connected
from xfer.cluster.extraction_pool import fill
from xfer.compile.compiler import compile_plan
from xfer.engine.reporter import Silent
from xfer.recipe.loader import read
chosen = (f"runtime.cache={sys.argv[2]}", "runtime.precision=float32", "runtime.device=cpu")
plan = from_anywhere(compile_plan(read(Path(sys.argv[1]), chosen)))
small = plan.runtime.model_copy(update={"shard_rows": 32})  # some hundred images would be one shard, which is one worker's
plan = plan.model_copy(update={"runtime": small})
with connected(None, words=Path(sys.argv[2] + ".log")):
    made = fill(plan, storage=None, actors=int(sys.argv[3]), cpus_per_actor=1.0, reporter=Silent(), stop=lambda: False)
figures = next(iter(made.values()))
print(figures.rows / figures.seconds)
"""


def bench(work: Path, *, n_images: int, repeats: int) -> dict[str, Any]:
    n_images, model = min(n_images, MOST_IMAGES), "resnet18"
    root = image_folder(work, n_images)
    recipe = probe(work, model, {"dataset": "folder", "path": str(root), "splits": {"val": 0.0, "test": 0.0}}, epochs=EPOCHS)
    arguments = [model, str(MODELS[model]["weights"](work)), str(root), str(EPOCHS)]
    by_hand, ours, importing = [], [], []
    for _ in range(repeats):  # in turn, so that a machine that slows down slows all of them
        importing.append(run([sys.executable, "-c", IMPORTING]).seconds)
        by_hand.append(run(python("plain_features_once.py", *arguments)).seconds)
        ours.append(run_cold(work, recipe, precision="float32").done.seconds)
    seconds = {"importing the framework": median(importing), "by hand": median(by_hand), "xfer run": median(ours)}
    seconds["xfer run --workers 2"] = spread(work, recipe)
    overhead = (seconds["xfer run"] - seconds["by hand"]) / seconds["importing the framework"]
    notes = [
        f"overhead of xfer run, in times of importing the framework: {against(overhead, 0.5, at_most=True)}",
        f"overhead of the Ray path, its own Ray started and ended: {seconds['xfer run --workers 2'] - seconds['xfer run']:.1f} s",
    ]
    title = f"A run beside its work: probe of {model}, {n_images} JPEG files, {EPOCHS} epochs, whole processes, medians of {repeats}"
    show(title, ["process", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()], notes=notes)
    rates = {actors: scaled(work, recipe, actors) for actors in (1, 2)}
    rows = [[f"{actors} of one thread", f"{rate:.1f}", f"{rate / rates[1]:.2f}"] for actors, rate in rates.items()]
    show("Extraction by a pool of workers, starting them left out", ["workers", "images/s", "ratio"], rows)
    return {"seconds": seconds, "overhead_in_imports": overhead, "extraction_images_per_second": rates}


def spread(work: Path, recipe: dict[str, Any]) -> float:
    file, cache, bundle = work / "spread.yaml", work / "cache", work / "bundle"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    for folder in (cache, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    options = ["runtime.precision=float32", "runtime.device=cpu", f"runtime.cache={cache}", "--workers", "2", "--out", str(bundle)]
    return run(xfer("run", str(file), *options)).seconds


def scaled(work: Path, recipe: dict[str, Any], actors: int) -> float:
    """images/s of a pool with an empty cache."""
    file, cache = work / "spread.yaml", work / f"cache-{actors}"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-c", FILL, str(file), str(cache), str(actors)]
    return float(run(command, environment={"OMP_NUM_THREADS": "1"}).last_line)
