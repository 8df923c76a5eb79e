"""Many group names in little room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from xfer.plan.model_map import HEAD, ModelMap
from xfer.plan.plan import PhasePlan
from xfer.report.numbers import rate


def compressed(names: Iterable[str], model: ModelMap) -> str:
    """Groups that follow one another are written 'first … last'; the new head and a method's own groups stand for themselves."""
    return ", ".join(runs(list(names), model, same=lambda _a, _b: True))


def rates(phase: PhasePlan, model: ModelMap) -> str:
    """Learning rates, groups with the same one together."""
    by_group = phase.learning_rates
    if len(set(by_group.values())) == 1:
        return rate(next(iter(by_group.values())))
    together = runs(list(by_group), model, same=lambda a, b: by_group[a] == by_group[b])
    firsts = [part.split(" … ")[0] for part in together]
    return ", ".join(f"{part}: {rate(by_group[first])}" for part, first in zip(together, firsts, strict=True))


def runs(names: Sequence[str], model: ModelMap, *, same: Callable[[str, str], bool]) -> list[str]:
    """The names in order, cut where the model's groups are not adjacent or `same` says that two neighbours differ."""
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
    return [part[0] if len(part) == 1 else f"{part[0]} … {part[-1]}" for part in parts]
