"""The feature store as its users see it: what is missing, what was written, what damage does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xfer.data.store import FeatureStore, StoreSpec
from xfer.data.store_shard import DamageError
from xfer.errors import StoreError

KEY = {"model": "torchvision/resnet18", "cut": "pooled", "contents": "abc"}
Open = Callable[..., FeatureStore]


@pytest.fixture
def warnings_heard() -> list[str]:
    return []


@pytest.fixture
def open_store(tmp_path: Path, warnings_heard: list[str]) -> Open:
    """A store of 50 rows in shards of 16 (the last has 2), as a process sees it that starts now."""

    def open_it(rows: int = 50, shape: tuple[int, ...] = (3, 5), dtype: str = "float32", shard_rows: int = 16) -> FeatureStore:
        return FeatureStore(tmp_path / "cache", StoreSpec(KEY, rows, shape, dtype, shard_rows), warn=warnings_heard.append)

    return open_it


def values_of(rows: np.ndarray, spec: StoreSpec) -> np.ndarray:
    """Values that only the row's number decides."""
    drawn = [np.random.default_rng(row).integers(0, 200, spec.shape) for row in rows.tolist()]
    return np.array(drawn).reshape(len(rows), *spec.shape).astype(spec.numpy_dtype)


def fill(store: FeatureStore, rows: np.ndarray) -> None:
    for shard, some in store.missing(rows):
        store.write(shard, some, values_of(some, store.spec))


def shown(missing: list[tuple[int, np.ndarray]]) -> dict[int, list[int]]:
    return {shard: rows.tolist() for shard, rows in missing}


def test_nothing_is_made_before_the_first_write(open_store, tmp_path):
    store = open_store()
    assert shown(store.missing(np.array([49, 3, 3, 17]))) == {0: [3], 1: [17], 3: [49]}
    assert store.bad() == {}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2)])
def test_rows_come_back_in_any_order(open_store, dtype, shape):
    store = open_store(dtype=dtype, shape=shape)
    fill(store, np.arange(50))
    again = open_store(dtype=dtype, shape=shape)
    assert again.missing(np.arange(50)) == []
    for rows in ([], [49], [0, 1, 2, 15, 16, 17], [49, 3, 3, 48, 0, 31, 32], list(range(50)), list(range(49, -1, -1)) * 40):
        taken = again.take(np.array(rows, np.int64))
        assert taken.dtype == store.spec.numpy_dtype
        assert np.array_equal(taken, values_of(np.array(rows, np.int64), store.spec))


def test_a_taken_array_is_a_copy_that_may_be_written(open_store):
    store = open_store()
    fill(store, np.arange(50))
    taken = store.take(np.arange(16))
    taken[:] = -1
    assert np.array_equal(store.take(np.arange(16)), values_of(np.arange(16), store.spec))


def test_plain_numpy_reads_a_shard(open_store):
    store = open_store(dtype="bfloat16")
    fill(store, np.arange(50))
    for mode in (None, "r"):
        assert np.array_equal(np.load(store.folder / "00003.npy", mmap_mode=mode), values_of(np.array([48, 49]), store.spec))
    assert np.load(store.folder / "00003.npy").dtype == np.uint16


def test_only_rows_asked_for_are_there_and_more_can_be_added(open_store):
    store = open_store()
    fill(store, np.array([1, 5, 17]))
    other = open_store()
    assert shown(other.missing(np.arange(20))) == {0: [0, 2, 3, 4, *range(6, 16)], 1: [16, 18, 19]}
    fill(other, np.array([2, 40]))
    # The first one sees what the other wrote, and keeps what it had.
    assert shown(store.missing(np.array([1, 2, 3, 5, 17, 40]))) == {0: [3]}
    assert np.array_equal(store.take(np.array([5, 2, 17, 40, 1])), values_of(np.array([5, 2, 17, 40, 1]), store.spec))


def test_bytes_do_not_depend_on_the_order_of_writing(open_store, tmp_path):
    fill(open_store(), np.arange(50))
    whole = {path.name: path.read_bytes() for path in open_store().folder.glob("*.npy")}
    shutil.rmtree(tmp_path / "cache")
    for rows in ([3, 40, 16], [0, 1, 49], list(range(50))):
        fill(open_store(), np.array(rows))
    assert {path.name: path.read_bytes() for path in open_store().folder.glob("*.npy")} == whole


