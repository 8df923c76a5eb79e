"""Metrics against scikit-learn and against loops written out by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from xfer.errors import DivergedError
from xfer.ops import metrics


def draw(n: int, n_classes: int, seed: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(n_classes, 0.3), size=n)
    labels = np.array([generator.choice(n_classes, p=row) for row in probabilities])
    return probabilities.astype(dtype), labels


def ece_by_loop(probabilities: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        members = [i for i, row in enumerate(probabilities) if low < float(max(row)) <= high]
        if members:
            accuracy = sum(int(np.argmax(probabilities[i]) == labels[i]) for i in members) / len(members)
            confidence = sum(float(max(probabilities[i])) for i in members) / len(members)
            total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize(("n", "n_classes"), [(1, 2), (7, 3), (500, 2), (500, 10), (300, 101)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metrics_agree_with_scikit_learn_and_a_loop(n: int, n_classes: int, dtype: str) -> None:
    probabilities, labels = draw(n, n_classes, seed=n + n_classes, dtype=dtype)
    predicted = probabilities.argmax(axis=1)
    found = metrics.classification(probabilities, labels)
    rows = probabilities.astype(np.float64)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))
    assert found["ece"] == pytest.approx(ece_by_loop(rows, labels))
    rows = rows / rows.sum(axis=1, keepdims=True)
    assert found["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, rows, labels=range(n_classes)), rel=1e-5)
    assert all(type(value) is float for value in found.values())


def test_a_class_that_never_occurs_does_not_count_in_macro_f1() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    # class 0: 1 of 2 predictions right, F1 = 2/3; class 1: F1 = 2/3; class 2 neither occurs nor is predicted
    assert metrics.classification(probabilities, np.array([0, 1, 1]))["macro_f1"] == pytest.approx(2 / 3)
    # predicted but absent counts as 0: class 0 has F1 = 1, class 1 was predicted once and does not occur
    found = metrics.classification(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    found = metrics.classification(np.array([[1.0, 0.0]]), np.array([1]))
    assert found["loss"] == pytest.approx(-math.log(1e-12))
    assert found["ece"] == 1.0


@pytest.mark.parametrize("b", range(1, 16))
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(b: int) -> None:
    confidence = float(np.linspace(0, 1, 16)[b])
    rest = np.full(30, (1 - confidence) / 30)
    found = metrics.reliability(np.concatenate([[confidence], rest])[None], np.array([0]))
    assert found["count"].tolist() == [int(i == b - 1) for i in range(15)]


def test_probabilities_a_little_above_one_are_the_last_bin() -> None:
    assert metrics.reliability(np.array([[1.0000001, 0.0]], np.float32), np.array([0]))["count"][14] == 1


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), n_classes=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_intervals_follow_a_plain_bootstrap(n: int, n_classes: int, seed: int) -> None:
    """Every weighting that the fast path measures equals the metrics of the rows repeated that often."""
    probabilities, labels = draw(n, n_classes, seed)
    bootstrap = metrics._Bootstrap(metrics.rows(probabilities, labels))
    (weights,) = metrics._resamples(n, seed=seed, resamples=3)
    assert weights.sum(axis=1).tolist() == [n] * 3
    found = bootstrap.measure(weights)
    for row, counts in enumerate(weights):
        repeated = np.repeat(np.arange(n), counts.astype(int))
        expected = metrics.classification(probabilities[repeated], labels[repeated])
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def test_the_interval_of_accuracy_is_as_wide_as_the_binomial_says() -> None:
    probabilities, labels = draw(1000, 4, seed=3)
    accuracy = metrics.classification(probabilities, labels)["accuracy"]
    low, high = metrics.intervals(probabilities, labels, seed=0, resamples=2000)["accuracy"]
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 1000)
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.004)


def test_intervals_depend_on_the_seed_alone() -> None:
    probabilities, labels = draw(200, 5, seed=1)
    first = metrics.intervals(probabilities, labels, seed=7)
    assert first == metrics.intervals(probabilities, labels, seed=7)
    assert first != metrics.intervals(probabilities, labels, seed=8)
    assert set(first) == {"accuracy", "macro_f1", "ece", "loss"}


def test_one_row_has_intervals_without_width() -> None:
    probabilities, labels = np.array([[0.3, 0.7]]), np.array([1])
    point = metrics.classification(probabilities, labels)
    for name, (low, high) in metrics.intervals(probabilities, labels, seed=0).items():
        assert low == high == pytest.approx(point[name])


def test_intervals_of_many_rows_need_little_memory() -> None:
    probabilities, labels = draw(300, 3, seed=0)
    probabilities, labels = np.tile(probabilities, (400, 1)), np.tile(labels, 400)  # 120,000 rows
    tracemalloc.start()
    metrics.intervals(probabilities, labels, seed=0, resamples=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


def test_confusion_and_per_class_agree_with_scikit_learn() -> None:
    probabilities, labels = draw(400, 6, seed=5)
    predicted = probabilities.argmax(axis=1)
    matrix = metrics.confusion(probabilities, labels, 6)
    assert np.array_equal(matrix, sklearn_metrics.confusion_matrix(labels, predicted, labels=range(6)))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=range(6))
    found = metrics.per_class(matrix)
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    np.testing.assert_allclose(found["f1"], f1)
    assert found["support"].tolist() == support.tolist()


def test_per_class_says_not_a_number_where_there_is_nothing_to_divide_by() -> None:
    found = metrics.per_class(np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert np.isnan(found["precision"]).tolist() == [False, True, True]
    assert np.isnan(found["recall"]).tolist() == [False, False, True]
    assert np.isnan(found["f1"]).tolist() == [False, False, True]


def test_reliability_adds_up_to_the_calibration_error() -> None:
    probabilities, labels = draw(600, 4, seed=9)
    bins = metrics.reliability(probabilities, labels)
    gaps = np.nan_to_num(np.abs(bins["accuracy"] - bins["confidence"]))
    assert (bins["count"] * gaps).sum() / 600 == pytest.approx(metrics.classification(probabilities, labels)["ece"])


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 3)), np.empty(0, int), "no rows to measure"),
        (np.empty((2, 0)), np.zeros(2, int), "no rows to measure"),
        (np.ones((2, 2)), np.zeros(3, int), r"probabilities \[n, classes\] and labels \[n\] are needed, not \(2, 2\) and \(3,\)"),
        (np.ones(2), np.zeros(2, int), r"probabilities \[n, classes\] and labels \[n\] are needed, not \(2,\) and \(2,\)"),
        (np.ones((2, 2)), np.array([0, -1]), r"labels must lie in 0..1; they go from -1 to 0"),
        (np.ones((2, 2)), np.array([0, 2]), r"labels must lie in 0..1; they go from 0 to 2"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(probabilities: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        metrics.classification(probabilities, labels)


def test_confusion_refuses_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match="^3 classes were expected, the probabilities have 2$"):
        metrics.confusion(np.ones((2, 2)), np.zeros(2, int), 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_a_diverged_run(bad: float) -> None:
    with pytest.raises(DivergedError) as caught:
        metrics.classification(np.array([[0.5, 0.5], [bad, 0.5]]), np.array([0, 1]))
    assert caught.value.message == "the model's probabilities are not finite numbers (1 of 2 rows)"
    assert caught.value.hint == "lower the learning rate, or set optimizer.clip_norm"
