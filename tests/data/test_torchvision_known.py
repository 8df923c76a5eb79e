"""What is said of torchvision's data sets before they are there agrees with torchvision's own source."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from torchvision import datasets as theirs

from xfer.data.torchvision_arrays import ARRAY_SETS
from xfer.data.torchvision_files import FILE_SETS
from xfer.data.torchvision_known import KNOWN, known


def test_every_data_set_and_variant_is_there():
    expected = set()
    for name, kept in {**FILE_SETS, **ARRAY_SETS}.items():
        by_variant = any("/" in key for key in KNOWN if key.partition("/")[0] == name)
        expected |= {f"{name}/{variant}" for variant in kept.variants} if by_variant else {name}
    assert set(KNOWN) == expected - {"StanfordCars"}


@pytest.mark.parametrize("key", KNOWN)
def test_its_addresses_are_torchvisions(key):
    kind = getattr(theirs, key.partition("/")[0])
    text = "".join(inspect.getsource(sys.modules[base.__module__]) for base in kind.__mro__ if base.__module__.startswith("torchvision"))
    for download in KNOWN[key].downloads(Path("root")):
        parts = urlsplit(download.url)
        folder, _, file = parts.path.rpartition("/")
        assert f"{parts.scheme}://{parts.netloc}{folder}/" in text, download.url
        assert file in text, download.url


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST", "KMNIST"])
def test_class_names_are_torchvisions(name):
    names = getattr(
        getattr(theirs, name), "classes", ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    )
    assert KNOWN[name].names == tuple(names)


def test_totals_are_spread_and_counts_are_kept():
    assert {split: sum(numbers) for split, numbers in KNOWN["SVHN"].counts.items()} == {"train": 73_257, "test": 26_032}
    assert KNOWN["MNIST"].counts["test"] == (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    assert {split: sum(numbers) for split, numbers in KNOWN["MNIST"].counts.items()} == {"train": 60_000, "test": 10_000}


def test_a_variant_that_makes_no_difference():
    assert known("DTD", "7") is KNOWN["DTD"]
    assert known("CIFAR100", "coarse") is KNOWN["CIFAR100/coarse"]
    assert known("StanfordCars", "") is None
