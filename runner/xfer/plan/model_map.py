"""A network as plain data: ordered groups, stages, and the cuts where exactly one tensor passes.

A backend derives it from the network itself (see `backends/*/describe.py`); everything that decides reads only this.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

PIXELS = "pixels"  # cut 0: decoded images, uint8, before the network's input normalisation
POOLED = "pooled"  # the last cut: the vector that the network's own last classifying layer read
HEAD = "head"  # the name of the new head's group
OWN = "method"  # a method's own tensors are called method.<name>

Layout = Literal["pixels", "chw", "hwc", "tokens", "vector"]


class Frozen(BaseModel):
    """Plain, immutable data that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Tensor(Frozen):
    """One parameter or buffer, under the framework's own name."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["parameter", "buffer"]

    @property
    def size(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


class Group(Frozen):
    """A named, ordered part of a network (`conv1`, `layer1.0`), input end first. `norm` names its normalisation tensors."""

    name: str
    stage: str
    tensors: tuple[Tensor, ...]
    norm: tuple[str, ...] = ()  # names of the tensors (scale, shift, statistics) that normalisation layers own

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.kind == "parameter")

    @property
    def n_parameters(self) -> int:
        return sum(tensor.size for tensor in self.parameters)


class Cut(Frozen):
    """A boundary where one tensor passes.

    `groups_before` groups lie below it. `shape` is one row's shape without the batch, in the backend's own layout
    (torch: channels first, unless the network itself works channels last, which `layout` says).
    The pooled cut's shape is the vector's, after global average pooling where the network left it spatial.
    """

    name: str  # 'pixels', the name of the last group before it, or 'pooled'
    groups_before: int
    shape: tuple[int, ...]
    layout: Layout

    @property
    def values(self) -> int:
        """How many numbers one row holds."""
        count = 1
        for n in self.shape:
            count *= n
        return count


class ModelMap(Frozen):
    """What the compiler knows of a network.

    Every tensor of the part that we use is in exactly one group; `classifier` lists the tensors of the network's own
    classifying layer and auxiliary heads, which are left out. `traced` is False where only two cuts are known.
    """

    model: str  # provider/name, or what the recipe says
    backend: Literal["torch", "tensorflow"]
    library: str  # e.g. 'torchvision 0.29.1'
    input_size: int  # native side in pixels
    image_size: int  # the side that the cuts' shapes are for
    channels: int = 3
    groups: tuple[Group, ...]
    cuts: tuple[Cut, ...]
    classifier: tuple[Tensor, ...] = ()
    traced: bool = True
    note: str | None = None  # why it could not be traced, for people

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Group names by stage, in order."""
        stages: dict[str, list[str]] = {}
        for group in self.groups:
            stages.setdefault(group.stage, []).append(group.name)
        return {stage: tuple(names) for stage, names in stages.items()}

    def group(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)

    def cut(self, name: str) -> Cut:
        return next(cut for cut in self.cuts if cut.name == name)

    @property
    def n_parameters(self) -> int:
        return sum(group.n_parameters for group in self.groups)
