"""The folder that a run leaves: written piece by piece, each piece atomically, so that it can be resumed at any moment."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xfer import plugins
from xfer.engine.files import room_for, write_atomic, write_json, write_text
from xfer.errors import BundleError, DiskFullError, InterruptedRun, UsageError, XferError
from xfer.plan.plan import Plan
from xfer.sources.model_paths import KEPT

STATE, PROGRESS, BASELINES = "state.safetensors", "progress.json", "baselines.json"


class Bundle:
    """`runs/<name>/<id>/` with the files that DESIGN names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = read_plan(folder)
        self._held: Any = None

    @classmethod
    def create(cls, folder: Path, plan: Plan, *, recipe: str, resolved: str) -> Bundle:
        """A new bundle; raises UsageError where the folder holds something already or can't be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(
                    f"{folder} is not empty, and a bundle needs a folder of its own", hint=f"go on with it: xfer run --resume {folder}"
                )
            with room_for(folder):
                for name in ("checkpoints", "model"):
                    (folder / name).mkdir()
            write_text(folder / "recipe.yaml", recipe)
            write_text(folder / "recipe.resolved.yaml", resolved)
            write_text(folder / "plan.json", plan.model_dump_json(indent=1) + "\n")
        except DiskFullError as error:
            shutil.rmtree(folder, ignore_errors=True)  # without its plan it is no bundle, and it would be in the way of the next run
            error.hint = "make room (`xfer cache prune --max-size …` clears the feature store), then start the run again"
            raise
        except OSError as error:
            raise UsageError(
                f"the bundle can't be written to {folder}: {(error.strerror or str(error)).lower()}", hint="give another folder with --out"
            ) from error
        return cls(folder)

    def hold(self, name: str = ".lock") -> None:
        """Claim the bundle for this process until it ends; raises UsageError where another run holds it. A spread run's driver has a claim
        of another `name`, beside that of the worker that writes."""
        with room_for(self.folder / name):
            self._held = (self.folder / name).open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another process is running {self.folder}", hint="wait for it, or start a run of its own") from error

    def let_go(self) -> None:
        """End a claim before the process does."""
        if self._held is not None:
            self._held.close()

    def keep_model(self, path: Path | None) -> None:
        """Copy what the model is built from, if that is a file or folder of its own: the bundle can be used where it is not."""
        if path is None:
            return
        place = self.folder / KEPT
        temporary = place.with_name(f".{place.name}.tmp")
        for older in (place, temporary):  # of a run that was killed meanwhile
            shutil.rmtree(older, ignore_errors=True)
        with room_for(place):
            temporary.mkdir()
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, temporary / path.name)
            os.replace(temporary, place)

    # what happened, line by line

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", json.dumps(record, allow_nan=False))

    def metrics(self) -> list[dict[str, Any]]:
        """All whole records; a line that a kill cut short is left out."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def keep_metrics_before(self, phase: int, epoch: int) -> None:
        """Drop what was written after the checkpoint that is being resumed."""
        kept = [record for record in self.metrics() if (record["phase_index"], record["epoch"]) < (phase, epoch)]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def ledger(self, reason: str, *, images: int) -> None:
        """Record that test labels are about to be compared with predictions."""
        self._append("ledger.jsonl", json.dumps({"opened": now(), "reason": reason, "images": images}))

    def _append(self, name: str, line: str) -> None:
        path = self.folder / name
        with room_for(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    # checkpoints

    def checkpoint(self, state: Mapping[str, np.ndarray], progress: Mapping[str, Any]) -> None:
        """Write one, then drop all but the newest `runtime.keep`."""
        numbers = self._checkpoints()
        folder = self.folder / "checkpoints" / f"{(numbers[-1] + 1 if numbers else 1):06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with room_for(folder):
            temporary.mkdir()
            arrays = {name: np.asarray(value, order="C") for name, value in state.items()}
            write_atomic(temporary / STATE, lambda path: save_file(arrays, path))
            write_json(temporary / PROGRESS, progress)
            os.replace(temporary, folder)
        for number in [*numbers, int(folder.name)][: -self.plan.runtime.keep]:
            shutil.rmtree(self.folder / "checkpoints" / f"{number:06d}")

    def latest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """State and progress of the newest checkpoint, or None before the first; raises BundleError where it can't be read."""
        numbers = self._checkpoints()
        if not numbers:
            return None
        folder = self.folder / "checkpoints" / f"{numbers[-1]:06d}"
        go_on = "delete that folder: the run goes on from the checkpoint before it, or from its start, to the same numbers"
        try:
            return load_file(folder / STATE), _read_json(folder / PROGRESS)
        except (SafetensorError, OSError, BundleError) as error:
            raise BundleError(f"the checkpoint {folder} is damaged, so the run can't go on from it", hint=go_on) from error

    def _checkpoints(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "checkpoints").iterdir() if path.name.isdigit())

    def keep_baselines(self, found: Mapping[str, Any]) -> None:
        """They are made of the source's own features, which a resumed run can't compute any more once the source has trained."""
        write_json(self.folder / "checkpoints" / BASELINES, found)

    def baselines(self) -> dict[str, Any] | None:
        path = self.folder / "checkpoints" / BASELINES
        return _read_json(path) if path.exists() else None

    # results

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.folder / "result.json", result)

    def result(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "result.json").read_text()))
        except (OSError, ValueError):
            return {}

    def ended(self, error: BaseException) -> None:
        """Note how a run ended whose own processes may not have lived to say so, or had not begun."""
        found = self.result()
        if found.get("status") == "finished":
            return
        nothing: dict[str, Any] = {
            "status": "running",
            "name": self.plan.name,
            "backend": self.plan.backend,
            "metrics": {},
            "baseline": {},
            "phases": [],
            "timing": {"total_seconds": 0.0, "extract_seconds": 0.0, "train_seconds": 0.0},
            "data": {"images": self.plan.data.images, "classes": len(self.plan.data.classes), "quarantined": 0, "computed": 0},
        }
        status, words = ending(error)
        self.write_result({**nothing, **found, "status": status, "error": words})

    def write_quarantine(self, bad: Mapping[str, str]) -> None:
        """`quarantine.csv`: path and reason of each image that could not be read."""
        write_atomic(self.folder / "quarantine.csv", lambda path: _write_csv(path, bad))

    def write_lock(self, lock: Mapping[str, Any]) -> None:
        write_json(self.folder / "lock.json", lock)

    def lock(self) -> dict[str, Any]:
        path = self.folder / "lock.json"
        return _read_json(path) if path.exists() else {}


