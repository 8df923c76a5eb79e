"""What a recipe may say already and a run can't do yet. It shrinks with every piece of work."""

from __future__ import annotations

from xfer.recipe.schema import Recipe

LATER = "not available yet"
RUNS = ("feature", "model")


def unavailable(recipe: Recipe) -> list[tuple[str, str]]:
    """(path, message) of each section that this version validates and can't run."""
    found = []
    if recipe.transfer.type not in RUNS:
        found.append(("transfer.type", f"'{recipe.transfer.type}' is {LATER}; this version runs: {', '.join(RUNS)}"))
    if recipe.source.domains is not None:
        found.append(("source.domains", f"domain adaptation is {LATER}"))
    return found