def test_absent_rows_take_no_room(open_store):
    store = open_store(rows=4096, shape=(4096,), shard_rows=4096)
    store.write(0, np.array([7]), np.ones((1, 4096), np.float32))
    status = (store.folder / "00000.npy").stat()
    assert status.st_size > 64e6
    assert status.st_blocks * 512 < 1e6


def test_taking_an_absent_row_says_so(open_store):
    store = open_store()
    fill(store, np.arange(10))
    with pytest.raises(StoreError) as caught:
        store.take(np.array([3, 12, 11, 20]))
    assert caught.value.message == f"3 rows are not in the feature store {store.folder}, the first is row 12"
    assert caught.value.hint == "run it again: whatever is missing is computed"


def test_rows_outside_are_refused(open_store):
    with pytest.raises(IndexError, match=r"^rows must lie in 0..49, not -1..3$"):
        open_store().missing(np.array([-1, 3]))
    with pytest.raises(IndexError, match=r"^rows must lie in 0..49, not 50..50$"):
        open_store().take(np.array([50]))


def test_wrong_values_are_refused_and_nothing_stays(open_store):
    store = open_store()
    with pytest.raises(ValueError, match=r"^values must be float32 \(2, 3, 5\), not float64 \(2, 3, 5\)$"):
        store.write(0, np.array([0, 1]), np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match=r"^values must be float32 \(2, 3, 5\), not float32 \(1, 3, 5\)$"):
        store.write(0, np.array([0, 1]), np.zeros((1, 3, 5), np.float32))
    with pytest.raises(IndexError, match=r"^rows 15..16 are not all in shard 0$"):
        store.write(0, np.array([15, 16]), np.zeros((2, 3, 5), np.float32))
    with pytest.raises(IndexError, match=r"^shards are 0..3, not 4$"):
        store.claim(4)
    assert [path.name for path in store.folder.iterdir() if path.suffix in (".npy", ".tmp")] == []


def test_the_key_decides_the_folder(tmp_path):
    spec = StoreSpec(KEY, 50, (4,), "float32", 16)
    others = [
        StoreSpec({**KEY, "contents": "abd"}, 50, (4,), "float32", 16),
        StoreSpec(KEY, 51, (4,), "float32", 16),
        StoreSpec(KEY, 50, (4, 1), "float32", 16),
        StoreSpec(KEY, 50, (4,), "bfloat16", 16),
        StoreSpec(KEY, 50, (4,), "float32", 17),
    ]
    assert len({spec.digest, *(other.digest for other in others)}) == 6
    assert StoreSpec(dict(reversed(KEY.items())), 50, (4,), "float32", 16).digest == spec.digest
    # Pinned: a change would make every cache out there useless, and must be meant.
    assert spec.digest == "ac06b9d6713a009b427efd5150e5a814"


def test_a_spec_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"^dtype must be one of uint8, float32, float16, bfloat16, not 'int8'$"):
        StoreSpec(KEY, 5, (4,), "int8", 16)
    with pytest.raises(ValueError, match=r"^rows, shard_rows and shape must be positive: 5, 0, \(4,\)$"):
        StoreSpec(KEY, 5, (4,), "uint8", 0)


def test_the_manifest_is_readable(open_store):
    store = open_store()
    fill(store, np.arange(3))
    manifest = json.loads((store.folder / "manifest.json").read_text())
    created = manifest.pop("created")
    assert len(created) == len("2026-01-01T00:00:00Z")
    assert manifest == {"digest": store.digest, "format": 1, "key": KEY, "rows": 50, "shape": [3, 5], "dtype": "float32", "shard_rows": 16}


def test_bad_rows_are_remembered_and_not_missing(open_store):
    store = open_store()
    store.mark_bad({3: "truncated file"})
    other = open_store()
    other.mark_bad({17: "not an image", 3: "truncated file"})
    assert store.bad() == {3: "truncated file", 17: "not an image"}
    assert shown(store.missing(np.array([2, 3, 4, 17]))) == {0: [2, 4]}
    (store.folder / "bad.json").write_text('{"3": "trunc')  # damaged: the rows are simply tried again
    assert store.bad() == {}


# Damage


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


