"""The closed-form probe against scikit-learn's Ridge behind a StandardScaler."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xfer.errors import DivergedError
from xfer.ops.ridge import L2S, RidgeProbe


def draw(n: int, n_features: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with a mean far from zero and scales from 0.01 to 100, as pooled activations may have."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(n_classes, n_features))
    labels = generator.integers(n_classes, size=n)
    features = centres[labels] + generator.normal(size=(n, n_features)) * 2
    return (features * np.logspace(-2, 2, n_features) + 50).astype(np.float32), labels


def filled(features: np.ndarray, labels: np.ndarray, n_classes: int, batch: int = 64) -> RidgeProbe:
    probe = RidgeProbe(features.shape[1], n_classes)
    for start in range(0, len(features), batch):
        probe.add(features[start : start + batch], labels[start : start + batch])
    return probe


@pytest.mark.parametrize("l2", [1e-3, 1.0, 100.0, 1e5])
@pytest.mark.parametrize(("n", "n_features", "n_classes"), [(300, 20, 5), (40, 60, 3), (200, 8, 2)])
def test_scores_agree_with_scikit_learn(l2: float, n: int, n_features: int, n_classes: int) -> None:
    features, labels = draw(n, n_features, n_classes)
    unseen, _ = draw(50, n_features, n_classes, seed=1)
    reference = make_pipeline(StandardScaler(), Ridge(alpha=l2)).fit(features.astype(np.float64), np.eye(n_classes)[labels])
    probe = filled(features, labels, n_classes).solve(l2)
    np.testing.assert_allclose(probe.scores(unseen), reference.predict(unseen.astype(np.float64)), atol=2e-6)


def test_predictions_agree_with_ridge_classifier() -> None:
    features, labels = draw(400, 30, 6)
    unseen, _ = draw(200, 30, 6, seed=1)
    reference = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0)).fit(features.astype(np.float64), labels)
    assert np.array_equal(filled(features, labels, 6).solve(10.0).predict(unseen), reference.predict(unseen.astype(np.float64)))


def test_batches_do_not_matter() -> None:
    features, labels = draw(257, 12, 4)
    order = np.argsort(labels, kind="stable")  # the first batches hold one class only
    expected = filled(features, labels, 4, batch=1000).solve(1.0).scores(features)
    np.testing.assert_allclose(filled(features, labels, 4, batch=1).solve(1.0).scores(features), expected, atol=1e-9)
    np.testing.assert_allclose(filled(features[order], labels[order], 4, batch=10).solve(1.0).scores(features), expected, atol=1e-9)


def test_rows_may_be_added_after_solving() -> None:
    features, labels = draw(200, 10, 3)
    probe = filled(features[:100], labels[:100], 3).solve(1.0)
    probe.add(features[100:], labels[100:])
    np.testing.assert_allclose(probe.solve(1.0).scores(features), filled(features, labels, 3).solve(1.0).scores(features), atol=1e-9)


def test_constant_features_and_absent_classes_do_no_harm() -> None:
    features, labels = draw(120, 6, 2)
    features[:, 1] = 1e6 + 0.1
    features[:, 4] = 0.0
    probe = filled(features, labels, 5).solve(1.0)  # classes 2, 3 and 4 never occur
    kept = np.delete(features, [1, 4], axis=1)
    expected = filled(kept, labels, 2).solve(1.0).scores(kept)
    np.testing.assert_allclose(probe.scores(features)[:, :2], expected, atol=1e-7)
    assert probe.scores(features)[:, 2:] == pytest.approx(0.0)
    changed = features.copy()
    changed[:, [1, 4]] += 7
    assert np.array_equal(probe.scores(changed), probe.scores(features))  # the constant ones have weight exactly zero


def test_one_row_predicts_its_class() -> None:
    probe = RidgeProbe(3, 2)
    probe.add(np.array([[1.0, 2.0, 3.0]]), np.array([1]))
    assert probe.solve(1.0).predict(np.zeros((2, 3))).tolist() == [1, 1]


def test_choose_takes_the_best_by_validation_accuracy() -> None:
    features, labels = draw(80, 100, 5)
    validation = draw(300, 100, 5, seed=2)
    accuracies = {l2: float((filled(features, labels, 5).solve(l2).predict(validation[0]) == validation[1]).mean()) for l2 in L2S}
    assert len(set(accuracies.values())) > 1
    best = max(accuracies.values())
    probe = filled(features, labels, 5)
    chosen = probe.choose(L2S, iter([(validation[0][:150], validation[1][:150]), (validation[0][150:], validation[1][150:])]))
    assert chosen == max(l2 for l2, accuracy in accuracies.items() if accuracy == best)
    assert float((probe.predict(validation[0]) == validation[1]).mean()) == best


def test_rows_are_not_kept() -> None:
    probe = RidgeProbe(64, 3)
    features, labels = np.zeros((50_000, 64), np.float32), np.zeros(50_000, np.int64)
    features[::2] = 1
    probe.add(features[:1], labels[:1])
    tracemalloc.start()
    for _ in range(3):
        probe.add(features, labels)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1e6
    assert peak < 200e6  # one batch of 50,000 rows as float64 is 26 MB


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_stop_the_probe(bad: float) -> None:
    with pytest.raises(DivergedError) as caught:
        RidgeProbe(2, 2).add(np.array([[0.0, bad]]), np.array([0]))
    assert caught.value.message == "the source's features are not finite numbers"
    assert caught.value.hint == "try runtime.precision: float32, and check that source.preprocess is what the weights expect"


def test_misuse_is_refused() -> None:
    probe = RidgeProbe(2, 2)
    with pytest.raises(ValueError, match="^no rows were added$"):
        probe.solve(1.0)
    probe.add(np.zeros((0, 2)), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="^no rows were added$"):
        probe.solve(1.0)
    with pytest.raises(ValueError, match="^solve or choose comes before predict$"):
        probe.predict(np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"^features must be floating-point numbers, not uint16$"):
        probe.add(np.zeros((1, 2), np.uint16), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"^features \[k, 2\] and labels \[k\] are needed, not \(1, 3\) and \(1,\)$"):
        probe.add(np.zeros((1, 3)), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"^labels must lie in 0\.\.1; they go from 2 to 2$"):
        probe.add(np.zeros((1, 2)), np.array([2]))
    probe.add(np.zeros((1, 2)), np.array([1]))
    with pytest.raises(ValueError, match="^l2 must be above 0, not 0$"):
        probe.solve(0)
    with pytest.raises(ValueError, match="^no validation rows to choose l2 by$"):
        probe.choose(L2S, [])
