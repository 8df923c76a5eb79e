"""Model transfer: the whole source model moves over, and the schedule says which part of it trains when."""

from __future__ import annotations

from xfer.methods.method import Method


class FineTune(Method):
    """Plain fine-tuning: cross entropy alone (Yosinski et al. 2014, "How transferable are features in deep neural networks?")."""

    type = "model"

    def __init__(self) -> None:
        """It has no options."""
