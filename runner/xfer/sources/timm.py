"""timm's models."""

from __future__ import annotations

import math
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from xfer.errors import MissingExtraError, UsageError
from xfer.plan.preprocess import Preprocess
from xfer.plugins import nearest
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

_HUB_FILE = "model.safetensors"


class TimmSource:
    """`timm/NAME`, or `timm/NAME.TAG` for weights of that tag."""

    backend = "torch"
    provider = "timm"

    def library(self) -> str:
        """'timm 1.0.31', without importing it; raises MissingExtraError."""
        try:
            return f"timm {version('timm')}"
        except PackageNotFoundError:
            raise MissingExtraError("timm is not installed", hint="pip install 'xfer-runner[torch]'") from None

    def models(self) -> list[str]:
        """All model names, sorted, without weight tags."""
        self.library()
        import timm

        return sorted(timm.list_models())

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """The network, on the current device context. Networks that take one size only are built for `image_size`, or, if they
        are to take timm's weights and it has none for that size, for their native one."""
        self._known(name)
        import timm
        from timm.models import get_arch_pretrained_cfgs

        settings = self._told(name, None)
        options: dict[str, Any] = {}
        if image_size is not None and settings is not None and settings.fixed_input_size and image_size != self.input_size(name):
            sizes = {told.input_size[-1] for told in get_arch_pretrained_cfgs(name.partition(".")[0]).values()}
            options = {"img_size": image_size} if not pretrained or image_size in sizes else {}
        try:
            return timm.create_model(name, pretrained=False, **options)
        except (AssertionError, ValueError) as reason:
            if not options:
                raise
            raise UsageError(
                f"timm/{name} can't be built for images of {image_size} pixels a side: {reason}",
                hint=f"leave target.image_size out, or set it to {self.input_size(name)}",
            ) from reason

    def input_size(self, name: str) -> int:
        """The native side in pixels."""
        settings = self._told(name, None)
        return int(settings.input_size[-1]) if settings is not None else 224

    def tags(self, name: str) -> list[str]:
        """The pretrained tags that have weights, the default first."""
        settings = self._settings(name)
        base, _, own = name.partition(".")
        found = [full.partition(".")[2] or told.tag for full, told in settings.items() if told.has_weights]
        return sorted(dict.fromkeys(found), key=lambda tag: tag != own)  # the settings stand with the default first

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """One of them, by its tag, in full (resnet50.a1_in1k), or as 'DEFAULT': the tag in the model's name, else the best."""
        base, _, own = name.partition(".")
        tags = self.tags(name)
        short = (own or tags[0]) if tag == "DEFAULT" and tags else tag.removeprefix(f"{base}.")
        if short not in tags:
            raise unknown_tag(self.provider, base, short, tags)
        import torch

        told = self._told(name, short)
        folder = os.path.join(os.path.abspath(torch.hub.get_dir()), "checkpoints")
        if told.hf_hub_id:
            from huggingface_hub import hf_hub_url

            file = told.hf_hub_filename or _HUB_FILE
            repository, _, revision = told.hf_hub_id.partition("@")
            url = hf_hub_url(repository, file, revision=revision or None)
            return Tag(short, url, os.path.join(folder, "timm", f"{base}.{short}{os.path.splitext(file)[1]}"))
        url, file = told.url if isinstance(told.url, (tuple, list)) else (told.url, PurePosixPath(urlsplit(told.url).path).name)
        return Tag(short, url, os.path.join(folder, file))

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """What the tag's settings say; for tag None, those of the model's default tag.

        The few models that pad images to a square have them stretched to one here.
        """
        told = self._told(name, tag)
        if told is None:
            return Preprocess(resize=256, crop=224)
        crop = int(min(told.input_size[1:]))
        return Preprocess(
            resize=math.floor(crop / (told.crop_pct or 0.875)),
            crop=crop,
            stretch=told.crop_mode in ("squash", "border"),
            interpolation=told.interpolation if told.interpolation in ("bilinear", "bicubic", "nearest", "lanczos") else "bicubic",
            mean=tuple(told.mean),
            std=tuple(told.std),
        )

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        """Tensors of published files by the names, and for the image size, that timm's network has here: timm keeps a function
        for that beside many networks, which is asked only where names or shapes differ."""
        import torch

        with torch.device("meta"):
            network = self.build(name, pretrained=True, image_size=image_size)
        rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if rename is None or all(key in tensors and tensors[key].shape == own.shape for key, own in network.state_dict().items()):
            return tensors
        try:
            return dict(rename(dict(tensors), network))
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError):
            return tensors  # not the file it was written for: what does not fit is listed with the names as they are

    def _settings(self, name: str) -> dict[str, Any]:
        self._known(name)
        import timm

        base = name.split(".")[0]
        found = dict(timm.models.get_arch_pretrained_cfgs(base))
        best = timm.get_pretrained_cfg(base)
        return found if best is None else {base: best, **found}

    def _told(self, name: str, tag: str | None) -> Any:
        settings = self._settings(name)
        base, _, own = name.partition(".")
        wanted = tag or own
        if wanted and f"{base}.{wanted}" not in settings and (base not in settings or settings[base].tag != wanted):
            raise unknown_tag(self.provider, base, wanted, self.tags(base))
        return settings.get(f"{base}.{wanted}" if wanted else base, settings.get(base))

    def _known(self, name: str) -> None:
        base = name.split(".")[0]
        if base not in (names := self.models()):
            guess = nearest(base, names)
            raise UsageError(
                f"timm has no model '{name}'" + (f"; did you mean '{guess}'?" if guess else ""), hint="xfer list models shows all names"
            )
