"""A file's tensors put in the place of a network's: by name or by order, complete, or an error that lists what does not fit.

They may be torch's tensors or numpy's arrays; what comes out is of the kind that went in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xfer.errors import WeightsError
from xfer.plan.model_map import ModelMap, Tensor
from xfer.plugins import nearest
from xfer.sources import tensors as numbers
from xfer.sources.alignment import SEPARATOR, Layout, Pairing, align

Named = dict[str, Any]  # torch's tensors or numpy's arrays by name

SHOWN = 10  # names that a message lists before it counts
# What checkpoints wrap a state dict in, and what wrapping a module puts before its names.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "module", "_orig_mod")
# Tensors that a network makes from its own shape, or that no result depends on: libraries keep them in files at times.
DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", "position_ids")
AUXILIARY = re.compile(r"aux", re.IGNORECASE)  # auxiliary classifiers, which are not part of the network we use


@dataclass(frozen=True)
class Wanted:
    """What a network needs: `required` in its own order, `classifier` what it may do without."""

    model: str
    required: dict[str, Tensor]
    classifier: dict[str, Tensor]
    sequence: tuple[str, ...]  # both, in the network's own order
    finite: frozenset[str]  # parameters and what normalisation layers own: no infinite value means anything there
    layout: Layout = "torch"  # how the network's kernels lie

    @classmethod
    def of(cls, model_map: ModelMap, order: Sequence[str] | None) -> Wanted:
        required = {tensor.name: tensor for group in model_map.groups for tensor in group.tensors}
        classifier = {tensor.name: tensor for tensor in model_map.classifier}
        known = {**required, **classifier}
        sequence = tuple(name for name in order if name in known) if order is not None else tuple(known)
        norm = {name for group in model_map.groups for name in group.norm}
        finite = frozenset(name for name, tensor in required.items() if tensor.kind == "parameter" or name in norm)
        return cls(model_map.model, required, classifier, sequence, finite, "torch" if model_map.backend == "torch" else "keras")

    @property
    def separator(self) -> str:
        """What stands between the parts of the network's names."""
        return SEPARATOR[self.layout]

    @property
    def replaced(self) -> tuple[str, ...]:
        """Prefixes under which only the classifier lies: whatever a file has there, the new head takes its place."""
        prefixes = set()
        for name in self.classifier:
            parts = name.split(self.separator)
            for depth in range(1, len(parts)):
                prefix = self.separator.join(parts[:depth]) + self.separator
                if not any(required.startswith(prefix) for required in self.required):
                    prefixes.add(prefix)
                    break
        return tuple(sorted(prefixes))

    def is_ignored(self, name: str) -> bool:
        """A tensor of the file that the network does without."""
        return name in self.classifier or name.startswith(self.replaced or ("\0",)) or _leaf(name) in DERIVED or bool(AUXILIARY.match(name))


def fit(
    tensors: Mapping[str, Any],
    *,
    model_map: ModelMap,
    match: Literal["name", "order"] = "name",
    part: str | None = None,
    order: Sequence[str] | None = None,
    adapt: Callable[[Named], Named] | None = None,
    origin: str = "this file",
) -> Named:
    """The network's tensors by its own names, float32 where they are real numbers, integers as they are.

    The classifier and auxiliary heads are left out, whether the file has them or not. `order` is the network's names in its
    own order, where the ModelMap's differs. `adapt` renames tensors of the provider's own files; a file that fits as it is, is
    not shown to it: for a network of another size than the provider's own, it would fit no more. `origin` names the file in messages.
    Raises WeightsError.
    """
    wanted = Wanted.of(model_map, order)
    scope = _inside(tensors, part, origin) if part else dict(tensors)
    scope = peeled(scope, wanted)
    if match == "order":
        return _finished(_by_order(scope, wanted, origin), wanted, origin)
    if adapt is not None and any(_differences(scope, wanted)):
        scope = adapt(scope)
    return _finished(_by_name(scope, wanted, origin), wanted, origin)


def peeled(tensors: Named, wanted: Wanted) -> Named:
    """Without what wraps a state dict: {'state_dict': …}, {'model': …}, 'module.' before every name, '_orig_mod.' anywhere."""
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while not any(name in wanted.required or name in wanted.classifier for name in tensors):
        for wrapper in WRAPPERS:
            inside = [name for name in tensors if name.startswith(f"{wrapper}/")]  # what lies beside it is no network: optimizer, epoch
            if not inside and all(name.startswith(f"{wrapper}.") for name in tensors):
                inside = list(tensors)
            if inside:
                tensors = {name[len(wrapper) + 1 :]: tensors[name] for name in inside}
                break
        else:
            break
    return tensors


def _inside(tensors: Mapping[str, Any], part: str, origin: str) -> Named:
    scope = dict(tensors)
    while True:
        for separator in "/.":
            prefix = part.rstrip("/.") + separator
            found = {name.removeprefix(prefix): tensor for name, tensor in scope.items() if name.startswith(prefix)}
            if found:
                return found
        wrapper = next((w for w in WRAPPERS if any(name.startswith((f"{w}/", f"{w}.")) for name in scope)), None)
        if wrapper is None:
            break
        scope = {name[len(wrapper) + 1 :]: tensor for name, tensor in scope.items() if name.startswith((f"{wrapper}/", f"{wrapper}."))}
    raise unknown_part([*scope, *tensors], part, origin)


