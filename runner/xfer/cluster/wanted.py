"""What of a plan can be computed before anything trains: rows that are a function of the source's own tensors and are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from xfer.engine.target import Target
from xfer.engine.training_rows import canvas_place
from xfer.engine.views import View, canvas_view, fixed_view
from xfer.plan.plan import AugmentPlan, InputPlan, Plan


@dataclass(frozen=True)
class Wanted:
    """Rows at a place: clean, of augmented view `number`, or, with `augment` alone, of whole frames on canvases.

    `rows` are those of all images, of training images, or of those that a phase which draws from canvases only evaluates on.
    """

    place: InputPlan
    rows: Literal["all", "train", "evaluated"] = "all"
    augment: AugmentPlan | None = None
    number: int | None = None

    @property
    def title(self) -> str:
        """For people, and different for each of a plan."""
        pooled = " (averaged)" if self.place.pooled else ""
        if self.augment is None:
            return f"{self.place.cut}{pooled}"
        if self.number is None:
            return f"canvases of {self.augment.canvas}"
        return f"{self.place.cut}{pooled}, {self.augment.policy} view {self.number} on {self.augment.canvas}"

    def view(self, plan: Plan) -> View | None:
        if self.augment is None:
            return None
        return canvas_view(plan, self.augment) if self.number is None else fixed_view(plan, self.augment, self.number)

    def choose(self, target: Target) -> np.ndarray:
        """Row numbers of the dataset, without those that are known to be bad."""
        if self.rows == "all":
            return target.all_rows
        if self.rows == "train":
            return target.rows("train")
        return np.concatenate([target.rows("val"), target.rows("test")])


def wanted(plan: Plan) -> list[Wanted]:
    """Each store once, in the order in which a run asks for them."""
    found = [Wanted(plan.baseline)]
    for phase in plan.phases:
        draws = phase.augment is not None and phase.augment.views is None
        found.append(Wanted(phase.input, "evaluated" if draws else "all"))
        if phase.augment is None:
            continue
        if phase.augment.views is None:
            found.append(Wanted(canvas_place(phase.augment), "train", phase.augment))
        else:
            place = phase.input.model_copy(update={"mode": phase.augment.mode})
            found += [Wanted(place, "train", phase.augment, number) for number in range(phase.augment.views)]
    kept: dict[str, Wanted] = {}
    for each in found:
        if each.place.mode == "stored" and each.place.after_phase is None:
            known = kept.setdefault(each.title, each)
            if known.rows != each.rows:
                kept[each.title] = replace(known, rows="all")
    return list(kept.values())
