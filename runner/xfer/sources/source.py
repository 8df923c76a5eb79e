"""What a source plugin (a provider of models) has to offer. Plugins are classes without constructor arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from xfer.plan.preprocess import Preprocess


@dataclass(frozen=True)
class Tag:
    """A provider's own weights: its canonical name, where it is downloaded from and the absolute path where it is looked for.
    `digest` is the file's SHA-256 or MD5 in hexadecimal digits, where the provider tells it."""

    name: str
    url: str | None
    file: str | None
    digest: str | None = None


class Source(Protocol):
    """A provider of models. One whose models are files on this machine also has `named_by_path = True`, `located(name)`, the absolute
    path that a name means (without asking whether it is there), and `stamp(name)`, which changes when the file does and raises
    UsageError where it is not there; `brings_weights = True` where `build` puts the file's own weights in. `needs_trust` is a text:
    why its models are only loaded where the recipe says `source.trust: true`. Where a network is built differently for the provider's own
    weights, `is_for_own(name, file, part)` says whether a file that a recipe names (or a part of it) is for that one.

    Only `models`, `build`, `tags`, `tag` and `preprocess` may import the framework, inside the method."""

    backend: str  # 'torch' or 'tensorflow'
    provider: str  # for messages: 'torchvision'

    def library(self) -> str:
        """Name and version, e.g. 'torchvision 0.29.1', without importing it; raises MissingExtraError."""
        ...

    def models(self) -> list[str]:
        """All model names, sorted."""
        ...

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network with its own classifier and without auxiliary heads, weights not loaded, on the current device
        context (so that a meta device allocates nothing). `pretrained` says that the provider's weights will be put in,
        for networks that are built differently then."""
        ...

    def tags(self, name: str) -> list[str]:
        """The weights the provider knows for a model, best first."""
        ...

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """One of them ('DEFAULT' is the best), for images of that size where the provider keeps several; raises WeightsError
        naming the tags there are."""
        ...

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the weights' metadata says; for tag None, the model's default."""
        ...

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """Tensors of the provider's own files by the names that its network has today, and in the shapes that it has for that
        image size; others as they are."""
        ...

    def input_size(self, name: str) -> int:
        """The native side in pixels."""
        ...