def unknown_part(names: Sequence[str], part: str, origin: str, *, separators: str = "/.") -> WeightsError:
    """The error for a part that a file does not have, with the parts that there are among the names of its tensors."""
    tops = list(dict.fromkeys(re.split(f"[{separators}]", name)[0] for name in names if re.search(f"[{separators}]", name)))
    guess = nearest(part, tops)
    more = f"; did you mean '{guess}'?" if guess else f"; its parts are {_listed(tops)}" if tops else "; it has no parts"
    return WeightsError(f"{origin} has no part '{part}'{more}", path="source.weights.part")


def _by_name(tensors: Named, wanted: Wanted, origin: str) -> Named:
    chosen = {name: tensors[name] for name in wanted.required if name in tensors}
    missing, unexpected, other = _differences(tensors, wanted)
    if not (missing or unexpected or other):
        return chosen
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {_n(len(wanted.required), 'tensor')} {_are(missing)} missing ({_listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} {_are(unexpected)} unexpected ({_listed(unexpected)})")
    if other:
        shapes = [f"{name} is {_shape(tensors[name])}, must be {list(wanted.required[name].shape)}" for name in other]
        parts.append(f"{len(other)} {'has' if len(other) == 1 else 'have'} another shape ({_listed(shapes)})")
    advice = _advice(tensors, wanted, missing, unexpected, other)
    raise WeightsError(f"{origin} does not fit {wanted.model}: " + "; ".join(parts) + (f"; {advice}" if advice else ""))


def _differences(tensors: Named, wanted: Wanted) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, names that are unexpected, and names whose tensors have another shape."""
    missing = [name for name in wanted.required if name not in tensors and _leaf(name) not in DERIVED]
    unexpected = [name for name in tensors if name not in wanted.required and not wanted.is_ignored(name)]
    other = [name for name, needed in wanted.required.items() if name in tensors and tuple(tensors[name].shape) != needed.shape]
    return missing, unexpected, other


def _advice(tensors: Named, wanted: Wanted, missing: list[str], unexpected: list[str], other: list[str]) -> str | None:
    """What would make it fit, if that can be told."""
    prefix = _prefix(tensors, wanted) if missing else None
    if prefix is not None:
        whole = all(name.startswith(prefix) for name in tensors)
        place = f"every name starts with '{prefix}'" if whole else f"the network's tensors lie under '{prefix}'"
        return f"{place}: try 'part: {prefix[:-1]}' beside weights.path"
    needed = [name for name in wanted.required if _leaf(name) not in DERIVED]
    if len(missing) > len(needed) / 2:
        if align(tensors, wanted.required, wanted.classifier, wanted.sequence, layout=wanted.layout).pairs is not None:
            return f"{len(missing)} names differ but order and shapes agree: try 'match: order' beside weights.path"
        if len(missing) == len(needed):
            return "no name agrees: these are the weights of another model, or of another library's build of it"
    if other and not missing and not unexpected:
        return "all names agree: these are the weights of another size of this model"
    return None


def _prefix(tensors: Iterable[str], wanted: Wanted) -> str | None:
    """What stands before the network's own names in the file, where most of them are found behind it."""
    votes: dict[str, int] = {}
    for name in tensors:
        for start in (found.end() for found in re.finditer(r"[/.]", name)):
            if name[start:] in wanted.required:
                votes[name[:start]] = votes.get(name[:start], 0) + 1
    best = max(votes, key=lambda prefix: votes[prefix], default=None)
    needed = [name for name in wanted.required if _leaf(name) not in DERIVED]
    return best if best is not None and votes[best] >= len(needed) else None


def _by_order(tensors: Named, wanted: Wanted, origin: str) -> Named:
    for sequence in dict.fromkeys([wanted.sequence, (*wanted.required, *wanted.classifier)]):
        pairing = align(tensors, wanted.required, wanted.classifier, sequence, layout=wanted.layout)
        if pairing.pairs is not None:
            return _paired(tensors, pairing)
    first = align(tensors, wanted.required, wanted.classifier, wanted.sequence, layout=wanted.layout)
    raise WeightsError(f"{origin} does not fit {wanted.model} by order: {first.reason}")


def _paired(tensors: Named, pairing: Pairing) -> Named:
    assert pairing.pairs is not None
    return {name: numbers.turned(tensors[theirs], axes) if axes else tensors[theirs] for name, (theirs, axes) in pairing.pairs.items()}


def _finished(chosen: Named, wanted: Wanted, origin: str) -> Named:
    """Checked for values that are no numbers, in the types that a network computes in, with the counters that files leave out."""
    done, broken, whole = {}, [], []
    for name, expected in wanted.required.items():
        if name not in chosen:
            if _leaf(name) == "num_batches_tracked":
                done[name] = numbers.counter(expected.shape)
            continue
        tensor = chosen[name]
        if numbers.is_real(tensor):
            tensor = numbers.float32(tensor)
            bad = numbers.spoilt(tensor, finite=name in wanted.finite)
            if bad:
                broken.append(f"{name} has {bad} of {_n(numbers.count(tensor), 'value')}")
        elif expected.kind == "parameter":
            whole.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}")
        done[name] = numbers.plain(tensor)
    if broken:
        holds = "tensor holds" if len(broken) == 1 else "tensors hold"
        raise WeightsError(f"{origin} is spoilt: {len(broken)} {holds} values that are not finite ({_listed(broken)})")
    if whole:
        raise WeightsError(
            f"{origin} does not fit {wanted.model}: {_n(len(whole), 'parameter')} {_are(whole)} not real numbers ({_listed(whole)}); "
            "quantised weights can't be used"
        )
    return done


def _leaf(name: str) -> str:
    return re.split(r"[/.]", name)[-1]


def _shape(tensor: Any) -> list[int]:
    return list(tensor.shape)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _n(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
