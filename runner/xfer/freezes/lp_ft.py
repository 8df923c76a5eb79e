"""Linear probing, then fine-tuning: the head learns first, so that its random start does not distort the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

FINE_TUNING_SHARE = 0.1  # of the probe's learning rate


def lp_ft(
    groups: Sequence[str],
    stages: Mapping[str, tuple[str, ...]],
    rate: float,
    *,
    probe_epochs: int = 10,
    epochs: int = 10,
    lr: float | None = None,
    layer_decay: float | None = None,
    norm: Literal["train", "frozen"] = "train",
) -> list[dict[str, Any]]:
    """The head for `probe_epochs` at the optimizer's rate, then everything for `epochs` at `lr`, by default a tenth of it (Kumar et
    al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution").

    >>> [(phase["train"], phase["epochs"], phase.get("lr")) for phase in lp_ft([], {}, 1e-3, probe_epochs=5, epochs=3)]
    [('head', 5, None), ('all', 3, 0.0001)]
    """
    tuned = FINE_TUNING_SHARE * rate if lr is None else lr
    return [
        {"train": "head", "epochs": probe_epochs},
        {"train": "all", "epochs": epochs, "lr": tuned, "layer_decay": layer_decay, "norm": norm},
    ]
