"""A freeze selector is lowered once, from a person's words to group names, and nothing downstream looks back."""

from __future__ import annotations

import fnmatch
import re

from xfer.plan.model_map import HEAD, ModelMap
from xfer.plugins import nearest

LAST_STAGES = re.compile(r"last\s+(\d+\s+)?stages?$")


class NoMatch(ValueError):
    """A selector that matches nothing; `suggestion` is what was probably meant."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


def lower(selector: str, model: ModelMap) -> tuple[str, ...]:
    """Group names in network order, 'head' last.

    `head`; `all` (the head too); a group; a prefix of group names up to a dot; a stage; `last 2 stages`; a glob over group names.
    """
    names = [group.name for group in model.groups]
    if selector == HEAD:
        return (HEAD,)
    if selector == "all":
        return (*names, HEAD)
    if selector in names:
        return (selector,)
    if selector in model.stages:
        return model.stages[selector]
    words = LAST_STAGES.match(selector)
    if words:
        return _last(int(words.group(1) or 1), model)
    if any(character in selector for character in "*?["):
        found = tuple(name for name in names if fnmatch.fnmatchcase(name, selector))
    else:
        found = tuple(name for name in names if name.startswith(f"{selector}."))
    if not found:
        raise NoMatch(f"no group matches '{selector}'; {there_is(model)}", nearest(selector, candidates(model)))
    return found


def _last(count: int, model: ModelMap) -> tuple[str, ...]:
    stages = list(model.stages.values())
    if not 1 <= count <= len(stages):
        raise NoMatch(f"'last {count} stages': {model.model} has {len(stages)} stages: {', '.join(model.stages)}")
    return tuple(name for stage in stages[-count:] for name in stage)


def candidates(model: ModelMap) -> list[str]:
    """What a selector may be: head, all, stages, groups and the prefixes of their names."""
    prefixes = {".".join(parts[:n]) for group in model.groups for parts in [group.name.split(".")] for n in range(1, len(parts) + 1)}
    return [HEAD, "all", *model.stages, *sorted(prefixes)]


def there_is(model: ModelMap) -> str:
    """The groups by their first word, and the stages.

    A long list helps nobody: `xfer layers` prints it whole.
    """
    tops = list(dict.fromkeys(group.name.split(".")[0] for group in model.groups))
    shown = ", ".join(tops[:12]) + (", …" if len(tops) > 12 else "")
    return f"{model.model} has {shown}, {', '.join(model.stages)}, head"
