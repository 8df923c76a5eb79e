"""What lies in a bundle, read as it is: of a run that is still going, failed or was killed, too."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from xfer.errors import BundleError
from xfer.plan.plan import Plan


@dataclass(frozen=True)
class Predictions:
    """The test split's predictions: `paths` and the int64 `labels` (into `classes`) have n entries, `probabilities` is [n, classes]."""

    paths: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


@dataclass
class BundleFiles:
    """A bundle's content. What is not there is None or empty; what is there but can't be read is told in `notes`."""

    folder: Path
    result: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    recipe: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    predictions: Predictions | None = None
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    lock: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(folder: Path) -> BundleFiles:
    """Reads all that a report needs; raises BundleError where the folder is no bundle."""
    known = ("result.json", "plan.json", "recipe.yaml")
    if not any((folder / name).is_file() for name in known):
        raise BundleError(f"'{folder}' is not a bundle: it has none of {', '.join(known)}", hint="give the folder that `xfer run` printed")
    files = BundleFiles(folder)
    files.result = _json(files, "result.json")
    files.lock = _json(files, "lock.json")
    files.plan = _plan(files)
    if (folder / "recipe.yaml").is_file():
        files.recipe = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    files.records = _records(files)
    files.quarantine = _quarantine(files)
    files.predictions = _predictions(files)
    return files


def _json(files: BundleFiles, name: str) -> dict[str, Any]:
    path = files.folder / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        files.notes.append(f"{name} can't be read: {error}")
        return {}
    if not isinstance(content, dict):
        files.notes.append(f"{name} can't be read: it is not a mapping")
        return {}
    return content


def _plan(files: BundleFiles) -> Plan | None:
    path = files.folder / "plan.json"
    if not path.is_file():
        return None
    try:
        return Plan.read(path)
    except ValidationError as error:
        files.notes.append(f"plan.json can't be read: {error.error_count()} of its fields are not what this version of xfer writes")
    return None


def _records(files: BundleFiles) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, ordered; of an epoch that was run again after a resume, the last one counts."""
    path = files.folder / "metrics.jsonl"
    if not path.is_file():
        return []
    latest: dict[tuple[int, int, str], dict[str, Any]] = {}
    n_bad = 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            latest[int(record["phase_index"]), int(record["epoch"]), str(record["split"])] = record
        except (ValueError, KeyError, TypeError):
            # A run that was killed while it wrote leaves an unfinished last line: that is expected.
            n_bad += number < len(lines) - 1
    if n_bad:
        files.notes.append(f"metrics.jsonl: {n_bad} of its lines can't be read and are left out")
    return [latest[key] for key in sorted(latest)]


def _quarantine(files: BundleFiles) -> list[tuple[str, str]]:
    path = files.folder / "quarantine.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        return [(row.get("path") or "", row.get("reason") or "") for row in csv.DictReader(stream)]


def _predictions(files: BundleFiles) -> Predictions | None:
    path = files.folder / "predictions.parquet"
    if not path.is_file():
        return None
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["path", "label", "probabilities"])
    except (pyarrow.ArrowException, OSError) as error:
        files.notes.append(f"predictions.parquet can't be read: {str(error).splitlines()[0]}")
        return None
    labels = table.column("label").to_pylist()
    classes = _classes(files, labels)
    values = table.column("probabilities").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(labels) == 0 or len(values) != len(labels) * len(classes):
        files.notes.append(
            f"predictions.parquet can't be used: {len(values)} probabilities for {len(labels)} images and {len(classes)} classes"
        )
        return None
    index = {name: place for place, name in enumerate(classes)}
    known = np.array([label in index for label in labels])
    if not known.all():
        files.notes.append(
            f"predictions.parquet: {int((~known).sum())} of its images have a label that is none of the classes; they are left out"
        )
    rows = np.flatnonzero(known)
    if len(rows) == 0:
        return None
    paths = table.column("path").to_pylist()
    return Predictions(
        paths=tuple(str(paths[row]) for row in rows),
        labels=np.array([index[labels[row]] for row in rows], np.int64),
        probabilities=np.asarray(values).reshape(len(labels), len(classes))[rows],
        classes=classes,
    )


def _classes(files: BundleFiles, labels: list[str]) -> tuple[str, ...]:
    path = files.folder / "model" / "labels.json"
    if path.is_file():
        try:
            return tuple(str(name) for name in json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            files.notes.append(f"model/labels.json can't be read: {error}")
    return files.plan.data.classes if files.plan else tuple(sorted(set(labels)))