def another_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(16, 3, 5)", b"(16, 5, 3)"))


def another_shard(path: Path) -> None:
    shutil.copy(path.with_name("00000.npy"), path)


DAMAGE = {
    "flipped header": (lambda path: flip(path, 30), "has a wrong shape or data type"),
    "flipped value": (lambda path: flip(path, 200), "has a wrong checksum"),
    "flipped last value": (lambda path: flip(path, 128 + 16 * 60 - 1), "has a wrong checksum"),
    "flipped presence": (lambda path: flip(path, 128 + 16 * 60), "has a wrong checksum"),
    "flipped trailer": (lambda path: flip(path, -1), "has a wrong checksum"),
    "truncated": (cut_short, "has 567 bytes instead of 1134"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes instead of 1134"),
    "longer": (lengthen, "has 1135 bytes instead of 1134"),
    "another shape": (another_shape, "has a wrong shape or data type"),
    "another shard": (another_shard, "belongs to another store"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_noticed_once_and_rebuilt(open_store, warnings_heard, name):
    damage, reason = DAMAGE[name]
    fill(open_store(), np.arange(50))
    path = open_store().folder / "00001.npy"
    whole = path.read_bytes()
    damage(path)
    store = open_store()
    for _ in range(2):
        assert shown(store.missing(np.array([3, 20, 31, 49]))) == {1: [20, 31]}
    assert warnings_heard == [f"the cache file {path} {reason}; its rows are computed again"]
    fill(store, np.arange(50))
    assert path.read_bytes() == whole
    assert np.array_equal(store.take(np.arange(50)), values_of(np.arange(50), store.spec))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed_by_take_too(open_store, warnings_heard, name):
    fill(open_store(), np.arange(50))
    DAMAGE[name][0](open_store().folder / "00001.npy")
    store = open_store()
    assert np.array_equal(store.take(np.array([0, 40])), values_of(np.array([0, 40]), store.spec))
    with pytest.raises(StoreError, match="^1 rows are not in the feature store"):
        store.take(np.array([0, 17]))
    assert len(warnings_heard) == 1


def test_a_flipped_bit_in_any_byte_is_found(open_store):
    """A whole small shard, one bit of each byte."""
    store = open_store(rows=3, shape=(2,), dtype="uint8", shard_rows=4)
    fill(store, np.array([0, 2]))
    path = store.folder / "00000.npy"
    whole = path.read_bytes()
    layout = store.spec.shard_format(store.digest, 0)
    assert layout.verify(path)[0].tolist() == [True, False, True]
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DamageError):
            layout.verify(path)


def test_a_damaged_manifest_is_written_again(open_store):
    fill(open_store(), np.arange(3))
    path = open_store().folder / "manifest.json"
    for text in ("", "{", "[]", '{"key": {}}', '"text"'):
        path.write_text(text)
        store = open_store()
        store.claim(0).release()
        assert f'"digest": "{store.digest}"' in path.read_text()


def test_a_store_that_is_deleted_under_a_reader(open_store):
    store = open_store()
    fill(store, np.arange(50))
    expected = store.take(np.arange(16))
    shutil.rmtree(store.folder)
    assert np.array_equal(store.take(np.arange(16)), expected)  # what is mapped stays
    with pytest.raises(StoreError) as caught:
        store.take(np.array([20]))
    assert caught.value.message == f"the cache file {store.folder}/00001.npy was removed while it was in use"
    assert shown(store.missing(np.array([0, 20]))) == {0: [0], 1: [20]}
    fill(store, np.arange(50))
    assert np.array_equal(store.take(np.arange(16)), expected)


# Several at once


def test_a_claim_keeps_others_out_until_it_is_given_back(open_store):
    store, other = open_store(), open_store()
    claim = store.claim(1)
    assert other.claim(1) is None
    assert store.claim(1) is None
    assert other.claim(2) is not None
    claim.release()
    assert other.claim(1) is not None


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(open_store):
    store = open_store()
    living = store.claim(0)
    living.put(np.array([1]), values_of(np.array([1]), store.spec))
    for name in ("00001.npy.0123456789ab.tmp", "bad.json.0123456789ab.tmp", "manifest.json.0123456789ab.tmp"):
        (store.folder / name).write_bytes(b"half")
    open_store().claim(2).release()
    assert [path.name.partition(".")[0] for path in store.folder.glob("*.tmp")] == ["00000"]
    living.commit()
    assert list(store.folder.glob("*.tmp")) == []
    assert np.array_equal(open_store().take(np.array([1])), values_of(np.array([1]), store.spec))


def test_a_claim_that_is_left_changes_nothing(open_store):
    store = open_store()
    fill(store, np.array([1]))
    before = (store.folder / "00000.npy").read_bytes()
    with store.claim(0) as claim:
        claim.put(np.array([2]), values_of(np.array([2]), store.spec))
    assert (store.folder / "00000.npy").read_bytes() == before
    assert list(store.folder.glob("*.tmp")) == []


def test_threads_read_while_shards_are_added(open_store):
    store = open_store(rows=800)
    fill(store, np.arange(0, 800, 2))
    expected = values_of(np.arange(800), store.spec)
    store._n_maps = 3  # maps come and go
    wrong = []

    def read(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(150):
            rows = generator.integers(0, 400, 32) * 2
            if not np.array_equal(store.take(rows), expected[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    writer = open_store(rows=800)
    fill(writer, np.arange(800))
    store.missing(np.arange(800))
    for thread in threads:
        thread.join()
    assert wrong == []
    assert np.array_equal(store.take(np.arange(800)), expected)


operation = st.one_of(
    st.tuples(st.just("write"), st.sets(st.integers(0, 39), min_size=1)),
    st.tuples(st.just("damage"), st.sets(st.integers(0, 3), min_size=1, max_size=1)),
    st.tuples(st.just("bad"), st.sets(st.integers(0, 39), max_size=3)),
    st.tuples(st.just("reopen"), st.just(frozenset())),
)


def zero_checksum(path: Path) -> None:
    """Damage that a second time does not undo, with another modification time whatever the clock's tick."""
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(operation, max_size=12))
def test_any_history_agrees_with_a_plain_set(tmp_path_factory, operations):
    spec = StoreSpec(KEY, 40, (3,), "float32", 11)
    root = tmp_path_factory.mktemp("history")
    store = FeatureStore(root, spec, warn=lambda text: None)
    there, bad = set(), set()
    for name, chosen in operations:
        if name == "write":
            fill(store, np.array(sorted(chosen)))
            there |= chosen - bad
        elif name == "damage":
            shard = min(chosen)
            path = store.folder / f"{shard:05d}.npy"
            if path.exists():
                zero_checksum(path)
                there -= set(range(shard * 11, shard * 11 + 11))
        elif name == "bad":
            store.mark_bad(dict.fromkeys(chosen, "unreadable"))
            bad |= chosen
        else:
            store = FeatureStore(root, spec, warn=lambda text: None)
        missing = {row for _, rows in store.missing(np.arange(40)) for row in rows.tolist()}
        assert missing == set(range(40)) - there - bad
        rows = np.array(sorted(there), np.int64)
        assert np.array_equal(store.take(rows), values_of(rows, spec))


# Memory

MEMORY = """
import sys
import numpy as np
from pathlib import Path
from xfer.data.store import FeatureStore, StoreSpec

def anonymous_mb():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

spec = StoreSpec({"model": "m", "cut": "c"}, 2048, (50176,), "float32", 512)  # 411 MB, 103 MB a shard
before = peak = anonymous_mb()
store = FeatureStore(Path(sys.argv[1]), spec)
for shard, rows in store.missing(np.arange(2048)):
    with store.claim(shard) as claim:
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            claim.put(some, np.repeat(some[:, None], 50176, axis=1).astype(np.float32))
            peak = max(peak, anonymous_mb())
        claim.commit()
store.close()
store = FeatureStore(Path(sys.argv[1]), spec)
assert store.missing(np.arange(2048)) == []
order = np.random.default_rng(0).permutation(2048)
for start in range(0, 2048, 32):
    rows = order[start : start + 32]
    taken = store.take(rows)
    assert (taken[:, 0] == rows).all() and (taken[:, -1] == rows).all()
    peak = max(peak, anonymous_mb())
print(peak - before)
"""


def test_a_store_is_never_loaded_into_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # MB, for a store of 411; a batch of 32 rows is 6.4, in float64 and int64 on the way 26
