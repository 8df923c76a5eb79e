"""How the engine tells what it is doing. The command line draws it; a library user may listen, or not."""

from __future__ import annotations

from typing import Any, Protocol


class Reporter(Protocol):
    """One bar at a time: `start` opens it, `advance` moves it, `done` closes it."""

    def start(self, task: str, total: int, *, unit: str = "images") -> None: ...

    def advance(self, n: int) -> None: ...

    def done(self) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended: phase, epoch, train and val metrics."""
        ...

    def note(self, text: str) -> None:
        """Something that a person may want to know; one line."""
        ...

    def warn(self, text: str) -> None:
        """Something that a person should act on; one line."""
        ...


class Silent:
    """Says nothing."""

    def start(self, task: str, total: int, *, unit: str = "images") -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def done(self) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass
