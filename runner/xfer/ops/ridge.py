"""A linear probe in closed form: the baseline that every trained head has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from xfer.errors import DivergedError

L2S = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5)  # tried by default, for standardised features

_BLOCK_VALUES = 4_000_000  # numbers of features held as float64 at once (32 MB)


class RidgeProbe:
    """Ridge regression from standardised features to one-hot targets, with an intercept that is not penalised.

    It minimises sum |y - W'z - b|^2 + l2 |W|^2 over rows with z = (x - mean) / deviation: scikit-learn's `Ridge(alpha=l2)` behind a
    `StandardScaler`. Rows are added in batches and forgotten; what is kept is [n_features, n_features] and [n_classes, n_features]
    in float64. Features that are constant get weight zero.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        self.n_features = n_features
        self.n_classes = n_classes
        self.n_rows = 0
        self._shift: np.ndarray | None = None
        self._products = np.zeros((n_features, n_features))  # sum of (x - shift)(x - shift)'
        self._class_sums = np.zeros((n_classes, n_features))  # sum of x - shift, by class
        self._class_counts = np.zeros(n_classes, np.int64)
        self._spectrum: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._weights: np.ndarray | None = None  # [n_features, n_classes], for raw features
        self._intercept: np.ndarray | None = None  # [n_classes]

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Takes float features [k, n_features] and int labels [k] into account; k may be 0."""
        features, labels = self._checked(features, labels)
        step = max(1, _BLOCK_VALUES // self.n_features)
        for start in range(0, len(features), step):
            block = self._finite(features[start : start + step])
            if self._shift is None:
                # Subtracting a value near the mean keeps the sums small, so that centring them later cancels little.
                self._shift = block.mean(axis=0)
            block = block - self._shift
            self._products += block.T @ block
            order = np.argsort(labels[start : start + step], kind="stable")
            found, starts = np.unique(labels[start : start + step][order], return_index=True)
            self._class_sums[found] += np.add.reduceat(block[order], starts, axis=0)
        self._class_counts += np.bincount(labels, minlength=self.n_classes)
        self.n_rows += len(features)
        self._spectrum = None

    def solve(self, l2: float) -> RidgeProbe:
        """Solves for one l2 (above 0) from what was added, for `predict` to use. The second l2 costs next to nothing."""
        self._weights, self._intercept = self._solution(l2)
        return self

    def choose(self, l2s: Sequence[float], validation: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Solves for the l2 with the best accuracy over batches (features, labels), read once; of equals, the largest.
        Without a validation row it raises ValueError."""
        ordered = sorted(l2s, reverse=True)
        solutions = [self._solution(l2) for l2 in ordered]
        weights = np.concatenate([weights for weights, _ in solutions], axis=1)
        intercept = np.concatenate([intercept for _, intercept in solutions])
        right, n_rows = np.zeros(len(ordered), np.int64), 0
        for features, labels in validation:
            features, labels = self._checked(features, labels)
            scores = self._finite(features) @ weights + intercept
            predicted = scores.reshape(len(labels), len(ordered), self.n_classes).argmax(axis=2)
            right += (predicted == labels[:, None]).sum(axis=0)
            n_rows += len(labels)
        if n_rows == 0:
            raise ValueError("no validation rows to choose l2 by")
        best = int(right.argmax())
        self._weights, self._intercept = solutions[best]
        return float(ordered[best])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float64 [k, n_classes]: the regression's value for each class."""
        if self._weights is None or self._intercept is None:
            raise ValueError("solve or choose comes before predict")
        features, _ = self._checked(features, np.zeros(len(features), np.int64))
        scores: np.ndarray = self._finite(features) @ self._weights + self._intercept
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """int64 [k]: the class with the highest score."""
        predicted: np.ndarray = self.scores(features).argmax(axis=1)
        return predicted

    def _solution(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
        if not l2 > 0:
            raise ValueError(f"l2 must be above 0, not {l2}")
        if self._spectrum is None:
            self._spectrum = self._decompose()
        values, vectors, projected, deviation = self._spectrum
        mean = self._mean()
        weights = vectors @ (projected / (values + l2)[:, None]) / deviation[:, None]
        return weights, self._class_counts / self.n_rows - mean @ weights

    def _decompose(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues [d], eigenvectors [d, d], targets in their basis [d, n_classes], deviations [d]."""
        if self.n_rows == 0 or self._shift is None:
            raise ValueError("no rows were added")
        offset = self._mean() - self._shift
        products = self._products - self.n_rows * np.outer(offset, offset)
        variance = np.clip(np.diag(products) / self.n_rows, 0, None)
        # What rounding leaves of a constant feature is no variance, whatever the feature's size. An infinite deviation gives weight 0.
        constant = variance <= (1e-10 * (np.abs(self._shift) + np.abs(offset))) ** 2
        deviation = np.where(constant, np.inf, np.sqrt(variance))
        products /= np.outer(deviation, deviation)
        targets = (self._class_sums - self._class_counts[:, None] * offset).T / deviation[:, None]
        with threadpool_limits(1, "blas"):  # its threads wait by spinning: on a busy machine two took 24 seconds for what one does in half
            values, vectors = np.linalg.eigh(products)
        return np.clip(values, 0, None), vectors, vectors.T @ targets, deviation

    def _mean(self) -> np.ndarray:
        assert self._shift is not None
        mean: np.ndarray = self._shift + self._class_sums.sum(axis=0) / self.n_rows
        return mean

    def _checked(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, labels = np.asarray(features), np.asarray(labels).astype(np.int64)
        if features.ndim != 2 or features.shape[1] != self.n_features or labels.shape != (len(features),):
            raise ValueError(f"features [k, {self.n_features}] and labels [k] are needed, not {features.shape} and {labels.shape}")
        if not np.issubdtype(features.dtype, np.floating):
            raise ValueError(f"features must be floating-point numbers, not {features.dtype}")
        if len(labels) and (labels.min() < 0 or labels.max() >= self.n_classes):
            raise ValueError(f"labels must lie in 0..{self.n_classes - 1}; they go from {labels.min()} to {labels.max()}")
        return features, labels

    @staticmethod
    def _finite(features: np.ndarray) -> np.ndarray:
        features = features.astype(np.float64)
        if not np.isfinite(features).all():
            raise DivergedError(
                "the source's features are not finite numbers",
                hint="try runtime.precision: float32, and check that source.preprocess is what the weights expect",
            )
        return features
