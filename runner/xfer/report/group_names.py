"""Many group names in little room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from xfer.plan.model_map import HEAD, OWN, ModelMap
from xfer.plan.plan import PhasePlan
from xfer.report.numbers import rate

FEWEST_STEPS = 4  # rates that fall evenly over fewer groups are short enough when each is written


def compressed(names: Iterable[str], model: ModelMap) -> str:
    """Groups that follow one another are written 'first … last'; the new head and a method's own groups stand for themselves."""
    return ", ".join(title(part) for part in runs(list(names), model, same=lambda _a, _b: True))


def title(part: Sequence[str]) -> str:
    """Neighbours in few words.

    >>> title(["conv1"]), title(["conv1", "bn1", "layer1.0"])
    ('conv1', 'conv1 … layer1.0')
    """
    return part[0] if len(part) == 1 else f"{part[0]} … {part[-1]}"


def rates(phase: PhasePlan, model: ModelMap) -> str:
    """Learning rates: groups with the same one together, and a layer-wise decay as the factor that it is."""
    by_group = phase.learning_rates
    if len(set(by_group.values())) == 1:
        return rate(next(iter(by_group.values())))
    own = {name: value for name, value in by_group.items() if name.startswith(f"{OWN}.")}
    falling = _falling([(name, value) for name, value in by_group.items() if name not in own])
    if falling:
        return ", ".join([falling, *(f"{name}: {rate(value)}" for name, value in own.items())])
    parts = runs(list(by_group), model, same=lambda a, b: by_group[a] == by_group[b])
    return ", ".join(f"{title(part)}: {rate(by_group[part[0]])}" for part in parts)


def _falling(values: Sequence[tuple[str, float]]) -> str:
    """In words, where each rate is the same share of the next one towards the head; else nothing."""
    if len(values) < FEWEST_STEPS or any(value <= 0 for _, value in values):
        return ""
    shares = [before / after for (_, before), (_, after) in zip(values, values[1:], strict=False)]
    if not all(math.isclose(share, shares[0], rel_tol=1e-6) for share in shares):
        return ""
    (first, lowest), (last, highest) = values[0], values[-1]
    return f"{last}: {rate(highest)}, times {rate(shares[0])} for each group below it, {first}: {rate(lowest)}"


def runs(names: Sequence[str], model: ModelMap, *, same: Callable[[str, str], bool]) -> list[list[str]]:
    """The names in network order, cut where the model's groups are not adjacent or `same` says that two neighbours differ."""
    place = {group.name: index for index, group in enumerate(model.groups)}
    ordered = sorted((name for name in names if name in place), key=place.__getitem__) + [name for name in names if name not in place]
    parts: list[list[str]] = []
    for name in ordered:
        before = parts[-1][-1] if parts else None
        adjacent = before is not None and name in place and place.get(before) == place[name] - 1
        if before is not None and adjacent and name != HEAD and same(before, name):
            parts[-1].append(name)
        else:
            parts.append([name])
    return parts
