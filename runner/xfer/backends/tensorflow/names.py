"""Names of groups, from the prefixes that names of layers share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xfer.plan.model_map import HEAD, PIXELS, POOLED

RESERVED = {HEAD, PIXELS, POOLED, "all"}  # names that mean something else in a recipe
_TOKEN = re.compile(r"[_.\-]")


class Prefixes:
    """Prefixes of the names that a network's layers with weights have; `names` are those that a person gave."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._covered: dict[str, int] = {}
        for name in names:
            for prefix in prefixes_of(name):
                self._covered[prefix] = self._covered.get(prefix, 0) + 1

    def key(self, names: Sequence[str], *, block: bool) -> str | None:
        """The longest prefix of all `names` that numbers a block, but not most of the network. `block` tells that they are one;
        otherwise the prefix has to cover at least two layers."""
        return next((prefix for prefix in _common(names) if self._is_block(prefix, names, at_least=0 if block else 2)), None)

    def shared(self, names: Sequence[str]) -> str | None:
        """The longest prefix of all `names`, unless most of the network has it too."""
        found = _common(names)
        return found[0] if found and self._covered.get(found[0], 0) <= max(1.0, len(self._names) / 2) else None

    def _is_block(self, prefix: str, names: Sequence[str], *, at_least: int) -> bool:
        covered = self._covered.get(prefix, 0)
        if not any(character.isdigit() for character in _TOKEN.split(prefix)[-1]):
            # The first of numbered blocks may have no number: `expanded_conv`, before `expanded_conv_1`.
            numbered = re.compile(rf"{re.escape(prefix)}[_.\-]\d+[_.\-]")
            others = sum(numbered.match(name) is not None for name in self._names)
            if not others or any(numbered.match(name) for name in names):
                return False
            covered -= others
        return at_least <= covered <= max(1.0, len(self._names) / 2)


def prefixes_of(name: str) -> list[str]:
    """Of whole tokens, the longest first.

    >>> prefixes_of("block_1_expand")
    ['block_1_expand', 'block_1', 'block']
    """
    ends = [match.start() for match in _TOKEN.finditer(name)] + [len(name)]
    return [name[:end] for end in reversed(ends) if end]


def _common(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    others = [set(prefixes_of(name)) for name in names[1:]]
    return [prefix for prefix in prefixes_of(names[0]) if all(prefix in other for other in others)]


def chosen_names(candidates: Sequence[Sequence[str]]) -> list[str]:
    """One name for each group: the first of its candidates that no other group could have as well.

    >>> chosen_names([["conv"], ["block_1", "add"], ["block_1", "add_1"], ["head"], ["head_1"]])
    ['conv', 'add', 'add_1', 'head_2', 'head_1']
    """
    counts: dict[str, int] = {}
    for group in candidates:
        for name in set(group):
            counts[name] = counts.get(name, 0) + 1
    chosen: list[str] = []
    for group in candidates:
        found = next((name for name in group if counts[name] == 1 and name not in RESERVED), group[-1])
        name, number = found, 0
        while name in RESERVED or name in chosen or (number and name in counts):
            number += 1
            name = f"{found}_{number}"
        chosen.append(name)
    return chosen
