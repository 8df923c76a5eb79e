"""`sklearn/digits`: the 1,797 handwritten digits of 8 x 8 px that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from xfer.data.dataset import ArrayReader, Dataset
from xfer.errors import DataError
from xfer.plugins import nearest

NAMES = ("digits",)


def sklearn(name: str | None = "digits") -> Dataset:
    """The digits, their 17 levels of grey (0 to 16) scaled to 0..255; no splits of its own. Raises DataError."""
    if name is None:
        name = "digits"
    if name not in NAMES:
        guess = nearest(name, NAMES)
        raise DataError(
            f"'sklearn/{name}': no image dataset of that name comes with scikit-learn; there is sklearn/digits",
            path="target.dataset",
            hint=f"did you mean 'sklearn/{guess}'?" if guess else None,
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Dataset(
        classes=tuple(str(digit) for digit in digits.target_names.tolist()),
        keys=tuple(str(row) for row in range(len(images))),
        labels=digits.target.astype(np.int64),
        splits=np.full(len(images), "", "<U5"),
        read=ArrayReader((images,)),
    )
