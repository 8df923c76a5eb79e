"""What is said of weights that a provider does not have."""

from __future__ import annotations

from collections.abc import Sequence

from xfer.errors import WeightsError
from xfer.plugins import nearest

ELSE = "give a path to a weight file, or 'none' for random weights"


def unknown_tag(provider: str, model: str, tag: str, tags: Sequence[str]) -> WeightsError:
    """The error for a tag that is not there, with the tags there are."""
    if not tags:
        return WeightsError(f"{provider} has no weights for '{model}' to offer; {ELSE}")
    guess = nearest(tag, ["DEFAULT", *tags])
    more = f"did you mean '{guess}'?" if guess else f"or {ELSE}"
    return WeightsError(f"{provider} has no weights '{tag}' for '{model}'; there are DEFAULT, {', '.join(tags)}; {more}")
