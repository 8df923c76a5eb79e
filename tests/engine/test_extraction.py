"""Extraction: every row once, the same bytes whoever computes them, however often it is killed."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfer.data.canvas import pack, unpack
from xfer.data.dataset import Dataset
from xfer.data.decode import Box, decode
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.extraction import Extraction, extract, extract_from
from xfer.errors import StoreError
from xfer.plan.preprocess import Preprocess

N_ROWS = 700
SIDE = 8
PREPROCESS = Preprocess(resize=SIDE, crop=SIDE)


def picture(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def dataset(bad: dict[int, object] | None = None, n_rows: int = N_ROWS) -> Dataset:
    """Random pictures; rows in `bad` are something else: bytes that are no image, or an error to raise."""
    bad = bad or {}

    def read(row: int) -> object:
        found = bad.get(row)
        if isinstance(found, BaseException):
            raise found
        return picture(row) if found is None else found

    empty = np.full(n_rows, "", "<U5")
    return Dataset(("a", "b"), tuple(map(str, range(n_rows))), np.zeros(n_rows, np.int64), empty, read)  # type: ignore[arg-type]


def features(pixels: np.ndarray) -> np.ndarray:
    """float32 [n, 24]: sums over columns, so that a row's value is exact wherever it stands."""
    return pixels.astype(np.float32).sum(axis=1).reshape(len(pixels), -1)


EXPECTED = features(np.stack([picture(row) for row in range(N_ROWS)]))


