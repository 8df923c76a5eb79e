from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from xfer.data.splits import assign, sizes
from xfer.errors import DataError

CLASSES = ("cat", "dog", "owl")


def keys(n):
    return [f"images/{row:05d}.jpg" for row in range(n)]


def split(labels, given=None, *, names=None, classes=CLASSES, val=0.1, test=0.2, seed=0):
    labels = np.asarray(labels, np.int64)
    given = np.full(len(labels), "") if given is None else np.asarray(given)
    return assign(labels, given, names or keys(len(labels)), classes=classes, val=val, test=test, seed=seed)


def message(labels, given=None, **options):
    with pytest.raises(DataError) as error:
        split(labels, given, **options)
    assert error.value.path == "target.splits"
    return error.value.message, error.value.hint


def counts(result, labels):
    return {name: np.bincount(np.asarray(labels)[result == name], minlength=3).tolist() for name in ("train", "val", "test")}


def test_sizes_per_class():
    labels = [0] * 100 + [1] * 25 + [2] * 3
    assert counts(split(labels), labels) == {"train": [70, 17, 1], "val": [10, 3, 1], "test": [20, 5, 1]}


@pytest.mark.parametrize(
    ("n", "val", "test", "expected"),
    [
        (10, "0.1", "0.2", (1, 2)),
        (45, "0.7", "0.1", (32, 5)),  # 31.5 exactly: in floating point it would fall below the half
        (15, "0.1", "0", (2, 0)),
        (4, "0.1", "0.1", (1, 1)),
        (3, "0.1", "0.1", (1, 1)),
        (3, "0.4", "0.5", (1, 1)),
        (10, "0.6", "0.35", (5, 4)),
        (2, "0", "0.9", (0, 1)),
        (1, "0.5", "0", (0, 0)),
        (2, "0.1", "0.1", (0, 1)),
        (7, "0", "0", (0, 0)),
    ],
)
def test_rounding(n, val, test, expected):
    assert sizes(n, val=Fraction(val), test=Fraction(test)) == expected


@settings(max_examples=60, deadline=None)
@cases(
    st.lists(st.integers(3, 60), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.01, 0.1, 0.33, 0.5]),
    st.sampled_from([0.0, 0.01, 0.2, 0.45]),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_properties(per_class, val, test, seed, random):
    labels = [label for label, n in enumerate(per_class) for _ in range(n)]
    classes = [f"class {label}" for label in range(len(per_class))]
    result = split(labels, classes=classes, val=val, test=test, seed=seed)
    for label, n in enumerate(per_class):
        own = result[np.asarray(labels) == label]
        n_val, n_test = (own == "val").sum(), (own == "test").sum()
        assert (own == "train").sum() == n - n_val - n_test >= 1
        assert (n_val > 0) == (val > 0)
        assert (n_test > 0) == (test > 0)
        assert abs(n_val - n * val) <= 1
        assert abs(n_test - n * test) <= 1
    order = list(range(len(labels)))
    random.shuffle(order)
    names = keys(len(labels))
    mixed = split([labels[row] for row in order], names=[names[row] for row in order], classes=classes, val=val, test=test, seed=seed)
    assert mixed.tolist() == [result[row] for row in order]


def test_the_same_on_every_machine():
    result = split([row % 3 for row in range(30)])
    assert np.flatnonzero(result == "val").tolist() == [9, 10, 17]
    assert np.flatnonzero(result == "test").tolist() == [7, 8, 12, 23, 25, 27]


def test_the_seed_decides():
    labels = [0] * 50 + [1] * 50
    one, two = (split(labels, classes=("a", "b"), seed=seed) for seed in (0, 1))
    assert (one != two).sum() > 20
    assert (one == split(labels, classes=("a", "b"), seed=0)).all()


def test_more_images_move_few():
    labels = [row % 3 for row in range(300)]
    before = split(labels)
    after = split([*labels, 0, 1, 2])
    assert (before != after[:300]).sum() <= 9
    fewer = split(labels[1:], names=keys(300)[1:])
    assert (before[1:] != fewer).sum() <= 3


def test_one_share_leaves_the_other_split_as_it_was():
    labels = [row % 3 for row in range(300)]
    before = split(labels, val=0.1, test=0.2)
    assert ((split(labels, val=0.3, test=0.2) == "test") == (before == "test")).all()
    assert ((split(labels, val=0.1, test=0.5) == "val") == (before == "val")).all()


