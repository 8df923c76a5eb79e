"""What a phase trains on: clean rows, stored views in turn, or a new random view of each image in every epoch."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from xfer.compile.phases import learns_statistics
from xfer.engine.inputs import Inputs, decode_threads, rebatch
from xfer.engine.views import View, augmented_rows, canvas_view, fixed_view, random_view
from xfer.plan.model_map import PIXELS
from xfer.plan.plan import AugmentPlan, InputPlan, PhasePlan, Plan

Open = Callable[[InputPlan, "View | None"], Inputs]  # the input at a place, prepared for the training rows
BATCHES_AHEAD = 3


class TrainingRows:
    """The phase's training input, epoch by epoch. `opened` makes and prepares the inputs that it needs, and `make` one that needs no
    preparation because it is streamed.

    Where batch normalisation learns, a last batch of one image is part of the batch before it, which is then one larger: one image
    alone has no variance once its maps are down to one position (torch refuses it), and says little about a data set before that.
    """

    def __init__(self, plan: Plan, phase: PhasePlan, *, opened: Open, make: Open) -> None:
        self.plan, self.phase, self.augment, self._make = plan, phase, phase.augment, make
        rewritten = plan.method.rewrites_statistics
        self.learns_statistics = learns_statistics(plan.model, phase.train, norm=phase.norm, rewritten=rewritten)
        self.views: list[Inputs] = []
        if self.augment is None:
            self.views = [opened(phase.input, None)]
        elif self.augment.views is not None:
            place = phase.input.model_copy(update={"mode": self.augment.mode})
            self.views = [opened(place, fixed_view(plan, self.augment, number)) for number in range(self.augment.views)]
        else:
            self.canvases = opened(canvas_place(self.augment), canvas_view(plan, self.augment))

    def steps(self, n_rows: int, size: int) -> int:
        """How many batches so many rows make."""
        return len(self.sizes(n_rows, size))

    def sizes(self, n_rows: int, size: int) -> list[int]:
        """Of the batches that so many rows make: `size`, the last as short as it comes, or one longer, as above. What is left of an
        epoch is put into the batches that the whole epoch has."""
        n_whole, n_last = divmod(n_rows, size)
        if self.learns_statistics and n_whole and n_last == 1:
            return [size] * (n_whole - 1) + [size + 1]
        return [size] * n_whole + ([n_last] if n_last else [])

    def batches(self, rows: np.ndarray, sizes: Sequence[int], *, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, inputs [k, *shape]) at the phase's cut, in the order of `rows`, in batches of these sizes."""
        first = 0
        for size, run in itertools.groupby(sizes):
            after = first + size * len(list(run))
            yield from self._batches(rows[first:after], size, epoch=epoch)
            first = after

    def _batches(self, rows: np.ndarray, size: int, *, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not len(rows):
            return iter(())
        if self.views:
            return self.views[epoch % len(self.views)].batches(rows, size)
        assert self.augment is not None
        streamed = self.phase.input.model_copy(update={"mode": "streamed"})
        drawn = self._make(streamed, random_view(self.plan, self.augment, phase=self.phase.index, epoch=epoch))
        if self.canvases.store is None:
            return drawn.batches(rows, size)
        return rebatch(self._from_canvases(rows, drawn, epoch), size)

    def _from_canvases(self, rows: np.ndarray, drawn: Inputs, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Threads draw and resize some batches ahead, while the network works."""
        store, augment = self.canvases.store, self.augment
        assert store is not None
        assert augment is not None

        def draw(part: np.ndarray) -> np.ndarray:
            return augmented_rows(self.plan, augment, store.take(part), part, phase=self.phase.index, epoch=epoch)

        pool = ThreadPoolExecutor(decode_threads(), thread_name_prefix="xfer-augment")
        waiting: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()
        try:
            for first in range(0, len(rows), drawn.batch):
                part = rows[first : first + drawn.batch]
                pieces = np.array_split(part, min(len(part), decode_threads()))
                waiting.append((part, [pool.submit(draw, piece) for piece in pieces]))
                if len(waiting) >= BATCHES_AHEAD:
                    yield self._drawn(drawn, *waiting.popleft())
            while waiting:
                yield self._drawn(drawn, *waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _drawn(self, drawn: Inputs, part: np.ndarray, pieces: list[Future[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        return part, drawn.from_pixels(np.concatenate([piece.result() for piece in pieces]))


def canvas_place(augment: AugmentPlan) -> InputPlan:
    """Cut 0 as canvases."""
    return InputPlan(
        cut=PIXELS,
        mode=augment.mode,
        reason=augment.reason,
        shape=(augment.canvas + 1, augment.canvas, 3),
        dtype="uint8",
        bytes=augment.bytes,
        layout="pixels",
    )
