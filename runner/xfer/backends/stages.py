"""Stages: runs of groups that work at the same resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

N_RUNS = 4  # what follows the tokens of a network of one resolution is divided into so many equal runs of blocks
BLOCKS_SHARE = 0.6  # of the parameters, for blocks of one class to be what the network consists of


@dataclass(frozen=True)
class Sized:
    """A group as stages see it: its class, its parameters, and the shape of what it gives at the network's native size."""

    kind: str
    n_parameters: int
    row: tuple[int, ...] | None
    layout: str | None


def stages(groups: Sequence[Sized], *, input_size: int) -> list[str]:
    """The stage of each group, in order."""
    levels = _levels(groups, input_size)
    runs = _runs_of_blocks(groups, levels)
    if runs is not None:
        return [f"stage{number}" for number in runs]
    numbers, number = [], 0
    for index, level in enumerate(levels):
        number += int(index > 0 and level != levels[index - 1])
        numbers.append(number)
    return [f"stage{number}" for number in numbers]


def _levels(groups: Sequence[Sized], input_size: int) -> list[int]:
    """Rounded log2 of the downsampling of each group. It never falls again: a branch of finer resolution, or a vector that is
    spread over a map, belongs to the level that was reached. What has no size of its own belongs where it stands."""
    levels: list[int | None] = []
    reached = -1
    for group in groups:
        side = _side(group)
        if side:
            reached = max(reached, round(math.log2(max(1.0, input_size / side))))
        levels.append(reached if reached >= 0 else None)
    first = next((level for level in levels if level is not None), 0)
    return [first if level is None else level for level in levels]


def _side(group: Sized) -> float | None:
    if group.row is None or group.layout in (None, "vector"):
        return None
    if group.layout == "tokens":
        return math.sqrt(group.row[0]) if group.row[0] > 1 else None
    height, width = group.row[1:3] if group.layout == "chw" else group.row[:2]
    return math.sqrt(height * width) if height * width > 1 else None


def _runs_of_blocks(groups: Sequence[Sized], levels: Sequence[int]) -> list[int] | None:
    """Stage numbers of a network that consists of blocks of one class at one resolution; None for any other."""
    total = sum(group.n_parameters for group in groups)
    by_kind: dict[str, int] = {}
    for group in groups:
        by_kind[group.kind] = by_kind.get(group.kind, 0) + group.n_parameters
    if not total:
        return None
    kind = max(by_kind, key=lambda name: by_kind[name])
    blocks = [index for index, group in enumerate(groups) if group.kind == kind and index > 0]  # the first makes the tokens
    same = len({levels[index] for index in blocks}) == 1
    if not same or len(blocks) < N_RUNS or by_kind[kind] < BLOCKS_SHARE * total or max(levels) > levels[blocks[0]]:
        return None
    size, extra = divmod(len(blocks), N_RUNS)
    starts = [blocks[run * size + min(run, extra)] for run in range(N_RUNS)]
    return [sum(index >= start for start in starts) for index in range(len(groups))]
