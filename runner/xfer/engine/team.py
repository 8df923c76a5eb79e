"""Ranks that go through one run together, each the same steps: who takes which rows, and how they come to the same decisions."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from xfer.backends.backend import Team
from xfer.errors import XferError

T = TypeVar("T")
AGREE_SECONDS = 0.5  # between two decisions that only the first rank can take, about


class Alone:
    """The team of a run in one process."""

    rank, size = 0, 1

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values

    def broadcast_bytes(self, data: bytes) -> bytes:
        return data

    def broadcast(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(arrays)


ALONE = Alone()


def from_first(team: Team, make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, on all of them; what it raises of ours is raised on all of them."""
    if team.size == 1:
        return make()
    if team.rank:
        failed, found = pickle.loads(team.broadcast_bytes(b""))
    else:
        failed, found = False, None
        try:
            found = make()
        except XferError as error:
            failed, found = True, error
        team.broadcast_bytes(pickle.dumps((failed, found)))
    if failed:
        raise found
    return found  # type: ignore[no-any-return]


def gathered(team: Team, value: T) -> list[T]:
    """Each rank's, by rank."""
    if team.size == 1:
        return [value]
    data = pickle.dumps(value)
    lengths = np.zeros(team.size, np.int64)
    lengths[team.rank] = len(data)
    lengths = team.sum(lengths)
    words = np.zeros((team.size, math.ceil(int(lengths.max()) / 8)), np.int64)
    words.view(np.uint8).reshape(team.size, -1)[team.rank, : len(data)] = np.frombuffer(data, np.uint8)
    content = team.sum(words).view(np.uint8).reshape(team.size, -1)
    return [pickle.loads(content[rank, :length].tobytes()) for rank, length in enumerate(lengths.tolist())]


def part_of(batch: np.ndarray, team: Team) -> tuple[np.ndarray, float]:
    """A rank's rows of a global batch, and their share of it. A batch of fewer rows than ranks is computed whole by each."""
    if len(batch) < team.size:
        return batch, 1 / team.size
    part = np.array_split(batch, team.size)[team.rank]
    return part, len(part) / len(batch)


def summed_rows(team: Team, parts: Mapping[int, np.ndarray], n_rows: int, width: int) -> np.ndarray:
    """float32 [n_rows, width] from what each rank has: its own blocks by the row at which they begin."""
    whole = np.zeros((n_rows, width), np.float32)
    for first, values in parts.items():
        whole[first : first + len(values)] = values
    return team.sum(whole)


class Agreement:
    """A question that only the first rank can answer, its clock or a signal decides: every rank asks it at the same steps, about twice a
    second, and hears the first one's answer. Alone it is asked at each step."""

    def __init__(self, team: Team, ask: Callable[[], bool], *, everywhere: Callable[[], bool] = lambda: False) -> None:
        """`everywhere` is asked on all ranks at the same time, and must say the same on all of them: it makes the answer true, too."""
        self._team, self._ask, self._everywhere = team, ask, everywhere
        self._left, self._every, self._asked = 0, 1, time.monotonic()

    def __call__(self) -> bool:
        if self._team.size == 1:
            return self._ask()
        if self._left:
            self._left -= 1
            return False
        return self.now()

    def now(self) -> bool:
        """Ask without waiting for the next time."""
        if self._team.size == 1:
            return self._ask()
        answer, self._every = from_first(self._team, lambda: (self._ask(), self._pace()))
        self._left = self._every - 1
        return self._everywhere() or answer

    def _pace(self) -> int:
        """How many steps make up the time between two questions."""
        now = time.monotonic()
        seconds, self._asked = max(now - self._asked, 1e-3), now
        return int(min(max(self._every * AGREE_SECONDS / seconds, 1), 2 * self._every, 1000))
