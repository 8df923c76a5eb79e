"""What was run: the part of the report that comes from the plan, the lock and the phases' own records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xfer.plan.plan import PhasePlan, Plan
from xfer.report import phase_words
from xfer.report.bundle_files import BundleFiles
from xfer.report.figures import time_bar
from xfer.report.group_names import compressed, rates
from xfer.report.moves import furthest
from xfer.report.numbers import count, distance, parameters, plural

STATE_WORDS = {
    "finished": "finished",
    "running": "is still running, or was killed before it could say otherwise",
    "failed": "failed",
    "interrupted": "was interrupted and can be resumed",
    "unknown": "is in an unknown state: it left no result.json",
}


def error_text(error: Any) -> str | None:
    """The error of result.json as text, whether it is a string or a mapping with a message and a hint."""
    if not error:
        return None
    if isinstance(error, Mapping):
        parts = [str(error[key]) for key in ("message", "hint") if error.get(key)]
        return "\n".join(parts) or str(dict(error))
    return str(error)


def summary(files: BundleFiles) -> str:
    """One sentence: what moved where, and how far it came."""
    state = STATE_WORDS.get(str(files.result.get("status", "unknown")), str(files.result.get("status")))
    if files.plan is None:
        return f"This run {state}."
    plan = files.plan
    images = files.result.get("data", {}).get("images", plan.data.images)
    start = f"{plan.method.type} transfer ({plan.method.name}) from {plan.source.model} to {dataset_name(plan)}"
    return f"{start[0].upper()}{start[1:]}: {count(images)} images in {count(len(plan.data.classes))} classes. This run {state}."


def dataset_name(plan: Plan) -> str:
    """The dataset's plugin and the place that it was read from."""
    path = plan.data.options.get("path")
    return f"{plan.data.dataset} {path}" if path else plan.data.dataset


def facts(files: BundleFiles) -> list[tuple[str, str]]:
    """Label and text of what was decided before the run."""
    plan = files.plan
    if plan is None:
        return []
    weights = plan.source.weights
    seen = plan.source.preprocess
    resize = f"both sides to {seen.crop} px" if seen.stretch else f"shorter side to {seen.resize} px, centre crop {seen.crop} px"
    head = " → ".join(count(width) for width in (plan.head.inputs, *plan.head.hidden, plan.head.outputs))
    library = f"{parameters(plan.model.n_parameters)} parameters in {len(plan.model.groups)} groups"
    shown = [
        ("source model", f"{plan.source.model} ({plan.model.library}), {library}"),
        ("source weights", "none: drawn at random from the seed" if weights.kind == "none" else weights.location),
        ("of the model", plan.model.note or ""),
        ("target", f"{dataset_name(plan)}, {count(plan.data.images)} images, {count(len(plan.data.classes))} classes"),
        ("of the data", "; ".join(plan.data.notes)),
        ("image input", f"{resize}, {seen.interpolation}; channels {seen.channels}, mean {_list(seen.mean)}, deviation {_list(seen.std)}"),
        ("augmentation", _augmentation(plan)),
        ("method", phase_words.method(plan.method)),
        ("own groups", phase_words.own_groups(plan.method)),
        ("looks at", phase_words.taps(plan.method, plan.model)),
        ("teacher", phase_words.teacher(plan.method)),
        ("new head", f"{head} on {plan.head.at}" + (f", dropout {plan.head.dropout:g}" if plan.head.dropout else "")),
        ("averaged weights", _average(plan)),
        ("never trained", compressed(plan.never_trained, plan.model) or "nothing: every group trains in some phase"),
        ("computed on", f"{plan.runtime.device}, {plan.runtime.precision}"),
        ("seed", f"{plan.seed}; splits {plan.data.split_seed}"),
    ]
    return [(label, text) for label, text in shown if text]


def _augmentation(plan: Plan) -> str:
    """Of the training images, the same in every phase; from where its images come is told with each phase."""
    chosen = next((phase.augment for phase in plan.phases if phase.augment), None)
    if chosen is None:
        return ""
    if chosen.views is None:
        return f"{phase_words.policy(chosen)}, a new random view of each training image in every epoch"
    return f"{phase_words.policy(chosen)}, {plural(chosen.views, 'fixed random view')} of each training image, taken in turn"


def _average(plan: Plan) -> str:
    """Where the moving average of the weights is what is validated and kept."""
    averaged = [phase for phase in plan.phases if phase.optimizer.average]
    if not averaged:
        return ""
    decays = ", ".join(dict.fromkeys(f"{phase.optimizer.average:g}" for phase in averaged))
    many = "s" if len(averaged) > 1 else ""
    where = "" if len(averaged) == len(plan.phases) else f" in phase{many} {', '.join(str(phase.index + 1) for phase in averaged)}"
    return f"a moving average with decay {decays}{where} is what is validated and kept"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def phases(files: BundleFiles) -> list[dict[str, Any]]:
    """One entry a phase, those that did not begin yet included."""
    done = list(files.result.get("phases") or [])
    planned = files.plan.phases if files.plan else ()
    entries = [
        _planned_phase(phase, files.plan, done[place] if place < len(done) else None) for place, phase in enumerate(planned) if files.plan
    ]
    return entries + [_phase(str(record.get("name", "?")), record) for record in done[len(planned) :]]


def _phase(name: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    record = record or {}
    where = record.get("input") or {}
    train = record.get("train", "")
    return {
        "name": name,
        "begun": bool(record),
        "train": train if isinstance(train, str) else ", ".join(train),
        "epochs": record.get("epochs"),
        "best_epoch": record.get("best_epoch"),
        "seconds": record.get("seconds"),
        "images_per_second": record.get("images_per_second"),
        "trainable_parameters": record.get("trainable_parameters"),
        "total_parameters": None,
        "input": f"{where.get('cut', '?')}, {where.get('mode', '?')}" if where else "",
        **dict.fromkeys(("reason", "augment", "rates", "optimizer", "state", "length", "norm", "statistics"), ""),
        "moved": _moved(record),
        "frozen_tensors": record.get("frozen_tensors"),
        "frozen_changed": record.get("frozen_changed"),
    }


def _moved(record: Mapping[str, Any]) -> str:
    """How far the source lies from where it began, where the phase trained any of it."""
    found = furthest(record)
    return f"by up to {distance(found[1])}, at {found[0]}" if found else ""


def _planned_phase(phase: PhasePlan, plan: Plan, record: Mapping[str, Any] | None) -> dict[str, Any]:
    entry = _phase(phase.name, record)
    return entry | {
        "train": compressed(phase.train, plan.model),
        "epochs": entry["epochs"] if entry["epochs"] is not None else phase.max_epochs,
        "trainable_parameters": phase.trainable_parameters,
        "total_parameters": plan.total_parameters,
        "input": f"{phase_words.start(phase.input)}, {phase.input.mode}",
        "reason": phase_words.stored(plan, phase) or phase.input.reason,
        "augment": phase_words.augmentation(phase.augment),
        "rates": rates(phase, plan.model),
        "optimizer": phase_words.optimizer(phase.optimizer),
        "state": phase_words.optimizer_state(plan, phase),
        "length": phase_words.length(phase),
        "norm": phase_words.normalisation(phase, plan.method),
        "statistics": phase_words.reestimated(phase),
    }


def splits(files: BundleFiles) -> dict[str, Any] | None:
    """Images by split, for a table: only the totals where there are more than 12 classes."""
    if files.plan is None:
        return None
    counts, classes = files.plan.data.counts, files.plan.data.classes
    names = [split for split in ("train", "val", "test") if split in counts]
    totals = [sum(counts[split].values()) for split in names]
    per_class = [(name, [counts[split].get(name, 0) for split in names]) for name in classes] if len(classes) <= 12 else []
    return {"names": names, "totals": totals, "classes": per_class}


def timing(files: BundleFiles) -> dict[str, Any] | None:
    """Seconds of each part of the run, in the order that they are drawn; None without a record."""
    recorded = files.result.get("timing") or {}
    total = recorded.get("total_seconds")
    if not total:
        return None
    extract, train = recorded.get("extract_seconds") or 0.0, recorded.get("train_seconds") or 0.0
    parts = [
        ("extraction: decoding, resizing, the frozen part", "part-extract", extract),
        ("training", "part-train", train),
        ("everything else", "part-other", max(0.0, total - extract - train)),
    ]
    return {"total": total, "parts": parts, "figure": time_bar(parts)}


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += flattened(value, f"{name}.")
        else:
            pairs.append((name, ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)))
    return pairs