def test_no_val_and_no_test():
    labels = [0, 1] * 10
    assert set(split(labels, classes=("a", "b"), val=0)) == {"train", "test"}
    assert set(split(labels, classes=("a", "b"), test=0)) == {"train", "val"}
    assert set(split([0, 1], classes=("a", "b"), val=0, test=0)) == {"train"}


def test_given_splits_are_kept_and_missing_ones_cut_from_train():
    labels = [0, 1] * 50
    given = ["test" if row >= 80 else "train" for row in range(100)]
    result = split(labels, given, classes=("a", "b"), val=0.1, test=0.5)
    assert (result[80:] == "test").all()
    assert (result[:80] == "test").sum() == 0
    assert (result == "val").sum() == 8
    kept = split(labels, ["val" if row < 10 else "" for row in range(100)], classes=("a", "b"), val=0.5, test=0.2)
    assert (kept[:10] == "val").all()
    assert (kept == "val").sum() == 10
    assert (kept == "test").sum() == 18


def test_all_three_given():
    given = ["train", "train", "val", "val", "test", "test"]
    assert split([0, 1] * 3, given, classes=("a", "b")).tolist() == given
    assert split([0, 1] * 3, given, classes=("a", "b"), val=0, test=0).tolist() == given


def test_rows_without_a_split_beside_given_ones_are_trained_on():
    given = ["train", "train", "val", "val", "test", "test", "", ""]
    assert split([0, 1] * 4, given, classes=("a", "b")).tolist() == [*given[:6], "train", "train"]


def test_unlabelled_rows():
    result = split([-1] * 20)
    assert {name: int((result == name).sum()) for name in ("train", "val", "test")} == {"train": 14, "val": 2, "test": 4}
    mixed = split([0, 1, 2] * 5 + [-1] * 10)
    assert counts(mixed[:15], [0, 1, 2] * 5) == {"train": [3, 3, 3], "val": [1, 1, 1], "test": [1, 1, 1]}
    assert split([0, 1, 2, 0, 1, 2, -1, -1], ["train"] * 3 + ["val"] * 3 + ["test"] * 2).tolist()[-1] == "test"


def test_names_that_are_not_unicode():
    assert set(split([0, 1, 2] * 5, names=[f"caf\udce9 {row}" for row in range(15)])) == {"train", "val", "test"}


class TestErrors:
    def test_nothing_left_to_train_on(self):
        assert message([0, 1, 2] * 9, val=0.5, test=0.5) == (
            "splits: val 0.5 and test 0.5 leave nothing to train on",
            "together they must be below 1",
        )

    def test_a_class_with_too_few(self):
        assert message([0] * 9 + [1] * 2 + [2] * 1) == (
            "splits: too few images for one each in train, val and test: 'dog' (2 images), 'owl' (1 image); 3 are needed",
            "add images, leave the class out, or go without a split (`splits.val: 0` or `splits.test: 0`)",
        )

    def test_with_one_split_to_cut(self):
        assert message([0] * 9 + [1] * 2 + [2] * 1, val=0) == (
            "splits: too few images for one each in train and test: 'owl' (1 image); 2 are needed",
            "add images, leave the class out, or go without a split (`splits.test: 0`)",
        )

    def test_many_classes_with_too_few(self):
        text, _ = message(range(12), classes=[f"c{number}" for number in range(12)])
        assert text.endswith("'c7' (1 image) and 4 more; 3 are needed")

    def test_too_few_in_the_given_train(self):
        assert message([0, 1, 2] * 2, ["train"] * 3 + ["test"] * 3) == (
            "splits: too few images that the dataset gives to train for one each in train and val: "
            "'cat' (1 image), 'dog' (1 image), 'owl' (1 image); 2 are needed",
            "add images, leave the class out, or go without a split (`splits.val: 0`)",
        )

    def test_a_class_that_only_the_given_test_has(self):
        assert message([0, 1, 0, 1, 0, 1, 2], ["train"] * 4 + ["test"] * 3) == (
            "splits: no training image of class 'owl'",
            "add images of it to train, or leave the class out",
        )

    def test_a_class_missing_from_a_given_split(self):
        labels = [0, 1, 2] * 4 + [0, 1]
        assert message(labels, ["train"] * 12 + ["test"] * 2) == (
            "splits: no test image of class 'owl'",
            "add images of it to test, or leave the class out",
        )
