"""Collects faults of a recipe while it is compiled, so that all of them come at once."""

from __future__ import annotations

from collections.abc import Iterable

from xfer.errors import Fault, RecipeError, UsageError
from xfer.plan.plan import DownloadPlan
from xfer.plugins import nearest
from xfer.recipe.loader import Reading


class Collector:
    """Faults in the order of the recipe. A path that was already found faulty is not reported twice. `downloads` are no faults: what is
    not here yet and will be downloaded."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.faults: list[Fault] = list(reading.faults)
        self.downloads: list[DownloadPlan] = []

    def add(self, path: str, message: str, *, candidates: Iterable[str] = (), wanted: str | None = None) -> None:
        """A fault at `path`; of `candidates` the one nearest to `wanted` becomes the suggestion."""
        if self.reading.blocked(path):
            return
        suggestion = nearest(wanted, candidates) if wanted is not None else None
        fault = self.reading.fault(path, message, suggestion)
        if fault not in self.faults:
            self.faults.append(fault)

    def add_error(self, path: str, error: UsageError) -> None:
        """A fault as an exception tells it, with its next step."""
        self.add(path, error.message + (f"; {error.hint}" if error.hint else ""))

    def sorted(self) -> tuple[Fault, ...]:
        return tuple(sorted(self.faults, key=lambda fault: (fault.file is None, fault.file or "", fault.line or 0, fault.column or 0)))

    def stop_if_any(self) -> None:
        if self.faults:
            raise RecipeError(faults=self.sorted())
