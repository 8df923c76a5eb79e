"""A folder with a portable network in it, as the source of a run. `xfer parity` makes such folders and provides the source itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from xfer.errors import UsageError, WeightsError
from xfer.plan.portable import GRAPH_FILE, TAG, TENSORS_FILE, read
from xfer.plan.preprocess import Preprocess
from xfer.sources.source import Tag


class PortableFolder:
    """All that a source answers, but for who builds the network. A model's name is its folder."""

    provider = "portable"
    named_by_path = True

    def models(self) -> list[str]:
        """None: they are folders."""
        return []

    def located(self, name: str) -> str:
        """The folder's absolute path."""
        return str(Path(name).absolute())

    def stamp(self, name: str) -> str:
        """A digest of both files; raises UsageError where they are not there."""
        digest = hashlib.blake2b(digest_size=16)
        try:
            for file in (GRAPH_FILE, TENSORS_FILE):
                digest.update((Path(name) / file).read_bytes())
        except OSError as error:
            raise UsageError(f"{name} holds no portable network: {(error.strerror or str(error)).lower()}") from error
        return digest.hexdigest()

    def input_size(self, name: str) -> int:
        """The native side of the network that it was made of."""
        return read(Path(name)).input_size

    def tags(self, name: str) -> list[str]:
        """Its own tensors."""
        return [TAG]

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """The file of tensors; raises WeightsError for any other tag."""
        if tag not in ("DEFAULT", TAG):
            raise WeightsError(f"a portable network brings its own weights, so there is no tag '{tag}'; leave source.weights out")
        return Tag(TAG, None, str(Path(name) / TENSORS_FILE))

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the run does that it was made of."""
        return read(Path(name)).preprocess

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """The names are the network's own."""
        return tensors
