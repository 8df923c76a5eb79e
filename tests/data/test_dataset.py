from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from xfer.data.dataset import ArrayReader, check_usable
from xfer.errors import DataError


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": np.array([0, 1])}, "the dataset plugin returned 3 keys, labels of shape (2,) and splits of shape (3,)"),
        ({"labels": np.array([0, 1, 2])}, "the dataset plugin returned labels that are not int64 from -1 to 1"),
        ({"labels": np.array([0, 1, -2])}, "the dataset plugin returned labels that are not int64 from -1 to 1"),
        ({"labels": np.array([0.0, 1.0, 1.0])}, "the dataset plugin returned labels that are not int64 from -1 to 1"),
        ({"splits": np.array(["", "dev", "train"])}, "the dataset plugin returned a split called 'dev'"),
        ({"keys": ("a", "b", "a")}, "the dataset plugin returned the same key for two images"),
    ],
)
def test_what_does_not_fit_together(in_memory, change, text):
    with pytest.raises(DataError) as error:
        replace(in_memory([b"", b"", b""]), **change)
    assert (error.value.message, error.value.path) == (text, "target.dataset")


@pytest.mark.parametrize(
    ("classes", "labels", "text", "hint"),
    [
        (("a", "b"), [], "here: there is no image in it", None),
        ((), [-1, -1], "here: there is no class; a classifier needs at least two", "add images of another class"),
        (("a",), [0, 0], "here: there is only 1 class ('a'); a classifier needs at least two", "add images of another class"),
        (("a", "b", "c"), [0, 1], "here: 2 images for 3 classes; every class needs at least one", "add images, or leave classes out"),
        (("a", "b", "c"), [0, 0, 1], "here: no image is labelled 'c'", "add images of it, or leave the class out"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on(in_memory, classes, labels, text, hint):
    made = in_memory([b""] * len(labels))
    dataset = replace(made, classes=classes, labels=np.array(labels, np.int64))
    with pytest.raises(DataError) as error:
        check_usable(dataset, place="here")
    assert (error.value.message, error.value.hint, error.value.path) == (text, hint, "target.path")


def test_unlabelled_rows_are_usable(in_memory):
    dataset = replace(in_memory([b""] * 3), labels=np.array([-1, -1, -1]))
    assert check_usable(dataset, place="here") is dataset


def test_arrays_end_to_end(draw):
    first, second = np.stack([draw(4, 4)] * 2), np.stack([draw(5, 5, seed=1)] * 3)
    reader = pickle.loads(pickle.dumps(ArrayReader((first, second))))
    np.testing.assert_array_equal(reader(1), first[1])
    np.testing.assert_array_equal(reader(2), second[0])
    np.testing.assert_array_equal(reader(4), second[2])
    with pytest.raises(IndexError):
        reader(5)
