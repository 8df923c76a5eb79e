"""The same recipe on both backends, each in processes of its own, and where they differ."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from xfer.engine.bundle import Bundle
from xfer.engine.files import write_json
from xfer.engine.parity_process import LOOKED, Request, other_of
from xfer.errors import EXIT_INTERRUPTED, EXIT_USAGE, Fault, InterruptedRun, MissingExtraError, RecipeError, UsageError, XferError
from xfer.plan.model_map import HEAD, Frozen

BACKENDS = ("torch", "tensorflow")
DOCUMENT = "parity.json"
# What is allowed. Input and features: the largest difference, over the largest value where that is above 1.
INPUT, FEATURES = 1e-5, 1e-4
LOSS = 0.005
POINTS = 0.005  # half a point of accuracy, macro F1 and calibration error
METRICS = {"accuracy": POINTS, "macro_f1": POINTS, "ece": POINTS, "loss": LOSS}

Verdict = Literal["within", "differs", "reported"]
Say = Callable[[str], None]


class Check(Frozen):
    """One thing compared. `torch` and `tensorflow` are the two values where there are two; a check without a tolerance is only
    reported; `where` says where the difference is largest."""

    what: str
    difference: float
    tolerance: float | None
    torch: float | None = None
    tensorflow: float | None = None
    where: str | None = None

    @property
    def verdict(self) -> Verdict:
        if self.tolerance is None:
            return "reported"
        return "within" if self.difference <= self.tolerance + 1e-12 else "differs"


class Document(Frozen):
    """What `xfer parity` found. `bundles` are the folders of the two runs; `fine_tuned` says that the source was trained, so that only
    what comes before training is judged."""

    recipe: str
    network: str
    images: int
    fine_tuned: bool
    bundles: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def within(self) -> bool:
        return all(check.verdict != "differs" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        document = self.model_dump(mode="json")
        document["checks"] = [{**check.model_dump(mode="json"), "verdict": check.verdict} for check in self.checks]
        return {**document, "within": self.within}


def run(recipe: Path, overrides: Sequence[str], folder: Path, *, say: Say) -> Document:
    """Prepares and runs both sides below `folder`, and compares them. Raises UsageError for what can't be compared, RecipeError for
    the recipe's faults, XferError where a run failed."""
    _need_both()
    _need_empty(folder)
    request = Request(recipe=str(recipe), overrides=tuple(overrides), folder=str(folder))
    say(f"reading {recipe}, and writing its network down")
    own = str(_ask(request, say)["backend"])
    other = other_of(own)
    say(f"building the same network on {other}")
    _ask(request.model_copy(update={"own": own}), say)
    for backend in (own, other):
        say(f"running on {backend}")
        _run(folder / backend, backend=backend)
    document = compare(recipe, folder)
    write_json(folder / DOCUMENT, document.as_dict())
    return document


def _need_both() -> None:
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            raise MissingExtraError(
                f"xfer parity runs a recipe on both backends, and {backend} is not installed", hint=f"pip install 'xfer-runner[{backend}]'"
            )


def _need_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty, and a comparison needs a folder of its own", hint="give another folder with --out")


def _ask(request: Request, say: Say) -> dict[str, Any]:
    """The answer of a process of its own: no process may hold both frameworks."""
    command = [sys.executable, "-m", "xfer.engine.parity_process", request.model_dump_json()]
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors, _started(command, errors) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = _told(line)
            if "say" in told:
                say(told["say"])
            else:
                answer = told or answer
        code = process.wait()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or [f"exit code {code}"]
    if not answer:
        raise XferError(f"a process that prepares the comparison ended without an answer: {last[0]}")
    if "faults" in answer:
        raise RecipeError(faults=tuple(Fault(**fault) for fault in answer["faults"]), hint=answer["hint"])
    if "error" in answer:
        raise (UsageError if answer["usage"] else XferError)(answer["error"], hint=answer["hint"])
    return answer


