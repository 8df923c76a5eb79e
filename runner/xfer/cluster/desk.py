"""Where driver and workers leave word for each other: progress and errors one way, a stop the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from xfer.engine.reporter import Reporter
from xfer.errors import XferError

TELL_SECONDS = 0.2
LOOK_SECONDS = 0.5

Word = tuple[str, tuple[Any, ...]]  # a reporter's method and what it is called with


class Desk:
    """An actor on the driver's node. `over` is true when the run has come to an end that a restart must not undo."""

    def __init__(self) -> None:
        self._words: list[Word] = []
        self._error: XferError | None = None
        self._over = self._stopped = False
        self._starts: list[int] = []

    def tell(self, words: list[Word]) -> None:
        self._words += words

    def heard(self) -> list[Word]:
        """What was told since the last time."""
        words, self._words = self._words, []
        return words

    def started(self, rank: int, size: int) -> bool:
        """A worker of a group of so many begins; false where there is nothing left to do."""
        if rank == 0 and not self._over:
            self._starts.append(size)
        return not self._over

    def finish(self, error: XferError | None = None) -> None:
        """The run ended, by itself or with an error of ours. The first word counts."""
        if not self._over:
            self._over, self._error = True, error

    def stop(self) -> None:
        self._stopped = True

    def state(self) -> tuple[bool, bool]:
        """(whether the run is over, whether it is asked to stop)."""
        return self._over, self._stopped

    def end(self) -> tuple[bool, XferError | None, list[int]]:
        """(whether the run is over, what ended it, the sizes of the groups that worked on it)."""
        return self._over, self._error, self._starts


def open_desk() -> Any:
    """The actor's handle, on this node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1).remote()


class DeskReporter:
    """Implements `Reporter` for the first rank: words wait for a moment, so that a fast loop does not drown the desk."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._lock = desk, threading.Lock()
        self._words: list[Word] = []
        self._moved, self._told = 0, time.monotonic()

    def start(self, task: str, total: int, *, unit: str = "images") -> None:
        self._say("start", task, total, unit)

    def advance(self, n: int) -> None:
        with self._lock:
            self._moved += n
        if time.monotonic() - self._told > TELL_SECONDS:
            self.flush()

    def done(self) -> None:
        self._say("done")

    def epoch(self, record: dict[str, Any]) -> None:
        self._say("epoch", record)

    def note(self, text: str) -> None:
        self._say("note", text)

    def warn(self, text: str) -> None:
        self._say("warn", text)

    def _say(self, method: str, *arguments: Any) -> None:
        with self._lock:
            self._take_moved()
            self._words.append((method, arguments))
        self.flush()

    def _take_moved(self) -> None:
        if self._moved:
            self._words.append(("advance", (self._moved,)))
            self._moved = 0

    def flush(self) -> None:
        with self._lock:
            self._take_moved()
            words, self._words, self._told = self._words, [], time.monotonic()
        if words:
            self._desk.tell.remote(words)


def pass_on(words: list[Word], reporter: Reporter) -> None:
    """Tell a reporter here what a worker's was told there."""
    for method, arguments in words:
        if method == "start":
            task, total, unit = arguments
            reporter.start(task, total, unit=unit)
        else:
            getattr(reporter, method)(*arguments)


class Watch:
    """Looks at the desk now and then, in a thread: whether the run is asked to stop, and whether it is over elsewhere, which `on_over` is
    called for once, `grace` seconds later."""

    def __init__(self, desk: Any, *, on_over: Callable[[], None], grace: float) -> None:
        self._desk, self._on_over, self._grace = desk, on_over, grace
        self._closed = threading.Event()
        self.stopped = False
        threading.Thread(target=self._run, daemon=True, name="xfer-watch").start()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        import ray

        over_since: float | None = None
        while not self._closed.wait(LOOK_SECONDS):
            try:
                over, self.stopped = ray.get(self._desk.state.remote(), timeout=30)
            except (ray.exceptions.RayError, TimeoutError):
                over = True  # the driver is gone, and with it the run
            over_since = over_since or (time.monotonic() if over else None)
            if over_since is not None and time.monotonic() - over_since > self._grace and not self._closed.is_set():
                self._on_over()
                return
