"""What the run shows: metrics with intervals, and what the test predictions tell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xfer.data.dataset import Dataset
from xfer.ops import metrics
from xfer.report import figures
from xfer.report.bundle_files import BundleFiles, Predictions
from xfer.report.numbers import BASELINE_TITLES, METRIC_TITLES, fraction
from xfer.report.thumbnails import thumbnails

MOST_MISTAKES = 12
MOST_MATRIX_CLASSES = 40  # more don't fit on a page: the ones with the most mistakes are shown
MOST_OPEN_CLASSES = 20


def score(files: BundleFiles) -> dict[str, Any] | None:
    """Test accuracy beside the baselines, and what may be said about the difference; None before the test."""
    test = (files.result.get("metrics") or {}).get("test") or {}
    accuracy = test.get("accuracy")
    if accuracy is None:
        return None
    bounds = (test.get("interval") or {}).get("accuracy")
    recorded = files.result.get("baseline") or {}
    baselines = {title: float(recorded[name]) for name, title in BASELINE_TITLES.items() if recorded.get(name) is not None}
    entries = [("this run", float(accuracy), bounds)]
    entries += [(title, value, None) for title, value in baselines.items()]
    return {
        "accuracy": accuracy,
        "interval": bounds,
        "figure": figures.standing(entries),
        "verdicts": [verdict(title, value, bounds) for title, value in baselines.items()] if bounds else [],
    }


def verdict(baseline: str, value: float, bounds: tuple[float, float]) -> str:
    """What the interval says about a baseline.

    >>> verdict("majority class", 0.2, (0.7, 0.8))
    'Better than the majority class (0.200), which lies below the interval.'
    """
    if value < bounds[0]:
        return f"Better than the {baseline} ({fraction(value)}), which lies below the interval."
    if value > bounds[1]:
        return f"Worse than the {baseline} ({fraction(value)}), which lies above the interval."
    return f"Not clearly different from the {baseline} ({fraction(value)}), which lies inside the interval."


def metrics_table(files: BundleFiles) -> list[dict[str, Any]]:
    """One row a metric: validation, test, and the test's interval."""
    recorded = files.result.get("metrics") or {}
    val, test = recorded.get("val") or {}, recorded.get("test") or {}
    bounds = test.get("interval") or {}
    names = [name for name in METRIC_TITLES if name in val or name in test]
    names += sorted((set(val) | set(test)) - set(METRIC_TITLES) - {"interval"})
    rows = []
    for name in names:
        outside = name in bounds and name in test and not bounds[name][0] <= test[name] <= bounds[name][1]
        rows.append(
            {
                "title": METRIC_TITLES.get(name, name),
                "val": val.get(name),
                "test": test.get(name),
                "interval": bounds.get(name),
                "outside": outside,
            }  # fmt: skip
        )
    return rows


def test_evidence(files: BundleFiles, dataset: Dataset | None) -> dict[str, Any] | None:
    """Everything that comes from the test predictions; None before there are any."""
    found = files.predictions
    if found is None:
        return None
    n_classes = len(found.classes)
    matrix = metrics.confusion(found.probabilities, found.labels, n_classes)
    shown = _classes_to_show(matrix)
    mistakes = _mistakes(found, files, dataset)
    return {
        "n": len(found.labels),
        "matrix": figures.confusion_matrix(matrix[np.ix_(shown, shown)], [found.classes[place] for place in shown]),
        "matrix_partial": (len(shown), n_classes) if len(shown) < n_classes else None,
        "pairs": _confused_pairs(matrix, found.classes),
        "reliability": figures.reliability_diagram(metrics.reliability(found.probabilities, found.labels)),
        "ece": metrics.classification(found.probabilities, found.labels)["ece"],
        "classes": _class_rows(matrix, found.classes),
        "open_classes": MOST_OPEN_CLASSES,
        "mistakes": mistakes,
        "has_pictures": any(mistake["picture"] for mistake in mistakes),
        "n_mistakes": int(matrix.sum() - np.trace(matrix)),
    }


def _classes_to_show(matrix: np.ndarray) -> np.ndarray:
    """The classes of the matrix that is drawn, in order: all, or those that are involved in the most mistakes."""
    if len(matrix) <= MOST_MATRIX_CLASSES:
        return np.arange(len(matrix))
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return np.sort(np.argsort(-mistakes, kind="stable")[:MOST_MATRIX_CLASSES])


def _confused_pairs(matrix: np.ndarray, classes: tuple[str, ...]) -> list[tuple[str, str, int, int]]:
    """The most frequent confusions: true class, predicted class, how often, of how many."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:8]
    cells = [divmod(int(cell), len(classes)) for cell in order]
    return [
        (classes[true], classes[taken], int(wrong[true, taken]), int(matrix[true].sum())) for true, taken in cells if wrong[true, taken]
    ]


def _class_rows(matrix: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support: in the classes' order, or the worst first where there are many."""
    measured = metrics.per_class(matrix)
    rows: list[dict[str, Any]] = [
        {"name": name} | {key: float(values[place]) for key, values in measured.items()} for place, name in enumerate(classes)
    ]
    if len(rows) > MOST_OPEN_CLASSES:
        rows.sort(key=lambda row: 2.0 if math.isnan(row["f1"]) else row["f1"])
    return rows


def _mistakes(found: Predictions, files: BundleFiles, dataset: Dataset | None) -> list[dict[str, Any]]:
    """The wrong predictions with the highest probability."""
    measured = metrics.rows(found.probabilities, found.labels)
    wrong = np.flatnonzero(~measured.correct)
    worst = wrong[np.argsort(-measured.confidence[wrong], kind="stable")][:MOST_MISTAKES]
    pictures = thumbnails([found.paths[row] for row in worst], plan=files.plan, dataset=dataset)
    return [
        {
            "path": found.paths[row],
            "label": found.classes[found.labels[row]],
            "predicted": found.classes[measured.predicted[row]],
            "confidence": float(measured.confidence[row]),
            "of_true": float(found.probabilities[row, found.labels[row]]),
            "picture": pictures.get(found.paths[row]),
        }
        for row in worst
    ]
