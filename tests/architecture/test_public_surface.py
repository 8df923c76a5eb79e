"""What `import xfer` offers is a sorted list."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import xfer


def test_names():
    assert xfer.__all__ == ["__version__"]
    assert xfer.__all__ == sorted(xfer.__all__)


def test_each_name_is_there():
    for name in xfer.__all__:
        assert getattr(xfer, name) is not None


def test_the_version_is_the_distributions():
    assert xfer.__version__ == version("xfer-runner")


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="^module 'xfer' has no attribute 'run_everything'$"):
        xfer.run_everything  # noqa: B018
