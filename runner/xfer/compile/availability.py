"""What a recipe may say already and a run can't do yet. It shrinks with every piece of work."""

from __future__ import annotations

from xfer.recipe.schema import Augment, Recipe

LATER = "not available yet"


def unavailable(recipe: Recipe) -> list[tuple[str, str]]:
    """(path, message) of each section that this version validates and can't run."""
    found = []
    if recipe.transfer.type != "feature":
        found.append(("transfer.type", f"'{recipe.transfer.type}' is {LATER}; this version runs: feature"))
    if recipe.source.domains is not None:
        found.append(("source.domains", f"domain adaptation is {LATER}"))
    augment = recipe.target.augment
    if (augment.policy if isinstance(augment, Augment) else augment) != "none":
        found.append(("target.augment", f"augmentation is {LATER}; leave it out or write none"))
    if recipe.cluster.workers != 1:
        found.append(("cluster.workers", f"more than one worker is {LATER}; leave it out or write 1"))
    if recipe.optimizer.average is not None:
        found.append(("optimizer.average", f"averaged weights are {LATER}"))
    if isinstance(recipe.freeze, list):
        for index, phase in enumerate(recipe.freeze):
            if phase.average is not None:
                found.append((f"freeze[{index}].average", f"averaged weights are {LATER}"))
            if phase.reestimate_norm:
                found.append((f"freeze[{index}].reestimate_norm", f"re-estimated statistics are {LATER}"))
    return found
