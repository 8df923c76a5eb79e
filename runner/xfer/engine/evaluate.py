"""A bundle's model on data: evaluated against labels (each opening goes into the ledger), or predicting for files without any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xfer import plugins
from xfer.backends.backend import Backend, Network, backend_named
from xfer.compile.data_facts import open_dataset
from xfer.data.dataset import Dataset
from xfer.data.pipeline import decoded
from xfer.engine.bundle import Bundle, load_plugins
from xfer.engine.inputs import Inputs, contents_digest, decode_threads
from xfer.engine.reporter import Reporter
from xfer.engine.target import Target
from xfer.engine.training import predict, softmax
from xfer.errors import BundleError, DataError
from xfer.ops.metrics import classification, intervals
from xfer.plan.model_map import PIXELS
from xfer.plan.plan import Plan
from xfer.sources.model_paths import kept, refuse_another

FOLDER = "folder"


@dataclass(frozen=True)
class Loaded:
    """A bundle's network, ready."""

    plan: Plan
    backend: Backend
    network: Network


def load(bundle: Bundle, *, precision: str | None = None) -> Loaded:
    """The trained model; raises BundleError where the run did not get so far."""
    if not (bundle.folder / "model" / "labels.json").exists():
        status = bundle.result().get("status", "running")
        raise BundleError(f"{bundle.folder} has no model: its run is {status}", hint=f"go on with: xfer run --resume {bundle.folder}")
    plan = bundle.plan.model_copy(update={"source": kept(bundle.plan.source, bundle.folder)})
    if precision is not None:
        plan = plan.model_copy(update={"runtime": plan.runtime.model_copy(update={"precision": precision})})
    load_plugins(plan)
    refuse_another(plan.source, bundle.lock().get("model"), bundle=bundle.folder)
    backend = backend_named(plan.backend)
    return Loaded(plan, backend, backend.load(plan, bundle.folder / "model"))


def evaluate(bundle: Bundle, *, data: str | None, split: str, reporter: Reporter) -> dict[str, Any]:
    """Metrics of a split of the bundle's own data, or of a folder of class folders. Test labels are opened, and the ledger says so."""
    loaded = load(bundle)
    target = Target.open(loaded.plan.data) if data is None else _other(loaded.plan, data)
    last = loaded.plan.phases[-1].input
    versions, device = loaded.backend.versions(), loaded.backend.device(loaded.plan.runtime.device)
    contents = contents_digest(target, cache=Path(loaded.plan.runtime.cache))
    inputs = Inputs(loaded.plan, last, target, loaded.network, versions=versions, device=device, contents=contents)
    target.bad.update(inputs.prepare(target.all_rows, reporter=reporter, stop=lambda: False))
    rows = target.rows(split)
    if not len(rows):
        raise DataError(f"the {split} split has no image", hint="give another --split, or --data with a folder of class folders")
    probabilities = predict(loaded.network, inputs, rows)
    if split == "test":
        rows, labels = target.open_test(bundle, reason="xfer eval" if data is None else f"xfer eval --data {data}")
    else:
        labels = target.labels(rows)
    between = intervals(probabilities, labels, seed=loaded.plan.seed)
    return {
        "bundle": str(bundle.folder),
        "data": data,
        "split": split,
        "images": len(rows),
        "quarantined": len(target.bad),
        "metrics": {**classification(probabilities, labels), "interval": {name: list(pair) for name, pair in between.items()}},
    }


def _other(plan: Plan, data: str) -> Target:
    """Another folder's images, all of them as a test split, with labels by the bundle's classes."""
    dataset = open_dataset(plugins.find("datasets", FOLDER).target, FOLDER, {"path": data})
    strange = [name for name in dataset.classes if name not in plan.data.classes]
    if strange:
        raise DataError(f"{data} has classes that the model does not know: {', '.join(strange)}; it knows {', '.join(plan.data.classes)}")
    position = np.array([plan.data.classes.index(name) for name in dataset.classes])
    renamed = Dataset(plan.data.classes, dataset.keys, position[dataset.labels], dataset.splits, dataset.read, dataset.stamp)
    return Target(renamed, np.full(len(dataset), "test"), plan.data)


@dataclass(frozen=True)
class Prediction:
    """One file: its label and the probabilities float64 [classes], or the reason why it can't be read."""

    path: str
    label: str | None
    probabilities: np.ndarray | None
    reason: str | None = None


def predict_files(bundle: Bundle, files: Sequence[Path], *, precision: str, reporter: Reporter) -> Iterator[Prediction]:
    """Predictions in the order of `files`, quarantined ones among them, computed in `precision`."""
    loaded = load(bundle, precision=precision)
    plan = loaded.plan
    labels = np.full(len(files), -1, dtype=np.int64)
    dataset = Dataset(
        plan.data.classes, tuple(str(file) for file in files), labels, np.full(len(files), "test"), lambda row: files[row].read_bytes()
    )
    reporter.start("predicting", len(files))
    found: dict[int, Prediction] = {}
    rows = np.arange(len(files), dtype=np.int64)
    for part in decoded(dataset, rows, plan.source.preprocess, threads=decode_threads(), batch=plan.runtime.extraction_batch):
        for row, reason in part.bad:
            found[row] = Prediction(str(files[row]), None, None, reason)
        if len(part.rows):
            probabilities = softmax(loaded.network.logits(part.pixels, start=PIXELS, pooled=False))
            for row, values in zip(part.rows.tolist(), probabilities, strict=True):
                found[row] = Prediction(str(files[row]), plan.data.classes[int(values.argmax())], values)
        reporter.advance(len(part.rows) + len(part.bad))
    reporter.done()
    yield from (found[row] for row in range(len(files)))
