from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from xfer.data.datasets.sklearn import sklearn


def test_digits():
    dataset = sklearn("digits")
    assert dataset.classes == tuple("0123456789")
    assert len(dataset) == 1797
    digits = load_digits()
    np.testing.assert_array_equal(dataset.labels, digits.target)
    image = dataset.read(7)
    assert (image.dtype, image.shape) == (np.uint8, (8, 8))
    np.testing.assert_allclose(image, digits.images[7] / 16 * 255, atol=0.5)
    pixels = np.concatenate([dataset.read(row) for row in range(200)])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert set(dataset.splits) == {""}


def test_without_a_name():
    assert sklearn(None).keys == sklearn().keys


def test_another_name(refusal):
    assert refusal(sklearn, "digit") == (
        "target.dataset",
        "'sklearn/digit': no image dataset of that name comes with scikit-learn; there is sklearn/digits",
        "did you mean 'sklearn/digits'?",
    )
    assert refusal(sklearn, "covtype")[2] is None
