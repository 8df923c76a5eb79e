"""Which image is trained on, which is chosen by, which is tested on: stratified, seeded, the same on every machine.

An image's place follows from the seed and its key alone, by a hash: adding or removing images moves few others, and
neither the order of rows nor the version of a library matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b

import numpy as np

from xfer.data.dataset import SPLITS, UNASSIGNED, UNLABELLED, listed, plural
from xfer.errors import DataError

PATH = "target.splits"


def assign(
    labels: np.ndarray,
    given: np.ndarray,
    keys: Sequence[str],
    *,
    classes: Sequence[str],
    val: float,
    test: float,
    seed: int,
) -> np.ndarray:
    """Per row 'train', 'val' or 'test' (str [n]).

    Splits that the dataset has (`given` is per row 'train', 'val', 'test' or '') are kept; of the rows that are not in a
    given val or test split, the pool, `val` and `test` are the shares for those that it has not. Of each class with n
    images in the pool, n * share are cut, rounded half up and at least one; train keeps at least one, taken back from the
    larger of the two (from test, if they are equal). Unlabelled rows (-1) are cut as if they were one more class.

    Raises DataError where a class would be missing from train, or from a split that there is to be.
    """
    if val + test >= 1:
        raise DataError(f"splits: val {val:g} and test {test:g} leave nothing to train on", path=PATH, hint="together they must be below 1")
    result = np.where(given == UNASSIGNED, "train", given).astype("<U5")
    shares = {
        "val": Fraction(0) if (given == "val").any() else Fraction(repr(float(val))),
        "test": Fraction(0) if (given == "test").any() else Fraction(repr(float(test))),
    }
    _check_enough(labels[result == "train"], classes, cut=[name for name, share in shares.items() if share], given=given)
    for label in np.unique(labels[result == "train"]).tolist():
        pool = np.flatnonzero((labels == label) & (result == "train"))
        n_val, n_test = sizes(len(pool), val=shares["val"], test=shares["test"])
        ranked = sorted(pool.tolist(), key=lambda row: _rank(seed, keys[row]))
        # From the two ends, so that a change of one share leaves the other split as it was.
        result[ranked[:n_test]] = "test"
        result[ranked[len(ranked) - n_val :]] = "val"
    _check_given(labels, result, classes)
    return result


def sizes(n: int, *, val: Fraction, test: Fraction) -> tuple[int, int]:
    """How many of n images of a class go to val and to test.

    >>> sizes(25, val=Fraction("0.1"), test=Fraction("0.2")), sizes(3, val=Fraction("0.1"), test=Fraction("0.2"))
    ((3, 5), (1, 1))
    """
    n_val, n_test = (max(1, int(n * share + Fraction(1, 2))) if share else 0 for share in (val, test))
    while n_val + n_test >= n and max(n_val, n_test) > 1:
        if n_val > n_test:
            n_val -= 1
        else:
            n_test -= 1
    # Unlabelled rows may be too few for all three; train comes first, then test.
    n_test = min(n_test, max(0, n - 1))
    return min(n_val, max(0, n - 1 - n_test)), n_test


def _rank(seed: int, key: str) -> tuple[bytes, bytes]:
    name = key.encode("utf-8", "surrogatepass")
    return blake2b(name, digest_size=16, key=seed.to_bytes(16, "little")).digest(), name


def _check_enough(pool: np.ndarray, classes: Sequence[str], *, cut: list[str], given: np.ndarray) -> None:
    """Every class needs an image in train and in each split that is cut from it."""
    counts = np.bincount(pool[pool != UNLABELLED], minlength=len(classes))
    if not counts.any():
        return  # no labels at all: there is nothing to stratify by
    needed = 1 + len(cut)
    few = [(name, int(count)) for name, count in zip(classes, counts, strict=True) if count < needed]
    if not few:
        return
    named = ", ".join(f"'{name}' ({plural(count, 'image')})" for name, count in few[:8])
    named += f" and {len(few) - 8} more" if len(few) > 8 else ""
    if not cut or all(count == 0 for _, count in few):
        names = listed([name for name, count in few if count == 0 or not cut])
        raise DataError(f"splits: no training image of class {names}", path=PATH, hint="add images of it to train, or leave the class out")
    there = " and ".join(["train", *cut]) if len(cut) == 1 else "train, val and test"
    kept = " that the dataset gives to train" if (given != UNASSIGNED).any() else ""
    off = " or ".join(f"`splits.{name}: 0`" for name in cut)
    raise DataError(
        f"splits: too few images{kept} for one each in {there}: {named}; {needed} are needed",
        path=PATH,
        hint=f"add images, leave the class out, or go without a split ({off})",
    )


def _check_given(labels: np.ndarray, result: np.ndarray, classes: Sequence[str]) -> None:
    """A split that there is has every class."""
    present = set(np.unique(labels).tolist()) - {UNLABELLED}
    for split in SPLITS:
        inside = set(np.unique(labels[result == split]).tolist())
        if not inside - {UNLABELLED}:
            continue
        missing = [classes[label] for label in sorted(present - inside)]
        if missing:
            raise DataError(
                f"splits: no {split} image of class {listed(missing)}",
                path=PATH,
                hint=f"add images of it to {split}, or leave the class out",
            )
