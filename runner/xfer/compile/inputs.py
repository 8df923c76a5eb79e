"""Where a phase starts: the deepest cut below which nothing trains, and whether its rows are stored or recomputed."""

from __future__ import annotations

import math

from xfer.plan.model_map import PIXELS, POOLED, Cut, ModelMap
from xfer.plan.plan import HeadPlan, InputPlan

BYTES = {"uint8": 1, "float32": 4, "bfloat16": 2, "float16": 2}


def decide(
    model: ModelMap,
    head: HeadPlan,
    trained: frozenset[str],
    *,
    images: int,
    precision: str,
    budget: int,
    changed_by: dict[str, int],
    below: int | None = None,
) -> InputPlan:
    """The phase's input. `trained` are the source groups that train (empty: the head alone), `changed_by` maps groups to the
    earlier phase that changed them last; no more than `below` groups may lie under it."""
    limit = model.cut(head.at).groups_before
    first = next((index for index, group in enumerate(model.groups) if group.name in trained), limit)
    first = first if below is None else min(first, below)
    cut = deepest(model, min(first, limit), at=head.at if first >= limit else None)
    pooled = first >= limit and head.layout != "vector" and below is None  # a tap there wants the map itself
    shape = (head.inputs,) if pooled else cut.shape
    dtype = "uint8" if cut.name == PIXELS else precision
    n_bytes = images * math.prod(shape) * BYTES[dtype]
    prefix = [changed_by[group.name] for group in model.groups[: cut.groups_before] if group.name in changed_by]
    stored = n_bytes <= budget
    return InputPlan(
        cut=cut.name,
        mode="stored" if stored else "streamed",
        reason=budget_reason(n_bytes, budget),
        shape=shape,
        dtype=dtype,  # type: ignore[arg-type]
        bytes=n_bytes if stored else 0,
        layout="vector" if pooled else cut.layout,
        pooled=pooled,
        after_phase=max(prefix) if prefix else None,
    )


def deepest(model: ModelMap, first_trained: int, *, at: str | None) -> Cut:
    """The last cut with no more than `first_trained` groups before it; the head's own where it reads exactly there."""
    if at is not None:
        return model.cut(at)
    return max((cut for cut in model.cuts if cut.groups_before <= first_trained and cut.name != POOLED), key=lambda cut: cut.groups_before)


def budget_reason(n_bytes: int, budget: int) -> str:
    """Why something is stored, or isn't."""
    words = "of a budget of" if n_bytes <= budget else "would pass the budget of"
    return f"{size(n_bytes)} {words} {size(budget)}"


def row_bytes(place: InputPlan) -> int:
    """What one row takes in the store."""
    return math.prod(place.shape) * BYTES[place.dtype]


def size(n_bytes: float) -> str:
    """Bytes for people.

    >>> size(999), size(7_168_000), size(50e9)
    ('999 B', '7.2 MB', '50 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.2g} {unit}" if n_bytes < 10 and unit != "B" else f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    raise AssertionError
