"""Weights by order: another library's names for the same network, where order and shapes tell what is what.

Three things are allowed to differ. The classifier may be absent, of another class count, or stand elsewhere in the file.
Counters of batches may be absent. Kernels may lie the way numpy and TensorFlow keep them (height, width, input, output) instead
of torch's (output, input, height, width); which of both is decided for the file as a whole, because a square kernel fits both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xfer.plan.model_map import Tensor

if TYPE_CHECKING:
    import torch

Axes = tuple[int, ...] | None  # a permutation, or None: as it is
Shape = tuple[int, ...]

COUNTER = "num_batches_tracked"
MAX_TRIES = 2000
# Words that say which of a layer's tensors one is: a pairing that contradicts them is wrong, however well the shapes agree.
ROLES = {
    "scale": ("weight", "kernel", "gamma", "scale", "depthwise_kernel"),
    "shift": ("bias", "beta", "offset"),
    "mean": ("running_mean", "moving_mean", "mean"),
    "variance": ("running_var", "moving_variance", "moving_var", "variance", "var"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


@dataclass(frozen=True)
class Pairing:
    """`pairs` is the file's name and the permutation for each of the network's names, or None with the reason."""

    pairs: dict[str, tuple[str, Axes]] | None
    reason: str = ""


def align(
    tensors: Mapping[str, torch.Tensor], required: Mapping[str, Tensor], classifier: Mapping[str, Tensor], sequence: Sequence[str]
) -> Pairing:
    """Pair the file's tensors, in its order, with the network's names in `sequence` (`required` and `classifier` together)."""
    theirs = [(name, tuple(tensor.shape)) for name, tensor in tensors.items() if _leaf(name) != COUNTER]
    ours = [(name, required[name].shape) for name in sequence if name in required and _leaf(name) != COUNTER]
    counters = [name for name in tensors if _leaf(name) == COUNTER]
    our_counters = [name for name in sequence if name in required and _leaf(name) == COUNTER]
    reason = ""
    for removed in itertools.islice(_removals(theirs, ours, classifier, sequence), MAX_TRIES):
        left = [theirs[index] for index in range(len(theirs)) if index not in removed]
        pairing = _pair(left, ours)
        if pairing.pairs is not None:
            same = len(counters) == len(our_counters)
            return Pairing({**pairing.pairs, **({a: (b, None) for a, b in zip(our_counters, counters, strict=True)} if same else {})})
        reason = reason or pairing.reason
    return Pairing(None, reason or _counted(theirs, ours, classifier))


def _counted(theirs: Sequence[tuple[str, Shape]], ours: Sequence[tuple[str, Shape]], classifier: Mapping[str, Tensor]) -> str:
    first = next((i for i, ((_, a), (_, b)) in enumerate(zip(theirs, ours, strict=False)) if not _fits(a, b)), None)
    place = ""
    if first is not None:
        place = f"; they part at {theirs[first][0]} {list(theirs[first][1])}, where {ours[first][0]} is {list(ours[first][1])}"
    return f"it has {len(theirs)} tensors, the network {len(ours)} and {len(classifier)} of its classifier{place}"


def _removals(
    theirs: Sequence[tuple[str, Shape]], ours: Sequence[tuple[str, Shape]], classifier: Mapping[str, Tensor], sequence: Sequence[str]
) -> Iterator[frozenset[int]]:
    """Sets of the file's tensors that may be the classifier, those first that stand where the network's own does."""
    surplus = len(theirs) - len(ours)
    if surplus < 0:
        return
    places = [name for name in sequence if _leaf(name) != COUNTER]
    if surplus == sum(1 for name in places if name in classifier):
        yield frozenset(index for index, name in enumerate(places) if name in classifier)
    blocks: dict[str, list[str]] = {}
    for name in places:
        if name in classifier:
            blocks.setdefault(name.split(".")[0], []).append(name)
    for count in range(len(blocks) + 1):
        for kept in itertools.combinations(blocks.values(), count):
            if sum(map(len, kept)) != surplus:
                continue
            runs_of = [_places([classifier[name].shape for name in block], theirs, places.index(block[0])) for block in kept]
            for starts in itertools.product(*runs_of):
                runs = (range(start, start + len(block)) for start, block in zip(starts, kept, strict=True))
                removed = frozenset(itertools.chain.from_iterable(runs))
                if len(removed) == surplus:
                    yield removed


def _places(shapes: list[Shape], theirs: Sequence[tuple[str, Shape]], home: int) -> list[int]:
    """Where in the file a run of tensors has these shapes, for any class count; nearest to `home` first."""
    starts = range(len(theirs) - len(shapes) + 1)
    found = [start for start in starts if _is_classifier(shapes, [shape for _, shape in theirs[start : start + len(shapes)]])]
    return sorted(found, key=lambda start: abs(start - home))


def _is_classifier(expected: list[Shape], found: list[Shape]) -> bool:
    ours, theirs = expected[-1][0], found[-1][0] if found[-1] else 0
    if not theirs:
        return False
    resized = [(theirs, *shape[1:]) if shape and shape[0] == ours else shape for shape in expected]
    return all(_fits(a, b) for a, b in zip(found, resized, strict=True))


def _pair(theirs: Sequence[tuple[str, Shape]], ours: Sequence[tuple[str, Shape]]) -> Pairing:
    is_swapped = _is_swapped(theirs, ours)
    pairs: dict[str, tuple[str, Axes]] = {}
    for (name, shape), (own, expected) in zip(theirs, ours, strict=True):
        roles = ROLE_OF.get(_leaf(name)), ROLE_OF.get(_leaf(own))
        if None not in roles and roles[0] != roles[1]:
            return Pairing(None, f"'{name}' stands where '{own}' is expected; its tensors are sorted in another way, perhaps by name")
        options = [axes for axes in _permutations(shape, expected) if (axes is not None) == is_swapped]
        if not options and shape == expected:
            options = [None]  # a table or an embedding, which has no kernel's layout
        if not options:
            return Pairing(None, f"'{name}' is {list(shape)} where '{own}' must be {list(expected)}")
        pairs[own] = (name, options[0])
    return Pairing(pairs)


def _is_swapped(theirs: Sequence[tuple[str, Shape]], ours: Sequence[tuple[str, Shape]]) -> bool:
    """Whether the file's kernels lie as numpy's do: told by the convolutions that fit one way only, else by the matrices."""
    for rank in (5, 4, 3, 2):
        ways = set()
        for (_, shape), (_, expected) in zip(theirs, ours, strict=True):
            if len(shape) == rank and len(expected) == rank:
                options = [axes is not None for axes in _permutations(shape, expected)]
                ways.update(options if len(set(options)) == 1 else [])
        if ways:
            return ways == {True}
    return False


def _fits(shape: Shape, expected: Shape) -> bool:
    return bool(_permutations(shape, expected))


def _permutations(shape: Shape, expected: Shape) -> list[Axes]:
    """The ways in which a tensor has the expected shape: as it is, as a kernel of numpy's layout, as its depthwise kernel."""
    n = len(shape)
    ways: list[Axes] = [None] if shape == expected else []
    if n >= 2 and n == len(expected):
        swapped: list[tuple[int, ...]] = [(n - 1, n - 2, *range(n - 2))]
        if n > 2 and expected[1] == 1:
            swapped.append((n - 2, n - 1, *range(n - 2)))  # (height, width, channel, 1)
        ways += [axes for axes in swapped if tuple(shape[axis] for axis in axes) == expected]
    return ways


def _leaf(name: str) -> str:
    return re.split(r"[/.]", name)[-1]