class Counting:
    """`features`, keeping the shapes it was called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.shapes.append(pixels.shape)
        return features(pixels)


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    def open_it(shard_rows: int = 100, root: str = "cache") -> FeatureStore:
        return FeatureStore(tmp_path / root, StoreSpec({"model": "m", "cut": "c"}, N_ROWS, (24,), "float32", shard_rows))

    return open_it


def run(store: FeatureStore, rows: np.ndarray | None = None, **options: object) -> Extraction:
    settings = {"preprocess": PREPROCESS, "compute": features, "batch": 32, "threads": 2, **options}
    source = settings.pop("dataset", None) or dataset()
    return extract(store, source, np.arange(N_ROWS) if rows is None else rows, **settings)  # type: ignore[arg-type]


def files(store: FeatureStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.glob("*.npy"))}


@pytest.mark.parametrize(("batch", "shard_rows"), [(32, 100), (64, 7), (1000, 100), (1, 350), (100, 100), (33, 1000)])
def test_rows_are_what_compute_gave_and_batches_are_full(open_store, batch, shard_rows):
    store, compute, heard = open_store(shard_rows), Counting(), []
    done = run(store, compute=compute, batch=batch, progress=heard.append)
    assert (done.computed, done.bad, done.complete) == (N_ROWS, {}, True)
    assert done.seconds > 0
    assert np.array_equal(open_store(shard_rows).take(np.arange(N_ROWS)), EXPECTED)
    # No shard's tail is padded, only the very last batch.
    assert compute.shapes == [(batch, SIDE, SIDE, 3)] * -(-N_ROWS // batch)
    assert sum(heard) == N_ROWS


def test_windows_of_shards_are_not_padded_either(open_store):
    store, compute = open_store(10), Counting()
    run(store, compute=compute, batch=3)  # a window is 96 rows in shards of 10
    assert len(compute.shapes) == -(-N_ROWS // 3)


def test_what_is_there_is_not_computed_again(open_store):
    some = np.array([650, 3, 3, 4, 99, 100, 377])
    assert run(open_store(), some).computed == 6
    assert run(open_store(), some).computed == 0
    assert run(open_store()).computed == N_ROWS - 6
    other = open_store(root="other")
    run(other)
    assert files(open_store()) == files(other)


def test_the_last_batch_repeats_its_last_image(open_store):
    seen = []

    def compute(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.copy())
        return features(pixels)

    run(open_store(), np.array([5, 6, 7]), compute=compute, batch=8)
    assert np.array_equal(seen[0], np.stack([picture(row) for row in (5, 6, 7, 7, 7, 7, 7, 7)]))


def test_bad_images_are_recorded_and_the_rest_computed(open_store):
    bad = {4: b"no image", 250: FileNotFoundError(errno.ENOENT, "No such file or directory"), **dict.fromkeys(range(300, 400), b"")}
    store, heard = open_store(), []
    done = run(store, dataset=dataset(bad), progress=heard.append)
    good = np.array([row for row in range(N_ROWS) if row not in bad])
    assert done.computed == len(good)
    assert done.complete
    assert set(done.bad) == set(bad)
    assert done.bad[250] == "file not found"
    assert sum(heard) == N_ROWS
    assert np.array_equal(store.take(good), EXPECTED[good])
    # A second run decodes nothing, and knows them.
    nothing_to_read = dataset(dict.fromkeys(range(N_ROWS), RuntimeError("read again")))
    again = run(open_store(), dataset=nothing_to_read)
    assert (again.computed, again.bad) == (0, done.bad)
    assert run(open_store(), np.arange(200, 300), dataset=nothing_to_read).bad == {250: "file not found"}


def test_something_else_than_decoded_pixels_is_computed_from(open_store, tmp_path):
    """Canvases, one line longer than they are wide, as the store keeps them for random augmentation; the picture comes through whole."""

    def make(raw: np.ndarray, row: int) -> np.ndarray:
        return pack(raw, Box(row % 8, row // 8, 1, 1))

    shape = (SIDE + 1, SIDE, 3)
    store = FeatureStore(tmp_path / "canvases", StoreSpec({"model": "m", "cut": "pixels"}, N_ROWS, shape, "uint8", 100))
    shapes = []

    def compute(rows: np.ndarray) -> np.ndarray:
        shapes.append(rows.shape)
        return rows

    done = run(store, compute=compute, make=make, shape=shape)
    assert (done.computed, done.complete) == (N_ROWS, True)
    assert set(shapes) == {(32, *shape)}
    for row, stored in enumerate(store.take(np.arange(N_ROWS))):
        pixels, box = unpack(stored)
        assert np.array_equal(pixels, picture(row))
        assert box == Box(row % 8, row // 8, 1, 1)


def test_only_bad_images(open_store):
    done = run(open_store(), dataset=dataset(dict.fromkeys(range(N_ROWS), b"")))
    assert (done.computed, len(done.bad), done.complete) == (0, N_ROWS, True)


def test_no_rows(open_store):
    done = run(open_store(), np.empty(0, np.int64))
    assert (done.computed, done.bad, done.complete) == (0, {}, True)


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_a_stop_keeps_what_was_computed(open_store, after):
    store, heard = open_store(), []
    done = run(store, progress=heard.append, stop=lambda: len(heard) >= after)
    assert not done.complete
    assert after * 32 <= done.computed < N_ROWS
    assert sum(len(rows) for _, rows in open_store().missing(np.arange(N_ROWS))) == N_ROWS - done.computed
    assert list(store.folder.glob("*.tmp")) == []
    rest = run(open_store())
    assert rest.computed == N_ROWS - done.computed
    other = open_store(root="other")
    run(other)
    assert files(open_store()) == files(other)


@pytest.mark.parametrize("where", ["compute", "read", "shape"])
def test_an_error_comes_out_and_leaves_whole_shards(open_store, where):
    calls = []

    def compute(pixels: np.ndarray) -> np.ndarray:
        calls.append(1)
        if where == "compute" and len(calls) == 10:
            raise RuntimeError("out of memory")
        return features(pixels)[:, : 5 if where == "shape" and len(calls) == 10 else None]

    source = dataset({330: RuntimeError("broken reader")} if where == "read" else None)
    kind, text = (ValueError, "values must be float32") if where == "shape" else (RuntimeError, "out of memory|broken reader")
    with pytest.raises(kind, match=text):
        run(open_store(), compute=compute, dataset=source)
    assert "00000.npy" in files(open_store())
    assert list(open_store().folder.glob("*.tmp")) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("xfer-")] == []
    assert run(open_store()).complete
    assert np.array_equal(open_store().take(np.arange(N_ROWS)), EXPECTED)


def test_a_flipped_byte_is_found_and_rebuilt(open_store):
    run(open_store())
    whole = files(open_store())
    path = open_store().folder / "00003.npy"
    data = bytearray(whole["00003.npy"])
    data[5000] ^= 64
    path.write_bytes(data)
    assert run(open_store()).computed == 100
    assert files(open_store()) == whole


def test_a_cache_that_loses_what_was_written_is_an_error(open_store):
    """Another program deletes the files as fast as we write them: that must end, and say so."""
    store = open_store()

    def compute(pixels: np.ndarray) -> np.ndarray:
        for path in store.folder.glob("*.npy"):
            path.unlink()
        return features(pixels)

    with pytest.raises(StoreError) as caught:
        run(store, compute=compute)
    assert caught.value.message == f"rows that were just written are gone from the feature store {store.folder}, the first is row 0"
    assert caught.value.hint == "is the folder cleared while it is used, or its disk failing? choose another with `runtime.cache`"


# From another store


def test_rows_of_another_store_are_the_input(open_store, tmp_path):
    pixels = FeatureStore(tmp_path / "cache", StoreSpec({"cut": "pixels"}, N_ROWS, (SIDE, SIDE, 3), "uint8", 64))
    run(pixels, dataset=dataset({7: b"no image"}), compute=lambda images: images)
    store, compute, heard = open_store(), Counting(), []
    done = extract_from(store, pixels, np.arange(N_ROWS), compute=compute, batch=32, progress=heard.append)
    assert done.computed == N_ROWS - 1
    assert list(done.bad) == [7]
    assert done.bad == pixels.bad()
    assert set(compute.shapes) == {(32, SIDE, SIDE, 3)}
    assert sum(heard) == N_ROWS
    direct = open_store(root="direct")
    run(direct, dataset=dataset({7: b"no image"}))
    assert files(store) == files(direct)


def test_a_row_that_the_other_store_lacks(open_store, tmp_path):
    pixels = FeatureStore(tmp_path / "cache", StoreSpec({"cut": "pixels"}, N_ROWS, (SIDE, SIDE, 3), "uint8", 64))
    run(pixels, np.arange(10), compute=lambda images: images)
    with pytest.raises(StoreError, match="rows are not in the feature store"):
        extract_from(open_store(), pixels, np.arange(20), compute=features, batch=8)


# Several processes

WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from xfer.data.dataset import Dataset
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.extraction import extract
from xfer.plan.preprocess import Preprocess

root, n_rows, shard_rows, pause, n_bad = Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4]), int(sys.argv[5])

def read(row):
    if row < n_bad:
        return b"no image"
    return np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)

def compute(pixels):
    time.sleep(pause)
    return pixels.astype(np.float32).sum(axis=1).reshape(len(pixels), -1)

data = Dataset(("a",), tuple(map(str, range(n_rows))), np.zeros(n_rows, np.int64), np.full(n_rows, "", "<U5"), read)
store = FeatureStore(root, StoreSpec({"model": "m", "cut": "c"}, n_rows, (24,), "float32", shard_rows))
print("ready", flush=True)
sys.stdin.readline()
done = extract(store, data, np.arange(n_rows), preprocess=Preprocess(resize=8, crop=8), compute=compute, batch=4, threads=1)
assert done.complete
print(done.computed, flush=True)
"""


