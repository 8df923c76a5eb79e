"""Weight files as named tensors. Only tensors are ever read: whatever else a file wants to be made into is refused, unrun.

The levels of nested containers are joined with '/', so that {'state_dict': {'conv1.weight': …}} is 'state_dict/conv1.weight'.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xfer import plugins
from xfer.errors import WeightsError
from xfer.plan.model_map import HEAD, OWN, ModelMap
from xfer.plan.plan import SourcePlan
from xfer.sources import arrays
from xfer.sources.fitting import fit
from xfer.sources.formats import identify
from xfer.sources.source import Source

if TYPE_CHECKING:
    import torch

__all__ = ["fit", "load", "read_tensors"]

Tensor = TypeVar("Tensor")

MAX_VALUES = 1_000_000  # containers can hold themselves, or each other many times over
MAX_DEPTH = 32


def load(source: SourcePlan, *, model_map: ModelMap, order: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """The source's tensors by the network's own names, complete and checked, on the CPU, float32 where they are real numbers.

    `order` is the network's names in its own order (`list(network.state_dict())`), for `match: order`. Raises WeightsError.
    """
    weights = source.weights
    assert weights.file is not None
    tensors = read_tensors(Path(weights.file))
    if weights.kind == "bundle":
        wanted = {tensor.name for group in model_map.groups for tensor in group.tensors}
        return fit(without_added(tensors, wanted), model_map=model_map, origin=weights.file)
    provider: Source = plugins.load(source.target)()
    return fit(
        tensors,
        model_map=model_map,
        match=weights.match,
        part=weights.part,
        order=order,
        adapt=lambda named: provider.adapt(source.name, named, image_size=model_map.image_size),
        origin=weights.file,
    )


def without_added(tensors: Mapping[str, Tensor], network: Container[str]) -> dict[str, Tensor]:
    """A bundle's tensors without what its run added to the network: its head and its method's own."""
    return {name: tensor for name, tensor in tensors.items() if name in network or not name.startswith((f"{HEAD}.", f"{OWN}."))}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, in the file's order, on the CPU, in the types they are stored in.

    Raises WeightsError that names the file and says what it is: absent, empty, truncated, a web page, a pointer, another
    framework's, or a pickle that wants more than tensors.
    """
    kind = identify(file)
    if kind == "safetensors":
        content: Any = _read_safetensors(file)
    elif kind == "torch":
        content = _read_torch(file)
    else:
        content = arrays.read_archive(file) if kind == "numpy archive" else arrays.read_pickle(file)
    return {name: _tensor(value, name, file) for name, value in leaves(content, file).items()}


def leaves(content: Any, file: Path) -> dict[str, Any]:
    """The tensors and arrays in containers by their joined names; raises WeightsError where there are none."""
    found: dict[str, Any] = {}
    _flatten(content, "", found, file, [MAX_VALUES], 0)
    if not found:
        raise WeightsError(f"{file} holds no tensors")
    if "" in found:
        raise WeightsError(f"{file} holds one tensor without a name, not the tensors of a network")
    return found


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as safetensors ({arrays.reason(error)})") from None
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror or error}") from None


def _read_torch(file: Path) -> Any:
    import torch

    harmless: list[Any] = [(answer, name) for name, answer in arrays.ANSWERS.items()]
    harmless += [arrays.Type, arrays.Array, argparse.Namespace]
    try:
        # a stream, because torch goes by a path's ending and not by what is in the file
        with torch.serialization.safe_globals(harmless), file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except arrays.ForbiddenError as error:
        raise arrays.refused(file, str(error.args[0])) from None
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is not None:
            raise arrays.refused(file, asked[1]) from None
        raise WeightsError(f"{file} is damaged, or holds more than tensors: torch can't read it as tensors alone") from None
    except arrays.DAMAGE as error:
        raise WeightsError(f"{file} is truncated or damaged: it can't be read as a torch file ({arrays.reason(error)})") from None


def _flatten(value: Any, name: str, found: dict[str, Any], file: Path, budget: list[int], depth: int) -> None:
    """Put every tensor and array below `value` into `found`; settings beside them (epoch, arguments) are passed over."""
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise WeightsError(f"{file} is refused: its containers are nested in each other without end")
    if isinstance(value, dict):
        inner = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = [(str(key), item) for key, item in enumerate(value)]
    else:
        value = value.value if isinstance(value, arrays.Array) else value
        if isinstance(value, np.ndarray) or hasattr(value, "untyped_storage"):
            found[name] = value
        return
    for key, item in inner:
        _flatten(item, f"{name}/{key}" if name else key, found, file, budget, depth + 1)


def _tensor(value: Any, name: str, file: Path) -> torch.Tensor:
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(arrays.checked(value, name, file))
    tensor: torch.Tensor = value.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise WeightsError(f"{file}: '{name}' is not a plain tensor of real numbers (it is {tensor.dtype}, {tensor.layout})")
    return tensor