class Follower(Bundle):
    """What a rank that is not the first has of the bundle that the first one writes: its plan. It writes nothing."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    def hold(self, name: str = ".lock") -> None:
        pass

    def keep_model(self, path: Path | None) -> None:
        pass

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        pass

    def keep_metrics_before(self, phase: int, epoch: int) -> None:
        pass

    def ledger(self, reason: str, *, images: int) -> None:
        pass

    def checkpoint(self, state: Mapping[str, np.ndarray], progress: Mapping[str, Any]) -> None:
        pass

    def keep_baselines(self, found: Mapping[str, Any]) -> None:
        pass

    def write_result(self, result: Mapping[str, Any]) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {}

    def write_quarantine(self, bad: Mapping[str, str]) -> None:
        pass

    def write_lock(self, lock: Mapping[str, Any]) -> None:
        pass


def read_plan(folder: Path) -> Plan:
    """A bundle's Plan; raises BundleError where the folder is none."""
    try:
        return Plan.read(folder / "plan.json")
    except OSError as error:
        raise BundleError(
            f"{folder.absolute()} is not a bundle: it has no plan.json", hint="give the folder that `xfer run` printed, runs/<name>/<id>"
        ) from error
    except ValueError as error:
        raise BundleError(f"{folder / 'plan.json'} can't be read: it was written by another version of xfer, or damaged") from error


def ending(error: BaseException) -> tuple[str, str]:
    """(status, what is said of it) of a run that this ended."""
    if isinstance(error, XferError):
        return "interrupted" if isinstance(error, InterruptedRun) else "failed", error.message
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "ended at once, by a second signal"
    return "failed", f"{type(error).__name__}: {error}"


def _read_json(path: Path) -> dict[str, Any]:
    """What an earlier part of the run wrote; raises BundleError where the file is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path} is damaged, so the run can't go on", hint="start a new run with the recipe") from error


def load_plugins(plan: Plan) -> None:
    """Load the local plugins that travel with a plan, under the module names that its targets have: xfer_local_<digest>_<stem>."""
    for name, source in plan.plugins.items():
        plugins.load_local(source, stem=plugins.stem(name))


def _write_csv(path: Path, bad: Mapping[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(sorted(bad.items()))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