class Worker:
    """A process that extracts 1,200 rows (unless told otherwise) as soon as it is told to go."""

    def __init__(self, root: Path, *, n_rows: int = 1200, shard_rows: int = 20, pause: float = 0.002, n_bad: int = 3) -> None:
        arguments = [str(root), str(n_rows), str(shard_rows), str(pause), str(n_bad)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def computed(self) -> int:
        text, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0
        return int(text)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def store_of(root: Path, n_rows: int = 1200, shard_rows: int = 20) -> FeatureStore:
    return FeatureStore(root, StoreSpec({"model": "m", "cut": "c"}, n_rows, (24,), "float32", shard_rows))


def contents(root: Path) -> dict[str, bytes]:
    store = store_of(root)
    return {**files(store), "bad.json": (store.folder / "bad.json").read_bytes()}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """What one process alone leaves."""
    worker = Worker(tmp_path / "alone", pause=0)
    worker.go()
    assert worker.computed() == 1197
    return contents(tmp_path / "alone")


def test_three_at_once_share_the_work_and_agree(tmp_path, undisturbed):
    workers = [Worker(tmp_path / "shared", pause=0.01) for _ in range(3)]  # seconds in all: each comes to its turn, on a busy machine too
    for worker in workers:
        worker.go()
    computed = [worker.computed() for worker in workers]
    assert sum(computed) == 1197  # nothing twice
    assert min(computed) > 0
    assert contents(tmp_path / "shared") == undisturbed
    assert list(store_of(tmp_path / "shared").folder.rglob("*.tmp")) == []


def kill_and_resume(root: Path, delays: list[float]) -> None:
    for delay in delays:
        worker = Worker(root)
        worker.go()
        time.sleep(delay)
        worker.kill()
        # Whatever it left, nothing of it is taken for whole that is not.
        store = FeatureStore(root, store_of(root).spec, warn=pytest.fail)
        store.missing(np.arange(1200))
    worker = Worker(root)
    worker.go()
    worker.computed()


def test_killed_and_resumed_equals_undisturbed(tmp_path, undisturbed):
    generator = random.Random(0)
    kill_and_resume(tmp_path / "killed", [generator.uniform(0, 0.6) for _ in range(5)])
    assert contents(tmp_path / "killed") == undisturbed
    assert list(store_of(tmp_path / "killed").folder.rglob("*.tmp")) == []


@pytest.mark.slow
def test_killed_forty_times_equals_undisturbed(tmp_path, undisturbed):
    generator = random.Random(1)
    for number in range(8):
        root = tmp_path / f"killed{number}"
        kill_and_resume(root, [generator.uniform(0, 0.4) for _ in range(5)])
        assert contents(root) == undisturbed


def test_a_killed_process_leaves_its_shards_to_those_who_wait(tmp_path, undisturbed):
    """One takes a window of shards and dies; the other waits for it, then does that part too."""
    slow, quick = Worker(tmp_path / "shared", pause=1), Worker(tmp_path / "shared")
    slow.go()
    store = store_of(tmp_path / "shared")
    while not list(store.folder.glob("*.tmp")):  # its first batch
        assert slow.process.poll() is None
        time.sleep(0.02)
    quick.go()
    window = 140  # the rows of whole shards in which 32 batches of 4 have room; half a minute of work
    while sum(len(rows) for _, rows in store_of(tmp_path / "shared").missing(np.arange(1200))) > window:
        assert quick.process.poll() is None
        time.sleep(0.02)
    assert quick.process.poll() is None  # it waits
    slow.kill()
    assert quick.computed() > 1197 - window
    assert contents(tmp_path / "shared") == undisturbed


def test_a_waiting_process_can_be_stopped(open_store):
    store, other = open_store(), open_store()
    claim = other.claim(0)
    waiting: list[int] = []

    def stop() -> bool:
        """Asked for the fourth time since nothing is left but what the other has."""
        missing = open_store().missing(np.arange(N_ROWS))
        waiting.extend(shard for shard, _ in missing if len(missing) == 1)
        return len(waiting) > 3

    done = run(store, stop=stop)
    assert waiting == [0] * 4
    assert (done.computed, done.complete) == (N_ROWS - 100, False)
    claim.release()
    assert run(store).complete


FULL = """
import subprocess, sys, shutil
from pathlib import Path
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(folder)], check=True)
import numpy as np
from xfer.data.dataset import Dataset
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.extraction import extract
from xfer.errors import DiskFullError
from xfer.plan.preprocess import Preprocess
n = 100
splits = np.full(n, "", "<U5")
data = Dataset(("a",), tuple(map(str, range(n))), np.zeros(n, np.int64), splits, lambda row: np.full((8, 8, 3), row, np.uint8))
spec = StoreSpec({"model": "m", "cut": "c"}, n, (8192,), "float32", 10)
def run():
    return extract(FeatureStore(folder, spec), data, np.arange(n), preprocess=Preprocess(resize=8, crop=8), batch=8, threads=1,
                   compute=lambda pixels: np.repeat(pixels[:, 0, 0, :1], 8192, axis=1).astype(np.float32))
try:
    run()
except DiskFullError as error:
    print(error.message.rpartition(", ")[0])
store = FeatureStore(folder, spec)
print(sum(len(rows) for _, rows in store.missing(np.arange(n))), list(store.folder.rglob("*.tmp")))
subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
print(run().computed, (FeatureStore(folder, spec).take(np.arange(n))[:, 0] == np.arange(n)).all())
"""


def test_a_full_disk_keeps_whole_shards_and_goes_on_with_room(tmp_path):
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"this system allows no mounts of one's own: {probe.stderr.decode().strip()}")
    done = subprocess.run(["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    message, left, end = done.stdout.splitlines()
    folder = tmp_path / "features" / StoreSpec({"model": "m", "cut": "c"}, 100, (8192,), "float32", 10).digest
    assert message == f"no room left in the cache: {folder}/00004.npy needs 327.9 kB"
    assert left == "60 []"
    assert end == "60 True"


def test_decoding_agrees_with_decode_itself(open_store, tmp_path):
    """Encoded files, larger than the crop: what arrives is what `decode` makes of each."""
    encoded = {}
    for row in range(N_ROWS):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (9 + row % 5, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded[row] = buffer.getvalue()
    store = FeatureStore(tmp_path / "cache", StoreSpec({"cut": "pixels"}, N_ROWS, (SIDE, SIDE, 3), "uint8", 64))
    run(store, dataset=dataset(dict(encoded)), compute=lambda images: images, threads=4)
    assert np.array_equal(store.take(np.arange(N_ROWS)), np.stack([decode(encoded[row], PREPROCESS) for row in range(N_ROWS)]))
