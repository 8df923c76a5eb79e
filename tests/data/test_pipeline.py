from __future__ import annotations

import errno
import gc
import os
import threading
import time

import numpy as np
import pytest

from xfer.data.dataset import Dataset
from xfer.data.decode import Unreadable, decode
from xfer.data.pipeline import decoded, reason
from xfer.plan.preprocess import Preprocess

SMALL = Preprocess(resize=9, crop=8)


def rows(n):
    return np.arange(n)


def test_order_and_content(draw, encoded, in_memory):
    raws = [encoded(draw(12 + row, 10, seed=row)) for row in range(23)]
    asked = np.random.default_rng(0).permutation(23)
    for threads in (1, 3):
        batches = list(decoded(in_memory(raws), asked, SMALL, threads=threads, batch=5))
        assert [len(batch.rows) for batch in batches] == [5, 5, 5, 5, 3]
        np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), asked)
        np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches]), [decode(raws[row], SMALL) for row in asked])
        assert all(batch.rows.dtype == np.int64 and batch.pixels.dtype == np.uint8 for batch in batches)


def test_batches_do_not_share_memory(draw, in_memory):
    dataset = in_memory([draw(8, 8, seed=row) for row in range(6)])
    first, second = decoded(dataset, rows(6), SMALL, threads=1, batch=3)
    kept = second.pixels.copy()
    first.pixels[:] = 0
    np.testing.assert_array_equal(second.pixels, kept)


def test_bad_images_leave_batches_full(draw, encoded, in_memory):
    good = [encoded(draw(12, 10, seed=row)) for row in range(10)]
    raws = list(good)
    raws[0], raws[3], raws[4], raws[9] = b"", b"text", FileNotFoundError(errno.ENOENT, "No such file"), good[1][:-30]
    batches = list(decoded(in_memory(raws), rows(10), SMALL, threads=2, batch=3))
    assert [batch.rows.tolist() for batch in batches] == [[1, 2, 5], [6, 7, 8], []]
    assert [batch.bad for batch in batches] == [
        [(0, "empty file"), (3, "not an image"), (4, "file not found")],
        [],
        [(9, "truncated file")],
    ]
    assert batches[2].pixels.shape == (0, 8, 8, 3)


def test_only_bad_images(in_memory):
    batches = list(decoded(in_memory([b""] * 4), rows(4), SMALL, threads=2, batch=3))
    assert [(len(batch.rows), len(batch.bad)) for batch in batches] == [(0, 4)]


def test_nothing_asked_for(in_memory):
    assert list(decoded(in_memory([b""]), rows(0), SMALL, threads=2, batch=3)) == []


@pytest.mark.parametrize(("threads", "batch", "ahead"), [(1, 1, 1), (3, 4, 2), (2, 64, 3), (8, 5, 1)])
def test_look_ahead_is_bounded(draw, threads, batch, ahead):
    n = 300
    pixels = draw(8, 8)
    read = []

    def reading(row):
        read.append(row)
        return pixels

    dataset = Dataset(("a", "b"), tuple(map(str, rows(n))), rows(n) % 2, np.full(n, ""), reading)
    images = decoded(dataset, rows(n), SMALL, threads=threads, batch=batch, ahead=ahead)
    taken = 0
    for number, found in enumerate(images):
        taken += len(found.rows)
        time.sleep(0.002)
        assert len(read) <= taken + (ahead + 1) * batch
        if number == 5:
            break
    images.close()
    assert taken <= n


def test_decoding_goes_on_while_the_consumer_works(draw):
    pixels = draw(8, 8)
    reached = threading.Event()

    def reading(row):
        if row == 11:
            reached.set()
        return pixels

    dataset = Dataset(("a", "b"), tuple(map(str, rows(40))), rows(40) % 2, np.full(40, ""), reading)
    images = decoded(dataset, rows(40), SMALL, threads=1, batch=4)
    next(images)
    assert reached.wait(timeout=60)
    images.close()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a wrong array"), OSError(errno.EMFILE, "Too many open files")])
def test_real_errors_come_out(draw, in_memory, error):
    raws = [draw(8, 8)] * 20
    raws[13] = error
    images = decoded(in_memory(raws), rows(20), SMALL, threads=2, batch=2)
    assert [len(next(images).rows) for _ in range(6)] == [2] * 6
    with pytest.raises(type(error)) as caught:
        next(images)
    assert caught.value is error
    assert _threads_end()


