"""A network's tensors: each counted once, under the name of the group that reads it first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from xfer.backends.torch.groups import Part
from xfer.backends.torch.layers import is_norm


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or a buffer that is saved. `names` are all its names (tied tensors have several), `name` the one that counts."""

    name: str
    names: frozenset[str]
    shape: tuple[int, ...]
    kind: Literal["parameter", "buffer"]
    norm: bool

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())


def state_tensors(network: nn.Module, prefix: str = "") -> list[NamedTensor]:
    """All tensors of the network's state, in its own order. Buffers that aren't saved are made by the network itself: no state."""
    found: dict[int, NamedTensor] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        norm = is_norm(module)
        own = [*((n, p, "parameter") for n, p in module._parameters.items()), *((n, b, "buffer") for n, b in module._buffers.items())]
        for short, tensor, kind in own:
            if tensor is None or short in module._non_persistent_buffers_set:
                continue
            name = f"{prefix}{path}.{short}" if path else f"{prefix}{short}"
            known = found.get(id(tensor))
            if known is None:
                found[id(tensor)] = NamedTensor(name, frozenset({name}), tuple(tensor.shape), kind, norm)  # type: ignore[arg-type]
            else:
                found[id(tensor)] = replace(known, names=known.names | {name}, norm=known.norm or norm)
    return list(found.values())


def assign(tensors: Iterable[NamedTensor], parts: Sequence[Part], *, left_out: Iterable[NamedTensor]) -> dict[str, list[NamedTensor]]:
    """Each tensor's part, by the part's name: the earliest one that one of its names lies in."""
    skipped = {tensor.name for tensor in left_out}
    order = {part.path: index for index, part in enumerate(parts)}
    assigned: dict[str, list[NamedTensor]] = {}
    for tensor in tensors:
        if tensor.name in skipped:
            continue
        places = [(order[path], name) for name in tensor.names for path in _prefixes(name) if path in order]
        index, name = min(places)
        assigned.setdefault(parts[index].name, []).append(replace(tensor, name=name))
    return assigned


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
