"""How far each phase moved the source: what of it stayed equal to the bit, what moved, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xfer.plan.plan import Plan
from xfer.report.bundle_files import BundleFiles
from xfer.report.group_names import runs, title
from xfer.report.numbers import distance

MOST_ROWS = 30  # more groups are shown by stage
DECADES = 3.0  # of distances, from the faintest cell to the strongest

Kind = Literal["frozen", "kept", "moved", "unknown"]


def furthest(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """The source's group that lies furthest from where it began after a phase, of those that the phase trained; None without."""
    found = record.get("distance") or {}
    moved = [(name, found[name]) for name in record.get("train", ()) if isinstance(found.get(name), int | float)]
    return max(moved, key=lambda pair: pair[1] if math.isfinite(pair[1]) else math.inf) if moved else None


@dataclass(frozen=True)
class Cell:
    """A group, or several, after a phase. 'frozen' is equal to the source to the bit; 'kept' was moved by an earlier phase."""

    kind: Kind
    value: float | None = None

    @property
    def text(self) -> str:
        return "frozen" if self.kind == "frozen" else distance(self.value)


def table(files: BundleFiles) -> dict[str, Any] | None:
    """Groups down, finished phases across; None where no phase trained a group of the source."""
    plan, done = files.plan, list(files.result.get("phases") or [])
    if plan is None or all(furthest(record) is None for record in done):
        return None
    done = done[: len(plan.phases)]
    cells = _cells(plan, done)
    parts = runs(list(cells), plan.model, same=lambda a, b: all(cell.kind == "frozen" for cell in (*cells[a], *cells[b])))
    by_stage = len(parts) > MOST_ROWS
    if by_stage:
        stage = {group.name: group.stage for group in plan.model.groups}
        parts = runs(list(cells), plan.model, same=lambda a, b: stage[a] == stage[b])
    rows = [(title(part), [_together([cells[name][place] for name in part]) for place in range(len(done))]) for part in parts]
    most = max((cell.value or 0.0 for _, row in rows for cell in row if math.isfinite(cell.value or 0.0)), default=0.0)
    return {
        "phases": [str(record.get("name", "?")) for record in done],
        "rows": [(name, [{"text": cell.text, "kind": cell.kind, "depth": _depth(cell.value, most)} for cell in row]) for name, row in rows],
        "by_stage": by_stage,
        "kinds": {cell.kind for _, row in rows for cell in row},
    }


def _cells(plan: Plan, done: list[Any]) -> dict[str, list[Cell]]:
    """By group, what the phases made of it. A group that no phase trains has no distance on record: it has its proof."""
    proven = [set(phase.frozen) if record.get("frozen_changed") == 0 else set() for phase, record in zip(plan.phases, done, strict=False)]
    found: dict[str, list[Cell]] = {}
    for group in plan.model.groups:
        frozen = [{tensor.name for tensor in group.tensors} <= names for names in proven]
        values = [(record.get("distance") or {}).get(group.name) for record in done]
        found[group.name] = [_cell(frozen[: place + 1], value) for place, value in enumerate(values)]
    return found


def _cell(frozen: list[bool], value: float | None) -> Cell:
    """`frozen` says for the phases so far, this one last, whether the whole group was."""
    if all(frozen) and not value:
        return Cell("frozen", 0.0)
    if value is None:
        return Cell("unknown")
    return Cell("kept" if frozen[-1] else "moved", float(value))


def _together(cells: list[Cell]) -> Cell:
    """The one that stands for all: of those that differ from the source, the one furthest from it."""
    changed = [cell for cell in cells if cell.kind != "frozen"]
    return max(changed, key=lambda cell: -1.0 if cell.value is None else cell.value) if changed else cells[0]


def _depth(value: float | None, most: float) -> float:
    """How strongly a cell is filled, 0 to 1, on a logarithmic scale."""
    if not value or not math.isfinite(value) or most <= 0:
        return 0.0
    return round(max(0.06, 1 + math.log10(value / most) / DECADES), 3)
