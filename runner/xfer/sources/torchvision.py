"""torchvision's classification models."""

from __future__ import annotations

import hashlib
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from xfer.errors import MissingExtraError, UsageError
from xfer.plan.preprocess import Preprocess
from xfer.plugins import nearest
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

# Files keep the names that layers had when they were trained; torchvision renames them on loading, in these two ways.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
)

# These two subtract other means than their own weights were made for unless told so: torchvision switches it on with the weights.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")

_ONE_SIZE = ("vit_",)  # their position embeddings have one row for each patch


class TorchvisionSource:
    """`torchvision/NAME`: the 80 image classifiers of `torchvision.models`."""

    backend = "torch"
    provider = "torchvision"

    def library(self) -> str:
        """'torchvision 0.29.1', without importing it; raises MissingExtraError."""
        try:
            return f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            raise MissingExtraError("torchvision is not installed", hint="pip install 'xfer-runner[torch]'") from None

    def models(self) -> list[str]:
        """All model names, sorted."""
        self.library()
        from torchvision import models

        return sorted(models.list_models(module=models))

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network, on the current device context, without auxiliary heads. Vision transformers are built for one size:
        for `image_size`, or, if they are to take torchvision's weights and it has none for that size, for their native one."""
        self._known(name)
        from torchvision import models

        options: dict[str, Any] = {}
        if name in _TRANSFORM_INPUT:
            options = {"aux_logits": False, "transform_input": pretrained, "init_weights": True}
        elif name.startswith(_ONE_SIZE):
            fits = image_size is not None and (not pretrained or image_size in self._sizes(name))
            options = {"image_size": image_size if fits else self.input_size(name)}
        try:
            return models.get_model(name, weights=None, **options)
        except AssertionError as reason:
            raise UsageError(
                f"torchvision/{name} can't be built for images of {image_size} pixels a side: {reason}",
                hint=f"leave target.image_size out, or set it to {self.input_size(name)}",
            ) from reason

    def input_size(self, name: str) -> int:
        """The native side in pixels: what the best weights were evaluated at."""
        self._known(name)
        return self._sizes(name)[0]

    def _sizes(self, name: str) -> list[int]:
        """The sides that torchvision's weights for a model were evaluated at, those of the best first."""
        from torchvision import models

        weights = models.get_model_weights(name)
        best = [weights.DEFAULT] if hasattr(weights, "DEFAULT") else []  # type: ignore[attr-defined]
        return [int(member.transforms().crop_size[0]) for member in [*best, *weights]] or [224]

    def tags(self, name: str) -> list[str]:
        """The weights torchvision has for a model, best first: IMAGENET1K_V2 before IMAGENET1K_V1."""
        members = self._weights(name)
        best = [members["DEFAULT"].name] if "DEFAULT" in members else []
        return [*best, *(tag for tag, member in members.items() if tag == member.name and tag not in best)]

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """One of them, by its name, as 'DEFAULT', or as torchvision writes it in full (ResNet18_Weights.IMAGENET1K_V1)."""
        members = self._weights(name)
        short = tag.rpartition("_Weights.")[2]
        if short not in members:
            raise unknown_tag(self.provider, name, tag, self.tags(name))
        import torch

        url = members[short].url
        file = os.path.join(os.path.abspath(torch.hub.get_dir()), "checkpoints", PurePosixPath(urlsplit(url).path).name)
        return Tag(members[short].name, url, file)

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the weights' own transforms say; for tag None, those of the best weights, or ImageNet's where there are none."""
        members = self._weights(name)
        if tag is None and "DEFAULT" not in members:
            return Preprocess(resize=256, crop=224)
        if tag is not None and tag not in members:
            raise unknown_tag(self.provider, name, tag, self.tags(name))
        says = members[tag or "DEFAULT"].transforms()
        return Preprocess(
            resize=says.resize_size[0],
            crop=says.crop_size[0],
            interpolation=says.interpolation.value,
            mean=tuple(says.mean),
            std=tuple(says.std),
        )

    def is_for_own(self, name: str, file: Path, part: str | None) -> bool:
        """Whether it is one of torchvision's own files, whose names hold the first digits of their SHA-256."""
        if name not in _TRANSFORM_INPUT or not file.is_file():
            return False
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return any(f"-{digest[:8]}." in member.url for member in self._weights(name).values())

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """Tensors of torchvision's own files by the names that its networks have today."""
        renamed = {}
        for key, tensor in tensors.items():
            for pattern, replacement in _RENAMED:
                key = pattern.sub(replacement, key)
            renamed[key] = tensor
        return renamed

    def _weights(self, name: str) -> dict[str, Any]:
        self._known(name)
        from torchvision import models

        return dict(models.get_model_weights(name).__members__)

    def _known(self, name: str) -> None:
        if name not in (names := self.models()):
            guess = nearest(name, names)
            raise UsageError(
                f"torchvision has no classification model '{name}'" + (f"; did you mean '{guess}'?" if guess else ""),
                hint="xfer list models shows all names",
            )
