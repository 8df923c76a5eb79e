"""Weights by order: another library's names for the same network, where order and shapes tell what is what.

Three things are allowed to differ. The classifier may be absent, of another class count, or stand elsewhere in the file.
Counters of batches may be absent. Kernels may lie the way numpy and TensorFlow keep them (height, width, input, output) where the
network has torch's (output, input, height, width), or the other way round; which of both is decided for the file as a whole,
because a square kernel fits both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xfer.plan.model_map import Tensor

Axes = tuple[int, ...] | None  # a permutation, or None: as it is
Shape = tuple[int, ...]
Layout = Literal["torch", "keras"]  # how the network's kernels lie
Named = Sequence[tuple[str, Shape]]

SEPARATOR: dict[Layout, str] = {"torch": ".", "keras": "/"}  # between the parts of the network's names
COUNTER = "num_batches_tracked"
MAX_TRIES = 2000
MOST_CLASSIFIER = 8  # tensors of a classifier that the network was built without
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
    tensors: Mapping[str, Any],
    required: Mapping[str, Tensor],
    classifier: Mapping[str, Tensor],
    sequence: Sequence[str],
    *,
    layout: Layout = "torch",
) -> Pairing:
    """Pair the file's tensors, in its order, with the network's names in `sequence` (`required` and `classifier` together)."""
    theirs = [(name, tuple(tensor.shape)) for name, tensor in tensors.items() if _leaf(name) != COUNTER]
    ours = [(name, required[name].shape) for name in sequence if name in required and _leaf(name) != COUNTER]
    counters = [name for name in tensors if _leaf(name) == COUNTER]
    our_counters = [name for name in sequence if name in required and _leaf(name) == COUNTER]
    reason = ""
    for removed in itertools.islice(_removals(theirs, ours, classifier, sequence, layout), MAX_TRIES):
        left = [theirs[index] for index in range(len(theirs)) if index not in removed]
        pairing = _pair(left, ours, layout)
        if pairing.pairs is not None:
            same = len(counters) == len(our_counters)
            return Pairing({**pairing.pairs, **({a: (b, None) for a, b in zip(our_counters, counters, strict=True)} if same else {})})
        reason = reason or pairing.reason
    return Pairing(None, reason or _counted(theirs, ours, classifier, layout))


def _counted(theirs: Named, ours: Named, classifier: Mapping[str, Tensor], layout: Layout) -> str:
    first = next((i for i, ((_, a), (_, b)) in enumerate(zip(theirs, ours, strict=False)) if not _permutations(a, b, layout)), None)
    place = ""
    if first is not None:
        place = f"; they part at {theirs[first][0]} {list(theirs[first][1])}, where {ours[first][0]} is {list(ours[first][1])}"
    return f"it has {len(theirs)} tensors, the network {len(ours)} and {len(classifier)} of its classifier{place}"


def _removals(
    theirs: Named, ours: Named, classifier: Mapping[str, Tensor], sequence: Sequence[str], layout: Layout
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
            blocks.setdefault(name.split(SEPARATOR[layout])[0], []).append(name)
    for count in range(len(blocks) + 1):
        for kept in itertools.combinations(blocks.values(), count):
            if sum(map(len, kept)) != surplus:
                continue
            runs_of = [_places([classifier[name].shape for name in block], theirs, places.index(block[0]), layout) for block in kept]
            for starts in itertools.product(*runs_of):
                runs = (range(start, start + len(block)) for start, block in zip(starts, kept, strict=True))
                removed = frozenset(itertools.chain.from_iterable(runs))
                if len(removed) == surplus:
                    yield removed
    if layout == "keras" and not classifier and surplus <= MOST_CLASSIFIER:
        yield frozenset(range(len(ours), len(theirs)))  # Keras builds networks without one: what comes last in the file is its own


def _places(shapes: list[Shape], theirs: Named, home: int, layout: Layout) -> list[int]:
    """Where in the file a run of tensors has these shapes, for any class count; nearest to `home` first."""
    starts = range(len(theirs) - len(shapes) + 1)
    found = [start for start in starts if _is_classifier(shapes, [shape for _, shape in theirs[start : start + len(shapes)]], layout)]
    return sorted(found, key=lambda start: abs(start - home))


def _is_classifier(expected: list[Shape], found: list[Shape], layout: Layout) -> bool:
    """Whether these are a classifier's tensors of some class count: its last tensor tells which, at one end or the other."""
    end = 0 if layout == "torch" else -1
    ours = expected[-1][end]
    for theirs in dict.fromkeys((found[-1] or (0,))[place] for place in (0, -1)):
        resized = [_resized(shape, theirs, end) if shape and shape[end] == ours else shape for shape in expected]
        if theirs and all(_permutations(a, b, layout) for a, b in zip(found, resized, strict=True)):
            return True
    return False


def _resized(shape: Shape, size: int, end: int) -> Shape:
    return (size, *shape[1:]) if end == 0 else (*shape[:-1], size)


def _pair(theirs: Named, ours: Named, layout: Layout) -> Pairing:
    is_swapped = _is_swapped(theirs, ours, layout)
    pairs: dict[str, tuple[str, Axes]] = {}
    for (name, shape), (own, expected) in zip(theirs, ours, strict=True):
        roles = ROLE_OF.get(_leaf(name)), ROLE_OF.get(_leaf(own))
        if None not in roles and roles[0] != roles[1]:
            return Pairing(None, f"'{name}' stands where '{own}' is expected; its tensors are sorted in another way, perhaps by name")
        options = [axes for axes in _permutations(shape, expected, layout) if (axes is not None) == is_swapped]
        if not options and shape == expected:
            options = [None]  # a table or an embedding, which has no kernel's layout
        if not options:
            return Pairing(None, f"'{name}' is {list(shape)} where '{own}' must be {list(expected)}")
        pairs[own] = (name, options[0])
    return Pairing(pairs)


def _is_swapped(theirs: Named, ours: Named, layout: Layout) -> bool:
    """Whether the file's kernels lie as the other library's do: told by the convolutions that fit one way only, else by the
    matrices."""
    for rank in (5, 4, 3, 2):
        ways = set()
        for (_, shape), (_, expected) in zip(theirs, ours, strict=True):
            if len(shape) == rank and len(expected) == rank:
                options = [axes is not None for axes in _permutations(shape, expected, layout)]
                ways.update(options if len(set(options)) == 1 else [])
        if ways:
            return ways == {True}
    return False


def _permutations(shape: Shape, expected: Shape, layout: Layout) -> list[Axes]:
    """The ways in which a tensor has the expected shape: as it is, as a kernel of the other layout, as its depthwise kernel."""
    n = len(shape)
    ways: list[Axes] = [None] if shape == expected else []
    if n < 2 or n != len(expected):
        return ways
    swapped: list[tuple[int, ...]] = [(n - 1, n - 2, *range(n - 2)) if layout == "torch" else (*range(2, n), 1, 0)]
    if n > 2 and layout == "torch" and expected[1] == 1:
        swapped.append((n - 2, n - 1, *range(n - 2)))  # (height, width, channel, 1)
    if n > 2 and layout == "keras" and shape[1] == 1:
        swapped.append((*range(2, n), 0, 1))  # from (channel, 1, height, width)
    return ways + [axes for axes in swapped if tuple(shape[axis] for axis in axes) == expected]


def _leaf(name: str) -> str:
    return re.split(r"[/.]", name)[-1]
