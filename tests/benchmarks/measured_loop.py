"""The training loops that are compared: one of a plain script or one phase of xfer, epoch by epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cold_run import Run
from process import Done, median


@dataclass(frozen=True)
class Loop:
    """Seconds, images/s and mean losses are by epoch; `rate` is images/s over all epochs, `process_seconds` are of the whole process."""

    process_seconds: float
    seconds: list[float]
    rates: list[float]
    losses: list[float]
    rate: float
    trainable_parameters: int

    @classmethod
    def plain(cls, done: Done) -> Loop:
        """From the last line of a plain script."""
        told = json.loads(done.last_line)
        seconds, n_images = told["seconds"], told["images"]
        rate = n_images * len(seconds) / sum(seconds)
        return cls(
            process_seconds=done.seconds,
            seconds=seconds,
            rates=[n_images / each for each in seconds],
            losses=told["losses"],
            rate=rate,
            trainable_parameters=told["trainable_parameters"],
        )

    @classmethod
    def xfer(cls, made: Run) -> Loop:
        """From the bundle of a run of one phase, which must still be there."""
        (phase,) = made.result["phases"]
        records = [json.loads(line) for line in (made.bundle / "metrics.jsonl").read_text().splitlines()]
        train = [record for record in records if record["split"] == "train"]
        return cls(
            process_seconds=made.done.seconds,
            seconds=[record["seconds"] for record in train],
            rates=[record["images_per_second"] for record in train],
            losses=[record["loss"] for record in train],
            rate=phase["images_per_second"],
            trainable_parameters=phase["trainable_parameters"],
        )

    @property
    def later_rate(self) -> float:
        """images/s, the median of the epochs after the first."""
        return median(self.rates[1:])

    @property
    def later_seconds(self) -> float:
        """Of one epoch, the median of those after the first."""
        return median(self.seconds[1:])

    @property
    def learning(self) -> str:
        """That they learn alike: the first epoch's loss and the last's."""
        return f"{self.losses[0]:.3f} → {self.losses[-1]:.3f}"

    def figures(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "process_seconds": self.process_seconds,
            "images_per_second": self.rate,
            "images_per_second_by_epoch": self.rates,
            "seconds_by_epoch": self.seconds,
            "losses": self.losses,
        }


def same_work(loops: dict[str, Loop]) -> None:
    """Stop where one trains other parameters than the others, or for another number of epochs: their times say nothing then."""
    kinds = {name: (loop.trainable_parameters, len(loop.seconds)) for name, loop in loops.items()}
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"{name}: {n_parameters} parameters, {epochs} epochs" for name, (n_parameters, epochs) in kinds.items())
        raise SystemExit(f"what is compared is not the same work: {told}")
