"""Orders and random numbers that only (seed, phase, epoch, image) decide."""

from __future__ import annotations

import numpy as np
import pytest

from xfer.data.order import epoch_order, keyed_uniform

ROWS = np.arange(3, 2003, 2)


@pytest.mark.parametrize("mode", ["full", "blocks"])
def test_an_order_is_a_permutation_that_the_key_alone_decides(mode):
    order = epoch_order(ROWS, seed=1, phase=2, epoch=3, mode=mode, shard_rows=64)
    assert np.array_equal(np.sort(order), ROWS)
    np.random.default_rng(0).random(5)
    assert np.array_equal(order, epoch_order(ROWS, seed=1, phase=2, epoch=3, mode=mode, shard_rows=64))
    for other in ({"seed": 2}, {"phase": 3}, {"epoch": 4}):
        changed = epoch_order(ROWS, **{"seed": 1, "phase": 2, "epoch": 3, **other}, mode=mode, shard_rows=64)
        assert (changed != order).mean() > 0.9


def test_phase_and_epoch_are_not_mixed_up():
    assert not np.array_equal(epoch_order(ROWS, seed=0, phase=1, epoch=0), epoch_order(ROWS, seed=0, phase=0, epoch=1))


def test_orders_are_pinned():
    """Resuming with a newer version must go on in the same order."""
    assert epoch_order(np.arange(10), seed=7, phase=1, epoch=2).tolist() == [8, 9, 2, 5, 1, 4, 3, 0, 7, 6]
    blocks = epoch_order(np.arange(10), seed=7, phase=1, epoch=2, mode="blocks", shard_rows=2, window_shards=2)
    assert blocks.tolist() == [8, 9, 5, 4, 1, 0, 7, 6, 2, 3]


def test_a_full_shuffle_is_uniform():
    """Every row is equally often at every place: chi-square over 6 rows and 6 places, 3,000 epochs."""
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(np.arange(6), seed=0, phase=0, epoch=epoch)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 52.6  # 25 degrees of freedom: exceeded once in a thousand


def test_blocks_read_a_window_of_shards_at_a_time():
    rows = np.arange(100_000)
    order = epoch_order(rows, seed=0, phase=0, epoch=0, mode="blocks", shard_rows=512, window_shards=8)
    shards = order // 512
    first = {shard: place for place, shard in reversed(list(enumerate(shards.tolist())))}
    last = {shard: place for place, shard in enumerate(shards.tolist())}
    open_at_once = np.zeros(len(rows) + 1, int)
    for shard in first:
        open_at_once[first[shard]] += 1
        open_at_once[last[shard] + 1] -= 1
    assert open_at_once.cumsum().max() <= 8
    # Within a window the shards are mixed, and the windows are not the shards' own order.
    assert len(set(shards[:64].tolist())) == 8
    assert np.corrcoef(np.arange(len(rows)), order)[0, 1] < 0.5


def test_random_numbers_belong_to_the_image_and_not_to_the_batch():
    keys = np.array([5, 0, 12345678901, -1, 7])
    together = keyed_uniform(3, 1, 4, keys, 6)
    assert together.dtype == np.float32
    assert together.shape == (5, 6)
    for place, key in enumerate(keys):
        assert np.array_equal(keyed_uniform(3, 1, 4, np.array([key]), 6)[0], together[place])
    assert np.array_equal(keyed_uniform(3, 1, 4, keys[::-1], 6), together[::-1])
    # More numbers for each image leave the first ones as they were.
    assert np.array_equal(keyed_uniform(3, 1, 4, keys, 9)[:, :6], together)
    for other in ((4, 1, 4), (3, 2, 4), (3, 1, 5)):
        assert not np.isin(keyed_uniform(*other, keys, 6), together).any()
    assert keyed_uniform(3, 1, 4, keys, 0).shape == (5, 0)
    assert keyed_uniform(3, 1, 4, np.empty(0, np.int64), 6).shape == (0, 6)


def test_random_numbers_are_pinned():
    drawn = keyed_uniform(1, 2, 3, np.array([42]), 3)[0]
    assert [float(value).hex() for value in drawn] == ["0x1.856e800000000p-7", "0x1.6ec0fc0000000p-1", "0x1.99b7560000000p-1"]


@pytest.mark.parametrize("axis", ["keys", "columns", "epochs", "seeds"])
def test_random_numbers_are_uniform_and_independent_along_every_axis(axis):
    if axis == "keys":
        values = keyed_uniform(0, 0, 0, np.arange(100_000), 1)[:, 0]
    elif axis == "columns":
        values = keyed_uniform(0, 0, 0, np.array([9]), 100_000)[0]
    elif axis == "epochs":
        values = np.array([keyed_uniform(0, 0, epoch, np.array([9]), 1)[0, 0] for epoch in range(20_000)])
    else:
        values = np.array([keyed_uniform(seed, 0, 0, np.array([9]), 1)[0, 0] for seed in range(20_000)])
    assert values.min() >= 0
    assert values.max() < 1
    n = len(values)
    counts = np.histogram(values, 64, (0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 103.4  # 63 degrees of freedom, once in a thousand
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 3.3 / np.sqrt(n)


def test_keys_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^seed, phase and epoch must be in 0..2\*\*64, 0..2\*\*24 and 0..2\*\*40, not -1, 0, 0$"):
        epoch_order(ROWS, seed=-1, phase=0, epoch=0)
