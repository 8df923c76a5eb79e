"""A network as data that either backend can build: its operations as JSON, its tensors beside it.

One convention, whoever wrote it: the axes of a row are counted without the batch, and a map's row is [channels, height, width]; kernels
are [output, input per group, height, width], the weights of dense layers [output, input]. A tensor is called `<operation>.<role>`.
Everything is for images of one size, so that all padding is a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file

from xfer.errors import UsageError
from xfer.plan.model_map import Frozen, Tensor
from xfer.plan.preprocess import Preprocess

IMAGES = "images"  # the name of the input: the network's own input, normalised, [channels, height, width]
CLASSIFIER = "network_classifier"  # stands for a network's own in what is built: it marks the features below it, and is never used
GRAPH_FILE, TENSORS_FILE = "graph.json", "tensors.safetensors"
TAG = "portable"  # what its weights are called in a plan
# Parts of a name that torch's modules already use for something; a test holds this against torch itself.
_RESERVED = """
T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval extra_repr
float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys load_state_dict modules mtia named_buffers
named_children named_modules named_parameters parameters pop register_backward_hook register_buffer register_forward_hook
register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook
requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty train training type update values xpu zero_grad
"""
RESERVED = frozenset(_RESERVED.split())
Pair = tuple[int, int]
Sides = tuple[Pair, Pair]  # padding of the height (before, after) and of the width
NO_SIDES: Sides = ((0, 0), (0, 0))

Function = Literal[
    "relu", "relu6", "leaky_relu", "elu", "selu", "silu", "sigmoid", "tanh", "gelu", "gelu_tanh", "hard_swish", "hard_sigmoid", "mish",
    "softplus",
]  # fmt: skip


class NotPortableError(UsageError):
    """A network with something in it that only its own backend has."""


class Operation(Frozen):
    """One step. `inputs` names earlier operations, or IMAGES."""

    name: str
    inputs: tuple[str, ...]
    tensors: tuple[Tensor, ...] = ()

    def shape(self, role: str) -> tuple[int, ...] | None:
        """The shape of the tensor `<name>.<role>`, None if there is none."""
        return next((tensor.shape for tensor in self.tensors if tensor.name == f"{self.name}.{role}"), None)


class Conv(Operation):
    """`weight`, maybe `bias`."""

    kind: Literal["conv"] = "conv"
    stride: Pair
    padding: Sides
    dilation: Pair = (1, 1)
    groups: int = 1


class Dense(Operation):
    """On the last axis: `weight`, maybe `bias`."""

    kind: Literal["dense"] = "dense"


class BatchNorm(Operation):
    """On axis 0: `running_mean`, `running_var`, maybe `weight` and `bias`. `momentum` is what a batch contributes to the statistics."""

    kind: Literal["batch_norm"] = "batch_norm"
    epsilon: float
    momentum: float


class LayerNorm(Operation):
    """Over the last axes, as many as `size` has: maybe `weight` and `bias`."""

    kind: Literal["layer_norm"] = "layer_norm"
    epsilon: float
    size: tuple[int, ...]


class GroupNorm(Operation):
    """Over groups of the channels (axis 0) and all positions: maybe `weight` and `bias`."""

    kind: Literal["group_norm"] = "group_norm"
    epsilon: float
    groups: int


class Weighted(Operation):
    """Multiplied by, or added to, a tensor `weight`, which is lined up with the row's last axes and stretched where it is 1."""

    kind: Literal["weighted"] = "weighted"
    by: Literal["multiply", "add"]


class Rescale(Operation):
    """x * factor + offset: one number each, or one for each channel (axis 0)."""

    kind: Literal["rescale"] = "rescale"
    factor: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)


class Activation(Operation):
    """`slope` of leaky_relu below zero, alpha of elu."""

    kind: Literal["activation"] = "activation"
    function: Function
    slope: float | None = None


class Softmax(Operation):
    """Over one axis."""

    kind: Literal["softmax"] = "softmax"
    axis: int


