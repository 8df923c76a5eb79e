"""What a classifier's probabilities are worth against the labels, with intervals. numpy only.

Throughout, `probabilities` is float [n, n_classes] with rows that sum to 1, `labels` int [n] in 0..n_classes-1, and the predicted
class is the first of the largest probabilities. Wrong shapes or labels raise ValueError; probabilities that are not finite numbers
raise DivergedError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xfer.errors import DivergedError

N_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"
SMALLEST_PROBABILITY = 1e-12  # a probability of 0 for the true class costs -log of this, not infinity
METRICS = ("accuracy", "macro_f1", "ece", "loss")

_BLOCK_VALUES = 4_000_000  # probabilities held as float64 at once (32 MB)
_DRAWN_AT_ONCE = 200_000  # rows that the bootstrap draws at once: few enough to stay in the processor's cache
_BOOTSTRAP_STREAM = 0x6B00  # keeps these random numbers apart from others drawn with the same seed


@dataclass(frozen=True)
class Rows:
    """All that the metrics need to know of each row: every field is [n]."""

    labels: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray  # bool
    confidence: np.ndarray  # probability of the predicted class
    loss: np.ndarray  # negative log-likelihood of the true class
    n_classes: int

    @property
    def bins(self) -> np.ndarray:
        """The reliability bin of each row: bin b holds the confidences in (b/15, (b+1)/15]."""
        edges = np.linspace(0, 1, N_BINS + 1)
        return np.clip(np.searchsorted(edges, self.confidence, side="left") - 1, 0, N_BINS - 1)


def classification(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1, expected calibration error and mean negative log-likelihood.

    `macro_f1` is the mean F1 over the classes that occur among labels or predictions. `ece` weighs the gap between accuracy and mean
    confidence over 15 equal-width bins of confidence.

    >>> classification(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))["accuracy"]
    1.0
    """
    return _measure(rows(probabilities, labels))


def intervals(probabilities: np.ndarray, labels: np.ndarray, *, seed: int, resamples: int = 1000) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap interval (low, high) of each metric, over resamples of the rows with replacement.

    The same seed gives the same intervals. Resampling adds noise to each bin's gap, so the interval of `ece` lies high and need not
    contain the estimate when the model is well calibrated.
    """
    measured = rows(probabilities, labels)
    bootstrap = _Bootstrap(measured)
    drawn = [bootstrap.measure(weights) for weights in _resamples(len(measured.labels), seed=seed, resamples=resamples)]
    found = {}
    for metric in METRICS:
        low, high = np.percentile(np.concatenate([block[metric] for block in drawn]), (2.5, 97.5))
        found[metric] = (float(low), float(high))
    return found


def confusion(probabilities: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """int64 [n_classes, n_classes]: rows are true classes, columns predicted ones."""
    measured = rows(probabilities, labels)
    if measured.n_classes != n_classes:
        raise ValueError(f"{n_classes} classes were expected, the probabilities have {measured.n_classes}")
    cells = measured.labels * n_classes + measured.predicted
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 (float64 [n_classes]) and support (int64) from a confusion matrix. NaN where there is nothing to
    divide by: no prediction of the class (precision), no image of it (recall), neither (f1)."""
    right = np.diag(matrix).astype(np.float64)
    predicted, support = matrix.sum(axis=0), matrix.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": right / predicted, "recall": right / support, "f1": 2 * right / (predicted + support), "support": support}


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Per bin of confidence: `count` int64 [15], and `confidence` and `accuracy`, their means, NaN in an empty bin."""
    measured = rows(probabilities, labels)
    bins = measured.bins
    count = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, measured.confidence, minlength=N_BINS) / count
        accuracy = np.bincount(bins, measured.correct, minlength=N_BINS) / count
    return {"count": count, "confidence": confidence, "accuracy": accuracy}


def rows(probabilities: np.ndarray, labels: np.ndarray) -> Rows:
    """Checks the arrays and reduces them, in blocks of rows, to what the metrics need."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.ndim != 1 or len(probabilities) != len(labels):
        raise ValueError(f"probabilities [n, classes] and labels [n] are needed, not {probabilities.shape} and {labels.shape}")
    n, n_classes = probabilities.shape
    if n == 0 or n_classes == 0:
        raise ValueError("no rows to measure")
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels must lie in 0..{n_classes - 1}; they go from {labels.min()} to {labels.max()}")
    predicted, confidence, of_true = np.empty(n, np.int64), np.empty(n), np.empty(n)
    step = max(1, _BLOCK_VALUES // n_classes)
    for start in range(0, n, step):
        part = slice(start, start + step)
        block = probabilities[part].astype(np.float64)
        n_bad = int((~np.isfinite(block)).any(axis=1).sum())
        if n_bad:
            raise DivergedError(
                f"the model's probabilities are not finite numbers ({n_bad} of {len(block)} rows)",
                hint="lower the learning rate, or set optimizer.clip_norm",
            )
        inside = np.arange(len(block))
        predicted[part] = block.argmax(axis=1)
        confidence[part] = block[inside, predicted[part]]
        of_true[part] = block[inside, labels[part]]
    loss = -np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0))
    return Rows(labels, predicted, predicted == labels, confidence, loss, n_classes)


