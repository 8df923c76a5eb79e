"""A source plugin with networks that are small enough to be written out again by hand. Recipes name this file in `plugins:`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xfer.plan.preprocess import Preprocess
from xfer.sources.source import Tag
from xfer.sources.tags import unknown_tag

SIDE = 8


class Plain(nn.Module):
    """Two convolutions and a linear layer with tanh between them: groups one, two and three."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.three, self.fc = nn.Linear(24, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.tanh(self.two(torch.tanh(self.one(x))))
        return self.fc(torch.tanh(self.three(x.flatten(1))))


class Block(nn.Module):
    """A convolution whose shift is its normalisation's: a bias would have no gradient, which Adam would blow up from nothing."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.conv(x)))


class Normalised(nn.Module):
    """Two convolutions with batch normalisation, averaged over positions: groups one and two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = Block(3, 4), Block(4, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.two(self.one(x)).mean((2, 3)))


class TinySource:
    """`tiny/NAME`; implements `xfer.sources.source.Source`."""

    backend = "torch"
    provider = "tiny"

    def library(self) -> str:
        return "tiny 1"

    def models(self) -> list[str]:
        return ["normalised", "plain"]

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        return {"plain": Plain, "normalised": Normalised}[name]()

    def tags(self, name: str) -> list[str]:
        return []

    def tag(self, name: str, tag: str) -> Tag:
        raise unknown_tag(self.provider, name, tag, [])

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        return Preprocess(resize=SIDE, crop=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    def adapt(self, name: str, tensors: dict[str, Any], *, image_size: int | None = None) -> dict[str, Any]:
        return tensors

    def input_size(self, name: str) -> int:
        return SIDE


xfer_plugins = {"sources": {"tiny": TinySource}}
