"""A folder with a portable network, built on torch."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from xfer.backends.portable_folder import PortableFolder
from xfer.backends.torch.portable_network import PortableNetwork
from xfer.plan.portable import read


class PortableSource(PortableFolder):
    """Its weights are read as those of any other torch network are."""

    backend = "torch"

    def library(self) -> str:
        """'torch 2.14.1': who builds it."""
        return f"torch {version('torch')}"

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> PortableNetwork:
        """The network, weights not loaded."""
        return PortableNetwork(read(Path(name)))
