"""A folder with a portable network, built on TensorFlow."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from xfer.backends.portable_folder import PortableFolder
from xfer.backends.tensorflow.portable_network import build
from xfer.plan.portable import read, read_tensors


class PortableSource(PortableFolder):
    """The network comes with its weights, which Keras keeps in other shapes than the file does."""

    backend = "tensorflow"
    brings_weights = True

    def library(self) -> str:
        """'keras 3.15.1': who builds it."""
        return f"keras {version('keras')}"

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network with its weights."""
        return build(read(Path(name)), read_tensors(Path(name)))
