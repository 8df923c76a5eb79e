"""The statements that the page makes about a result are true of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xfer.report import bundle_files, evidence
from xfer.report.bundle_files import Predictions


def changed(bundle, **parts):
    result = json.loads((bundle / "result.json").read_text())
    (bundle / "result.json").write_text(json.dumps(result | parts))
    return bundle_files.read(bundle)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (0.5, "Better than the majority class (0.500), which lies below the interval."),
        (0.7, "Not clearly different from the majority class (0.700), which lies inside the interval."),
        (0.75, "Not clearly different from the majority class (0.750), which lies inside the interval."),
        (0.9, "Worse than the majority class (0.900), which lies above the interval."),
    ],
)
def test_verdicts(value, sentence):
    assert evidence.verdict("majority class", value, (0.7, 0.8)) == sentence


def test_only_accuracies_stand_beside_the_accuracy(make_bundle):
    score = evidence.score(changed(make_bundle(), baseline={"majority": 0.25, "probe": None, "probe_l2": 1000.0}))
    assert score["verdicts"] == ["Better than the majority class (0.250), which lies below the interval."]
    assert "closed-form linear probe" not in score["figure"]
    assert "1000" not in score["figure"]


def test_no_verdict_without_an_interval(make_bundle):
    assert evidence.score(changed(make_bundle(), metrics={"test": {"accuracy": 0.9}}))["verdicts"] == []
    assert evidence.score(changed(make_bundle(name="second"), metrics={"val": {"accuracy": 0.9}})) is None


def test_an_interval_that_misses_its_estimate_is_marked(make_bundle):
    interval = {"accuracy": [0.8, 0.95], "ece": [0.03, 0.08]}
    rows = evidence.metrics_table(changed(make_bundle(), metrics={"test": {"accuracy": 0.9, "ece": 0.02, "interval": interval}}))
    assert {row["title"]: row["outside"] for row in rows} == {"accuracy": False, "calibration error (ECE)": True}


def predictions(labels, predicted, n_classes, confidence=0.9):
    probabilities = np.full((len(labels), n_classes), (1 - confidence) / (n_classes - 1))
    probabilities[np.arange(len(labels)), predicted] = confidence
    names = tuple(f"class{place}" for place in range(n_classes))
    return Predictions(tuple(f"{row}.jpg" for row in range(len(labels))), np.array(labels), probabilities, names)


def test_confusions_are_counted(tmp_path):
    files = bundle_files.BundleFiles(tmp_path, predictions=predictions([0, 0, 0, 1, 2], [1, 1, 0, 1, 0], 3))
    found = evidence.test_evidence(files, None)
    assert found["pairs"] == [("class0", "class1", 2, 3), ("class2", "class0", 1, 1)]
    assert (found["n"], found["n_mistakes"]) == (5, 3)
    assert [mistake["path"] for mistake in found["mistakes"]] == ["0.jpg", "1.jpg", "4.jpg"]
    assert found["matrix_partial"] is None
    assert [row["name"] for row in found["classes"]] == ["class0", "class1", "class2"]


def test_without_a_mistake_there_is_nothing_to_list(tmp_path):
    found = evidence.test_evidence(bundle_files.BundleFiles(tmp_path, predictions=predictions([0, 1], [0, 1], 2)), None)
    assert found["pairs"] == found["mistakes"] == []
    assert found["n_mistakes"] == 0


def test_of_many_classes_the_most_confused_are_drawn_and_the_worst_come_first(tmp_path):
    labels = list(range(100)) * 2
    predicted = [(label + 1) % 100 if 50 <= label < 60 else label for label in labels]
    found = evidence.test_evidence(bundle_files.BundleFiles(tmp_path, predictions=predictions(labels, predicted, 100)), None)
    assert found["matrix_partial"] == (40, 100)
    for place in range(50, 61):
        assert f"class{place}:" in found["matrix"]
    assert {row["name"] for row in found["classes"][:10]} == {f"class{place}" for place in range(50, 60)}
    assert len(found["classes"]) == 100


def test_the_most_confident_mistakes_come_first(tmp_path):
    made = predictions([0] * 30, [1] * 30, 2)
    made.probabilities[:, 1] = np.linspace(0.51, 0.99, 30)
    made.probabilities[:, 0] = 1 - made.probabilities[:, 1]
    mistakes = evidence.test_evidence(bundle_files.BundleFiles(tmp_path, predictions=made), None)["mistakes"]
    assert [mistake["path"] for mistake in mistakes] == [f"{row}.jpg" for row in range(29, 17, -1)]
