"""Bundles as a killed run, a full disk or another version leaves them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from xfer.errors import BundleError
from xfer.report import bundle_files
from xfer.report.page import render


def test_a_whole_bundle_has_no_notes(make_bundle):
    files = bundle_files.read(make_bundle())
    assert files.notes == []
    assert files.predictions.classes == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert files.predictions.probabilities.shape == (735, 5)
    assert files.predictions.paths[127] == "dandelion/0127.jpg"
    assert files.predictions.labels[127] == 1
    assert len(files.records) == 2 * 14
    assert files.quarantine[1] == ("tulip/<script>alert(1)</script>.png", "not an image")


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError) as caught:
        bundle_files.read(tmp_path)
    assert caught.value.message == f"'{tmp_path}' is not a bundle: it has none of result.json, plan.json, recipe.yaml"
    assert caught.value.hint == "give the folder that `xfer run` printed"


def test_a_recipe_alone_is_a_bundle(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: bare\n")
    page = render(tmp_path).read_text()
    assert "This run is in an unknown state: it left no result.json." in page
    assert "name: bare" in page
    assert "There is no test result: the test split is opened once, at the end of a run." in page


def test_of_an_epoch_that_ran_again_the_last_record_counts(make_bundle):
    bundle = make_bundle()
    with (bundle / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"phase": "head", "phase_index": 0, "epoch": 3, "split": "val", "loss": 123.0}) + "\n")
    files = bundle_files.read(bundle)
    assert len(files.records) == 2 * 14
    assert [r["loss"] for r in files.records if (r["phase_index"], r["epoch"], r["split"]) == (0, 3, "val")] == [123.0]


def test_only_the_last_line_may_be_cut(make_bundle):
    bundle = make_bundle()
    lines = (bundle / "metrics.jsonl").read_text().splitlines()
    (bundle / "metrics.jsonl").write_text("\n".join([*lines, '{"phase": "he']))
    assert bundle_files.read(bundle).notes == []
    (bundle / "metrics.jsonl").write_text("\n".join(["[1]", "{}", *lines]))
    files = bundle_files.read(bundle)
    assert files.notes == ["metrics.jsonl: 2 of its lines can't be read and are left out"]
    assert len(files.records) == 2 * 14


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("result.json", "{", "result.json can't be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("lock.json", "[]", "lock.json can't be read: it is not a mapping"),
        ("plan.json", "[]", "plan.json can't be read: 1 of its fields are not what this version of xfer writes"),
        ("model/labels.json", "?", "model/labels.json can't be read: Expecting value: line 1 column 1 (char 0)"),
        ("model/labels.json", '["a"]', "predictions.parquet can't be used: 3675 probabilities for 735 images and 1 classes"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_rest_is_shown(make_bundle, name, content, note):
    bundle = make_bundle()
    (bundle / name).write_text(content)
    assert bundle_files.read(bundle).notes == [note]
    assert "recipe.yaml" in render(bundle).read_text()


@pytest.mark.parametrize("content", [b"", b"not a table", b"PAR1 cut short"])
def test_a_broken_table_of_predictions(make_bundle, content):
    bundle = make_bundle()
    (bundle / "predictions.parquet").write_bytes(content)
    files = bundle_files.read(bundle)
    assert files.predictions is None
    assert [note.partition(":")[0] for note in files.notes] == ["predictions.parquet can't be read"]


def test_a_table_without_the_columns(make_bundle):
    bundle = make_bundle()
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"]}), bundle / "predictions.parquet")
    files = bundle_files.read(bundle)
    assert files.predictions is None
    assert len(files.notes) == 1


def test_labels_that_are_none_of_the_classes_are_left_out(make_bundle):
    bundle = make_bundle()
    table = pyarrow.parquet.read_table(bundle / "predictions.parquet")
    labels = table.column("label").to_pylist()
    labels[0] = "orchid"
    pyarrow.parquet.write_table(table.set_column(2, "label", [labels]), bundle / "predictions.parquet")
    files = bundle_files.read(bundle)
    assert files.notes == ["predictions.parquet: 1 of its images have a label that is none of the classes; they are left out"]
    assert files.predictions.paths[0] == "daisy/0001.jpg"
    assert files.predictions.probabilities.shape == (734, 5)
    assert np.allclose(files.predictions.probabilities.sum(axis=1), 1, atol=1e-5)