def _told(line: str) -> dict[str, Any]:
    """A line of the process; nothing for what a library prints beside."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _started(command: list[str], errors: Any) -> subprocess.Popen[str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet)


def _run(bundle: Path, *, backend: str) -> None:
    """An ordinary run of a bundle that is ready, by the command line, so that it leaves what any run leaves. What it has to say goes to
    stderr."""
    command = [sys.executable, "-m", "xfer.cli", "run", "--resume", str(bundle), "--quiet"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code == EXIT_INTERRUPTED:
        raise InterruptedRun(f"the run on {backend} was interrupted, so there is nothing to compare")
    if code:
        raise (UsageError if code == EXIT_USAGE else XferError)(
            f"the run on {backend} ended with exit code {code}; what it said stands above"
        )


def compare(recipe: Path, folder: Path) -> Document:
    """What two finished runs below `folder` have in common, and what not."""
    bundles = {backend: Bundle(folder / backend) for backend in BACKENDS}
    plan = next(bundle.plan for bundle in bundles.values() if not bundle.plan.source.model.startswith("portable:"))
    tuned = any(set(phase.train) - {HEAD} for phase in plan.phases)
    seen = {backend: load_file(folder / LOOKED / f"{backend}.safetensors") for backend in BACKENDS}
    told = {backend: json.loads((folder / LOOKED / f"{backend}.json").read_text(encoding="utf-8")) for backend in BACKENDS}
    checks = [
        _data(bundles),
        _arrays("network input", seen, "input", told, tolerance=INPUT),
        _arrays("pooled features", seen, "features", told, tolerance=FEATURES),
        _head(told),
        *_losses(bundles, judged=not tuned),
        *_metrics(bundles, judged=not tuned),
        *_predictions(bundles),
    ]
    return Document(
        recipe=str(recipe),
        network=plan.source.model,
        images=len(seen["torch"]["features"]),
        fine_tuned=tuned,
        bundles={backend: str(bundle.folder) for backend, bundle in bundles.items()},
        checks=tuple(checks),
    )


def _data(bundles: Mapping[str, Bundle]) -> Check:
    """Images, labels, splits and order follow from the listing and the contents, which both runs recorded."""
    one, other = (bundles[backend].lock()["data"] for backend in BACKENDS)
    counts = [bundles[backend].plan.data.counts for backend in BACKENDS]
    return Check(what="images and splits", difference=float(one != other or counts[0] != counts[1]), tolerance=0.0)


def _head(told: Mapping[str, Any]) -> Check:
    one, other = (told[backend]["head"] for backend in BACKENDS)
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return Check(what="head's start", difference=float(len(differing)), tolerance=0.0, where=", ".join(differing) or None)


def _arrays(what: str, seen: Mapping[str, Mapping[str, np.ndarray]], key: str, told: Mapping[str, Any], *, tolerance: float) -> Check:
    """The largest difference of one value, over the largest value where that is above 1, and the image with it."""
    one, other = (seen[backend][key].astype(np.float64) for backend in BACKENDS)
    keys = told["torch"]["keys"]
    if one.shape != other.shape or keys != told["tensorflow"]["keys"]:
        raise XferError(f"the {what} of the two backends can't be compared: they are {list(one.shape)} and {list(other.shape)}")
    by_image = np.abs(one - other).reshape(len(one), -1).max(axis=1)
    worst = int(by_image.argmax())
    rows = [values.reshape(len(values), -1) for values in (one, other)]
    relative = np.linalg.norm(rows[0] - rows[1], axis=1) / np.maximum(np.linalg.norm(rows[0], axis=1), np.finfo(np.float64).tiny)
    largest = float(np.abs(one).max())
    where = f"{by_image[worst]:.1e} of numbers up to {largest:.3g}, in {keys[worst]}; relative to an image's norm {relative.max():.1e}"
    difference = float(by_image[worst]) / max(1.0, largest)
    return Check(what=what, difference=difference, tolerance=tolerance, where=where if difference else None)


def _losses(bundles: Mapping[str, Bundle], *, judged: bool) -> list[Check]:
    """The largest difference of each loss curve, and where that is."""
    curves = {
        backend: {(r["phase_index"], r["epoch"], r["split"]): (r["phase"], r["loss"]) for r in bundle.metrics()}
        for backend, bundle in bundles.items()
    }
    checks = []
    for split, name in (("train", "training loss"), ("val", "validation loss")):
        shared = [key for key in curves["torch"] if key[2] == split and key in curves["tensorflow"]]
        if not shared:
            continue
        worst = max(shared, key=lambda key: abs(curves["torch"][key][1] - curves["tensorflow"][key][1]))
        one, other = (float(curves[backend][worst][1]) for backend in BACKENDS)
        lengths = [sum(key[2] == split for key in curves[backend]) for backend in BACKENDS]
        where = f"phase {curves['torch'][worst][0]}, epoch {worst[1] + 1}"
        if lengths[0] != lengths[1]:
            where += f"; {lengths[0]} epochs on torch, {lengths[1]} on tensorflow"
        checks.append(
            Check(what=name, difference=abs(one - other), tolerance=LOSS if judged else None, torch=one, tensorflow=other, where=where)
        )
    return checks


def _metrics(bundles: Mapping[str, Bundle], *, judged: bool) -> list[Check]:
    results = {backend: bundle.result()["metrics"] for backend, bundle in bundles.items()}
    checks = []
    for split in ("val", "test"):
        for name, tolerance in METRICS.items():
            values = [results[backend].get(split, {}).get(name) for backend in BACKENDS]
            if None not in values:
                one, other = map(float, values)
                allowed = tolerance if judged else None
                checks.append(Check(what=f"{split} {name}", difference=abs(one - other), tolerance=allowed, torch=one, tensorflow=other))
    return checks


def _predictions(bundles: Mapping[str, Bundle]) -> list[Check]:
    """The share of test images to which the two give different labels."""
    import pyarrow.parquet as pq

    files = [bundles[backend].folder / "predictions.parquet" for backend in BACKENDS]
    if not all(file.exists() for file in files):
        return []
    tables = [pq.read_table(file, columns=["path", "predicted"]).to_pydict() for file in files]
    one, other = (dict(zip(table["path"], table["predicted"], strict=True)) for table in tables)
    different = sorted(path for path in one if other.get(path) != one[path])
    where = f"{len(different)} of {len(one)}" + (f", the first is {different[0]}" if different else "")
    return [Check(what="test predictions that differ", difference=len(different) / max(1, len(one)), tolerance=None, where=where)]