def _measure(measured: Rows) -> dict[str, float]:
    n = len(measured.labels)
    gaps = np.bincount(measured.bins, measured.correct - measured.confidence, minlength=N_BINS)
    right = np.bincount(measured.labels[measured.correct], minlength=measured.n_classes)
    occurrences = np.bincount(measured.labels, minlength=measured.n_classes) + np.bincount(measured.predicted, minlength=measured.n_classes)
    present = occurrences > 0
    return {
        "accuracy": float(measured.correct.mean()),
        "macro_f1": float((2 * right[present] / occurrences[present]).mean()),
        "ece": float(np.abs(gaps).sum() / n),
        "loss": float(measured.loss.mean()),
    }


def _resamples(n: int, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of n rows was drawn, float64 [block, n], in blocks of bounded size that add up to `resamples`."""
    generator = np.random.default_rng((seed, _BOOTSTRAP_STREAM))
    block = max(1, min(resamples, _DRAWN_AT_ONCE // n))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(n, size=(size, n), dtype=np.int64)
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


class _Groups:
    """Sums over the rows of each key, for many weightings of the rows at once."""

    def __init__(self, keys: np.ndarray, n_keys: int) -> None:
        self.n_keys = n_keys
        self.order = np.argsort(keys, kind="stable")
        self.found, self.starts = np.unique(keys[self.order], return_index=True)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[block, n_keys] from values [block, n]."""
        sums = np.zeros((len(values), self.n_keys))
        sums[:, self.found] = np.add.reduceat(values.take(self.order, axis=1), self.starts, axis=1)
        return sums


class _Bootstrap:
    """The metrics of resampled rows, each an array [block], for weights [block, n]: how often each row was drawn."""

    def __init__(self, measured: Rows) -> None:
        self.measured = measured
        # Classes that never occur add nothing to any resample, so they are renumbered to those that do.
        present, code = np.unique(np.concatenate([measured.labels, measured.predicted]), return_inverse=True)
        n = len(measured.labels)
        self.by_label = _Groups(code[:n], len(present))
        self.by_prediction = _Groups(code[n:], len(present))
        self.by_bin = _Groups(measured.bins, N_BINS)

    def measure(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        measured, n = self.measured, len(self.measured.labels)
        right = self.by_label.sums(weights * measured.correct)
        occurrences = self.by_label.sums(weights) + self.by_prediction.sums(weights)
        f1 = np.divide(2 * right, occurrences, out=np.zeros_like(right), where=occurrences > 0)
        gaps = self.by_bin.sums(weights * (measured.correct - measured.confidence))
        return {
            "accuracy": right.sum(axis=1) / n,
            "macro_f1": f1.sum(axis=1) / (occurrences > 0).sum(axis=1),
            "ece": np.abs(gaps).sum(axis=1) / n,
            "loss": weights @ measured.loss / n,
        }
