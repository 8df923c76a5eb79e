"""Groups of a traced network: which modules stay whole, which are divided, and in what order they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from xfer.backends.torch.cuts import Flow, Span
from xfer.backends.torch.layers import PLAIN_CONTAINERS, is_layer
from xfer.plan.model_map import HEAD, PIXELS, POOLED

RESERVED = {HEAD, PIXELS, POOLED, "all"}  # names that mean something else in a recipe


@dataclass(frozen=True)
class Part:
    """A module (or a tensor that a divided module owns itself) that becomes a group, and the stretches where it is in use."""

    name: str
    path: str
    kind: str  # its class
    spans: tuple[Span, ...]

    @property
    def first(self) -> int | None:
        return self.spans[0][0] if self.spans else None


def parts(network: nn.Module, flow: Flow | None) -> list[Part]:
    """The network's parts in the order of their first use; what is never used follows what stands before it in the network.
    Without a flow (an untraced network) only plain containers are divided, and the order is that of the modules."""
    division = _Division(network, flow)
    found = list(division.walk("", network))
    keyed, before = [], -1
    for number, part in enumerate(found):
        before = part.first if part.first is not None else before
        keyed.append((before, number, part))
    return [part for _, _, part in sorted(keyed, key=lambda item: item[:2])] if flow else found


class _Division:
    """Decides which modules are divided into their children."""

    def __init__(self, network: nn.Module, flow: Flow | None) -> None:
        self.network, self.flow = network, flow
        self.instances: dict[type, list[tuple[str, nn.Module]]] = {}
        for path, module in network.named_modules():
            self.instances.setdefault(type(module), []).append((path, module))
        self._by_class: dict[type, bool] = {}
        self._blocks: dict[str, int] = {}

    def walk(self, path: str, module: nn.Module) -> Iterator[Part]:
        if path and path not in RESERVED and not self.is_divided(path, module):
            if _has_tensors(module):
                yield Part(path, path, type(module).__name__, tuple(self.spans(path)))
            return
        if path and is_layer(module):  # a layer with a reserved name can't be divided: it gets its class's name behind
            yield Part(f"{path}.{type(module).__name__}", path, type(module).__name__, tuple(self.spans(path)))
            return
        names = [name for name, _ in _own_tensors(module)]
        for name in names:
            full = f"{path}.{name}" if path else name
            yield Part(f"{full}.tensor" if full in RESERVED else full, full, "tensor", tuple(self.spans(full)))
        for name, child in module.named_children():
            yield from self.walk(f"{path}.{name}" if path else name, child)

    def is_divided(self, path: str, module: nn.Module) -> bool:
        """Plain containers wherever cuts separate their children; other classes if that is so in all their instances and one
        of them holds at least two blocks."""
        if is_layer(module) or not _has_tensors(module):
            return False
        if self.flow is None:
            return isinstance(module, PLAIN_CONTAINERS) and type(module) in PLAIN_CONTAINERS
        if type(module) in PLAIN_CONTAINERS:
            return self.is_separated(path, module)
        kind = type(module)
        if kind not in self._by_class:
            self._by_class[kind] = False  # a class that holds itself is not divided
            used = [(p, m) for p, m in self.instances[kind] if self.spans(p)]
            several = any(self.blocks(p, m, inside=True) >= 2 for p, m in used)
            self._by_class[kind] = several and all(self.is_separated(p, m) for p, m in used)
        return self._by_class[kind]

    def is_separated(self, path: str, module: nn.Module) -> bool:
        """Whether a cut lies between any two of a module's children, in the order in which they are used. A plain container
        among them counts as what it holds: in a residual block it hides that the input is still needed."""
        assert self.flow is not None
        used = sorted((found[0][0], max(end for _, end in found)) for name in self._inside(path, module) if (found := self.spans(name)))
        if not used:
            return False
        return all(self.flow.between(end, first) for (_, end), (first, _) in zip(used, used[1:], strict=False))

    def _inside(self, path: str, module: nn.Module) -> Iterator[str]:
        prefix = f"{path}." if path else ""
        yield from (f"{prefix}{name}" for name, _ in _own_tensors(module))
        for name, child in module.named_children():
            if type(child) in PLAIN_CONTAINERS:
                yield from self._inside(f"{prefix}{name}", child)
            elif _has_tensors(child):
                yield f"{prefix}{name}"

    def blocks(self, path: str, module: nn.Module, *, inside: bool = False) -> int:
        """How many blocks that can't be divided a module holds; one itself if it has at least two layers with tensors."""
        if not inside and not self.is_divided(path, module):
            return int(sum(1 for m in module.modules() if any(True for _ in _own_tensors(m))) >= 2)
        return sum(self.blocks(f"{path}.{name}" if path else name, child) for name, child in module.named_children())

    def spans(self, path: str) -> list[Span]:
        return spans_of(path, self.flow) if self.flow is not None else []


def spans_of(path: str, flow: Flow) -> list[Span]:
    """Where a module is in use: its own calls, or, where only its children are called, from the first to the last."""
    if path in flow.spans:
        return flow.spans[path]
    inside = [span for name, found in flow.spans.items() if name.startswith(path + ".") for span in found]
    return [(min(first for first, _ in inside), max(last for _, last in inside))] if inside else []


def _own_tensors(module: nn.Module) -> list[tuple[str, object]]:
    buffers = [(name, tensor) for name, tensor in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set]
    return [*module.named_parameters(recurse=False), *buffers]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for m in module.modules() for _ in _own_tensors(m))
