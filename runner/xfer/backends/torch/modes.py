"""Train and eval mode, module by module: only what belongs to a trained group is in train mode, and its normalisation as the phase says.

A module without tensors (dropout, stochastic depth) belongs to the group that it lies in, or else to the next one that is computed
after it, which it regularises: cuts lie below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from xfer.backends.torch.layers import is_norm
from xfer.backends.torch.segments import Segments, TwoModes

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def owners(segments: Segments) -> dict[str, str]:
    """The group's name for each module path of the network; what belongs to none (containers of several groups) is left out."""
    network, derived = segments.network, segments.derived
    names = [group.name for group in segments.model_map.groups]
    places = {group.part.path: group.name for group in derived.groups} if derived else {name: name for name in names}
    order = [str(node.target) for node in derived.trace.nodes if node.op == "call_module"] if derived else _paths(network)
    current = names[-1] if names else ""
    loose: dict[str, str] = {}
    for path in reversed(order):
        found = _within(path, places)
        if found is None and not any(True for _ in network.get_submodule(path).children()):
            loose[path] = current
        current = found or current
    paths = {path: _within(path, places) or _within(path, loose) for path in _paths(network)}
    return {path: name for path, name in paths.items() if name is not None}


def _paths(network: nn.Module) -> list[str]:
    return [path for path, _ in network.named_modules() if path]


def _within(path: str, places: Mapping[str, str]) -> str | None:
    """The name of the deepest place that `path` is or lies in."""
    parts = path.split(".")
    return next((places[place] for n in range(len(parts), 0, -1) if (place := ".".join(parts[:n])) in places), None)


def training_modes(
    segments: Segments, suffix: nn.Module, owner: Mapping[str, str], trained: Collection[str], *, norm: str, statistics: bool = False
) -> None:
    """Train mode for the modules of `trained` groups, eval mode for all others. With norm 'frozen' normalisation layers stay in eval
    mode; `statistics` lets those that keep statistics update them in every group."""
    segments.network.eval()
    for path, module in segments.network.named_modules():
        module.training = owner.get(path) in trained
    if norm == "frozen":
        for module in segments.network.modules():
            if is_norm(module):
                module.eval()
    if statistics:
        for module in batch_norms(segments.network):
            module.training = True
    for module in suffix.modules():
        if isinstance(module, TwoModes):
            module.training = bool(set(owner.values()) & set(trained))


def batch_norms(network: nn.Module) -> Iterator[BATCH_NORM]:
    """The layers that keep running statistics."""
    for module in network.modules():
        if isinstance(module, BATCH_NORM) and module.track_running_stats:
            yield module


def trained_batch_norms(segments: Segments, owner: Mapping[str, str], trained: Collection[str]) -> list[BATCH_NORM]:
    """Those of trained groups."""
    inside = {module for path, module in segments.network.named_modules() if owner.get(path) in trained}
    return [module for module in batch_norms(segments.network) if module in inside]
