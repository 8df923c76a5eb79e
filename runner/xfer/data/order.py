"""Randomness keyed by (seed, phase, epoch, image): what a run draws never depends on how often or in what batches it drew.

Only raw integers of the generator are used, whose sequence NumPy promises not to change; its `permutation` may change.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

WINDOW_SHARDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def epoch_order(
    rows: np.ndarray,
    *,
    seed: int,
    phase: int,
    epoch: int,
    mode: Literal["full", "blocks"] = "full",
    shard_rows: int = 512,
    window_shards: int = WINDOW_SHARDS,
) -> np.ndarray:
    """`rows` (int64 [n], row numbers of the store) in the order of one epoch; a permutation that (seed, phase, epoch) alone decide.

    'full' is a uniform shuffle. 'blocks' is for a store larger than memory: the shards come in random order, and rows are
    shuffled within windows of `window_shards` shards, so that only one window is read at a time.
    """
    rows = np.asarray(rows, np.int64)
    generator = np.random.Philox(key=philox_key(seed, phase, epoch))
    draws = generator.random_raw(len(rows))
    if mode == "full":
        return rows[np.argsort(draws, kind="stable")]
    shards, shard_of_row = np.unique(rows // shard_rows, return_inverse=True)
    rank = np.empty(len(shards), np.int64)
    rank[np.argsort(generator.random_raw(len(shards)), kind="stable")] = np.arange(len(shards))
    return rows[np.lexsort((draws, rank[shard_of_row] // window_shards))]


def philox_key(seed: int, phase: int, epoch: int) -> np.ndarray:
    """The two words of the generator's key: the seed, then phase and epoch side by side."""
    if not (0 <= seed < 2**64 and 0 <= phase < 2**24 and 0 <= epoch < 2**40):
        raise ValueError(f"seed, phase and epoch must be in 0..2**64, 0..2**24 and 0..2**40, not {seed}, {phase}, {epoch}")
    return np.array([seed, (phase << 40) | epoch], np.uint64)


def keyed_uniform(seed: int, phase: int, epoch: int, keys: np.ndarray, n: int) -> np.ndarray:
    """float32 [len(keys), n], uniform in [0, 1): the n random numbers of each image, `keys` int64, in this epoch.

    A row depends on its key alone, so any batch composition gives an image the same numbers. SplitMix64 (Steele, Lea and
    Flood 2014): each key starts a stream of its own at a hashed place; the upper 24 bits make a float32 exactly.
    """
    first, second = philox_key(seed, phase, epoch)
    start = _mix(_mix(np.asarray([first], np.uint64) + GOLDEN) ^ second)
    streams = _mix(_mix(np.asarray(keys, np.int64).astype(np.uint64) * GOLDEN + start) ^ start)
    steps = np.arange(1, n + 1, dtype=np.uint64) * GOLDEN
    return ((_mix(streams[:, None] + steps[None, :]) >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finisher: every bit of the input changes each bit of the output half of the time."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))