def test_an_array_of_a_wrong_type_is_an_error_not_a_bad_image(in_memory):
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        list(decoded(in_memory([np.zeros((8, 8), np.float32)]), rows(1), SMALL, threads=1, batch=1))


def test_threads_end_when_the_consumer_stops(draw, in_memory):
    dataset = in_memory([draw(8, 8)] * 100)
    for batch in decoded(dataset, rows(100), SMALL, threads=3, batch=4):
        assert len(batch.rows) == 4
        break
    gc.collect()
    assert _threads_end()
    images = decoded(dataset, rows(100), SMALL, threads=3, batch=4)
    next(images)
    images.close()
    assert _threads_end()


def test_no_thread_before_the_first_image_is_asked_for(draw, in_memory):
    images = decoded(in_memory([draw(8, 8)]), rows(1), SMALL, threads=3, batch=4)
    assert _threads_end(seconds=0)
    assert len(list(images)) == 1


def test_impossible_numbers(in_memory):
    with pytest.raises(ValueError, match="threads 0, batch 4 and ahead 3 must be at least 1"):
        decoded(in_memory([]), rows(0), SMALL, threads=0, batch=4)


def test_something_else_is_made_of_the_raw_image(draw, encoded, in_memory):
    """In order, whichever thread is done first, with the row number at hand, and in the shape that was said."""
    raws = [encoded(draw(12, 10, seed=row)) for row in range(23)]
    asked = np.random.default_rng(0).permutation(23)
    pauses = np.random.default_rng(1).uniform(0, 0.004, 23)

    def make(raw, row):
        time.sleep(pauses[row])
        return np.array([[row, raw is raws[row], threading.current_thread().name.startswith("xfer-decode")]], np.uint8)

    for threads in (1, 3):
        batches = list(decoded(in_memory(raws), asked, SMALL, threads=threads, batch=5, make=make, shape=(1, 3)))
        assert [batch.pixels.shape for batch in batches] == [(5, 1, 3)] * 4 + [(3, 1, 3)]
        np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), asked)
        np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in batches])[:, 0], [(row, 1, 1) for row in asked])


def test_what_is_made_without_a_shape_is_as_large_as_the_crop(draw, in_memory):
    (batch,) = decoded(in_memory([draw(8, 8)]), rows(1), SMALL, threads=1, batch=1, make=lambda raw, row: 255 - raw)
    np.testing.assert_array_equal(batch.pixels[0], 255 - draw(8, 8))


def test_what_cannot_be_made_is_a_bad_image(in_memory):
    def make(raw, row):
        if row == 1:
            raise Unreadable("not for us")
        return np.full(2, row, np.uint8)

    raws = [b"a", b"b", FileNotFoundError(errno.ENOENT, "No such file"), b"d"]
    (batch,) = decoded(in_memory(raws), rows(4), SMALL, threads=2, batch=4, make=make, shape=(2,))
    assert batch.bad == [(1, "not for us"), (2, "file not found")]
    assert batch.pixels.tolist() == [[0, 0], [3, 3]]


@pytest.mark.parametrize("wrong", [np.zeros((1, 3), np.uint8), np.zeros((2, 3), np.float32), np.zeros(3, np.uint8)])
def test_what_is_made_must_fit(in_memory, wrong):
    """Into the buffer for [2, 3] NumPy would stretch the first and the last, and cut the second to whole numbers."""
    with pytest.raises(ValueError, match="row 0 was made") as error:
        list(decoded(in_memory([b""]), rows(1), SMALL, threads=1, batch=1, make=lambda raw, row: wrong, shape=(2, 3)))
    assert str(error.value) == f"row 0 was made {wrong.dtype} {list(wrong.shape)}, not uint8 [2, 3]"
    assert _threads_end()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOENT, "file not found"),
        (errno.EACCES, "permission denied"),
        (errno.EISDIR, "a folder, not a file"),
        (errno.ELOOP, "a link that leads in a circle"),
        (errno.EIO, "input/output error"),
    ],
)
def test_reasons(number, text):
    assert reason(OSError(number, os.strerror(number))) == text
    assert reason(OSError("no number")) == "no number"


def _threads_end(seconds=60.0):
    end = time.monotonic() + seconds
    while any(thread.name.startswith("xfer-decode") for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