class Combine(Operation):
    """Several values of one rank, stretched where an axis is 1."""

    kind: Literal["combine"] = "combine"
    by: Literal["add", "subtract", "multiply", "maximum", "minimum"]


class Concat(Operation):
    """Along an axis."""

    kind: Literal["concat"] = "concat"
    axis: int


class Pool(Operation):
    """Windows over height and width. Padding is never the largest; in an average it counts (as zero) where `counts_padding`."""

    kind: Literal["pool"] = "pool"
    by: Literal["max", "average"]
    window: Pair
    stride: Pair
    padding: Sides = NO_SIDES
    counts_padding: bool = False


class AdaptiveAverage(Operation):
    """Averages over as many windows as `size` says, which may overlap, or repeat."""

    kind: Literal["adaptive_average"] = "adaptive_average"
    size: Pair


class Reduce(Operation):
    """Over axes, which stay as 1 where `keep`."""

    kind: Literal["reduce"] = "reduce"
    by: Literal["mean", "max", "sum"]
    axes: tuple[int, ...]
    keep: bool = False


class Pad(Operation):
    """(before, after) for each axis, filled with zeros."""

    kind: Literal["pad"] = "pad"
    sides: tuple[Pair, ...]


class Slice(Operation):
    """From `start` up to `stop` on one axis."""

    kind: Literal["slice"] = "slice"
    axis: int
    start: int
    stop: int
    step: int = 1


class Reshape(Operation):
    """The row's numbers in their order, as another shape."""

    kind: Literal["reshape"] = "reshape"
    row: tuple[int, ...]


class Transpose(Operation):
    """New axis i is old axis order[i]."""

    kind: Literal["transpose"] = "transpose"
    order: tuple[int, ...]


class Dropout(Operation):
    """In train mode drops single values, whole channels or whole images, and scales up what is left."""

    kind: Literal["dropout"] = "dropout"
    rate: float
    of: Literal["values", "channels", "images"] = "values"


AnyOperation = Annotated[
    Conv | Dense | BatchNorm | LayerNorm | GroupNorm | Weighted | Rescale | Activation | Softmax | Combine | Concat | Pool | AdaptiveAverage
    | Reduce | Pad | Slice | Reshape | Transpose | Dropout,
    Field(discriminator="kind"),
]  # fmt: skip


class Portable(Frozen):
    """A network up to its pooled features: `features` names the operation that gives them, a vector of `width` numbers for each image."""

    format: Literal[1] = 1
    model: str
    backend: Literal["torch", "tensorflow"]  # where it comes from
    input_size: int
    image_size: int
    preprocess: Preprocess
    operations: tuple[AnyOperation, ...]
    features: str
    width: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for operation in self.operations for tensor in operation.tensors)


class Names:
    """Names, each given out once, that both backends can use: no slash, and nothing that torch's modules have already. Those that are
    `taken` from the start are kept as they are.

    >>> names = Names()
    >>> names.free("block.train"), names.free("a/b"), names.free("a_b")
    ('block.train_', 'a_b', 'a_b_')
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {IMAGES, CLASSIFIER, *taken}

    def free(self, wanted: str) -> str:
        """`wanted`, or the nearest to it that can be used."""
        parts = [part or "_" for part in wanted.replace("/", "_").split(".")]
        name = ".".join(f"{part}_" if part in RESERVED or part.startswith("__") else part for part in parts)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def write(folder: Path, portable: Portable, tensors: dict[str, np.ndarray]) -> None:
    """Both files into a folder, which is made. `tensors` are the values of `portable.tensors`, all of them."""
    wanted = {tensor.name: tensor.shape for tensor in portable.tensors}
    assert wanted == {name: value.shape for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.array(value, np.float32, order="C") for name, value in tensors.items()}, folder / TENSORS_FILE)
    (folder / GRAPH_FILE).write_text(portable.model_dump_json(indent=1) + "\n")


def read(folder: Path) -> Portable:
    """The network of a folder that `write` filled, without its tensors' values."""
    return Portable.model_validate_json((folder / GRAPH_FILE).read_text())


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Its tensors, float32, by name."""
    return load_file(folder / TENSORS_FILE)
