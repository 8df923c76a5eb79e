"""Decoded images in order, ahead of the one who computes: threads decode while the network works."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from xfer.data.dataset import Dataset, RawImage
from xfer.data.decode import Unreadable, decode, quieten
from xfer.plan.preprocess import Preprocess

# The machine's trouble, not the file's: these end the run instead of putting image after image into quarantine.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_REASONS = {
    errno.ENOENT: "file not found",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EISDIR: "a folder, not a file",
    errno.ELOOP: "a link that leads in a circle",
    errno.ENAMETOOLONG: "file name too long",
}
Make = Callable[[RawImage, int], np.ndarray]  # raw content and row number -> uint8 of one shape
_Decoded = list[tuple[int, "np.ndarray | str"]]


@dataclass(frozen=True)
class DecodedBatch:
    """Images that could be read, in the order of the rows asked for: `rows` int64 [k], `pixels` uint8 [k, crop, crop, 3]
    (or [k, *shape]), writable and not shared; and the rows met since the batch before that could not, each with its reason."""

    rows: np.ndarray
    pixels: np.ndarray
    bad: list[tuple[int, str]]


def decoded(
    dataset: Dataset,
    rows: np.ndarray,
    preprocess: Preprocess,
    *,
    threads: int,
    batch: int,
    ahead: int = 3,
    make: Make | None = None,
    shape: tuple[int, ...] | None = None,
) -> Iterator[DecodedBatch]:
    """Yields full batches of readable images, in the order of `rows`; only the last may be smaller, or empty if it
    brings bad rows. At most `ahead` batches are decoded or being decoded beyond the one that is yielded.

    `make(raw, row)` returns what stands for an image instead of `decode(raw, preprocess)`, uint8 [*shape], which is [crop, crop, 3]
    if nothing is said; it runs in the threads, and raises Unreadable for a bad row. ValueError if it returns something else.
    What `dataset.read` raises other than OSError comes out here. The threads end when the iterator is exhausted or closed.
    """
    if min(threads, batch, ahead) < 1:
        raise ValueError(f"threads {threads}, batch {batch} and ahead {ahead} must be at least 1")
    quieten()
    making = make or (lambda raw, row: decode(raw, preprocess))
    each = (preprocess.crop, preprocess.crop, 3) if shape is None else shape
    return _batches(dataset, [int(row) for row in rows], making, each, threads, batch, ahead)


def _batches(
    dataset: Dataset, rows: Sequence[int], make: Make, shape: tuple[int, ...], threads: int, batch: int, ahead: int
) -> Iterator[DecodedBatch]:
    taken: list[int] = []
    bad: list[tuple[int, str]] = []
    pixels = np.empty((batch, *shape), np.uint8)
    with closing(_in_order(dataset, rows, make, threads, batch, ahead)) as images:
        for row, image in images:
            if isinstance(image, str):
                bad.append((row, image))
                continue
            if image.shape != shape or image.dtype != np.uint8:  # the buffer would take it, stretched or cut to whole numbers
                raise ValueError(f"row {row} was made {image.dtype} {list(image.shape)}, not uint8 {list(shape)}")
            pixels[len(taken)] = image
            taken.append(row)
            if len(taken) == batch:
                yield DecodedBatch(np.array(taken, np.int64), pixels, bad)
                taken, bad, pixels = [], [], np.empty((batch, *shape), np.uint8)
    if taken or bad:
        yield DecodedBatch(np.array(taken, np.int64), pixels[: len(taken)], bad)


def _in_order(
    dataset: Dataset, rows: Sequence[int], make: Make, threads: int, batch: int, ahead: int
) -> Generator[tuple[int, np.ndarray | str]]:
    """Rows decoded by a pool, in order. The pool takes runs of rows: a task for each
    would cost more than a tiny image itself."""
    run = max(1, min(16, batch // (2 * threads)))
    starts = iter(range(0, len(rows), run))
    waiting: deque[Future[_Decoded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="xfer-decode")
    try:
        for start in starts:
            waiting.append(pool.submit(_decode_run, dataset, rows[start : start + run], make))
            if len(waiting) * run >= ahead * batch:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_run(dataset: Dataset, rows: Sequence[int], make: Make) -> _Decoded:
    return [(row, _decode_row(dataset, row, make)) for row in rows]


def _decode_row(dataset: Dataset, row: int, make: Make) -> np.ndarray | str:
    """The pixels, or why there are none."""
    try:
        return make(dataset.read(row), row)
    except Unreadable as error:
        return str(error)
    except OSError as error:
        if error.errno in _OURS:
            raise
        return reason(error)


def reason(error: OSError) -> str:
    """Why a file can't be read, for people.

    >>> reason(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    'file not found'
    """
    return _REASONS.get(error.errno or 0) or (error.strerror or str(error) or type(error).__name__).lower()
