"""Feature transfer: the source stays frozen and only the new head learns from its features."""

from __future__ import annotations

from xfer.methods.method import Method


class Probe(Method):
    """A linear probe, or a head with hidden layers, on frozen features (Alain & Bengio 2016, "Understanding intermediate
    layers using linear classifier probes")."""

    type = "feature"
    trains_source = False
    default_policy = "head"

    def __init__(self) -> None:
        """It has no options."""
