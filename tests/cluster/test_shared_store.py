"""One store for many nodes: the same bytes in every cache and in the shared place, nothing twice, nothing trusted unseen, nothing lost."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xfer.cluster import shared_store
from xfer.cluster.shared_store import SharedStore, opener
from xfer.cluster.storage import Storage
from xfer.data.dataset import Dataset
from xfer.data.store import FeatureStore, StoreSpec
from xfer.engine.extraction import Extraction, extract
from xfer.plan.preprocess import Preprocess

N_ROWS, SIDE, SHARD_ROWS = 95, 4, 10
N_SHARDS = 10
ALL = np.arange(N_ROWS)
SPEC = StoreSpec({"model": "m", "cut": "c"}, N_ROWS, (SIDE * 3,), "float32", SHARD_ROWS)
BAD = {7: b"no image", 63: b"", **dict.fromkeys(range(80, 90), b"")}  # a whole shard among them


def features(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32).sum(axis=1).reshape(len(pixels), -1)


def dataset(read: Callable[[int], object] | None = None) -> Dataset:
    def picture(row: int) -> object:
        return BAD.get(row, np.random.default_rng(row).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

    keys = tuple(map(str, ALL))
    return Dataset(("a", "b"), keys, np.zeros(N_ROWS, np.int64), np.full(N_ROWS, "", "<U5"), read or picture)  # type: ignore[arg-type]


def unread(row: int) -> object:
    raise AssertionError(f"row {row} was read")


def run(store: FeatureStore, rows: np.ndarray = ALL, **options: Any) -> Extraction:
    settings: dict[str, Any] = {"preprocess": Preprocess(resize=SIDE, crop=SIDE), "compute": features, "batch": 4, "threads": 1, **options}
    return extract(store, settings.pop("dataset", None) or dataset(), rows, **settings)


@pytest.fixture(autouse=True)
def listed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_store, "LISTED_SECONDS", 0.02)


@pytest.fixture(params=["path", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder, and object stores: in memory, and over a network."""
    if request.param == "s3":
        return Storage.of(request.getfixturevalue("s3").bucket("/xfer"))
    return Storage.of(str(tmp_path / "shared") if request.param == "path" else f"memory://bucket-{uuid.uuid4().hex}/xfer")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage.of(str(tmp_path / "shared"))


@pytest.fixture
def local(tmp_path: Path) -> dict[str, bytes]:
    """The files of a store that one process filled, with no shared place."""
    store = FeatureStore(tmp_path / "local", SPEC)
    run(store)
    return files(store)


def files(store: FeatureStore) -> dict[str, bytes]:
    """Shards and bad rows in a node's cache."""
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir()) if path.name == "bad.json" or path.suffix == ".npy"}


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".npy")}


def shared(store: SharedStore) -> dict[str, bytes]:
    """Shards in the shared place."""
    names = [name for name in sorted(store.shared.sizes()) if name.endswith(".npy")]
    return {name: store.shared.read(name) or b"" for name in names}


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., SharedStore]:
    """The store as a node of this name sees it."""

    def open_it(name: str, storage: Storage, **options: Any) -> SharedStore:
        options.setdefault("warn", pytest.fail)
        return SharedStore(tmp_path / name, SPEC, storage=storage, **options)

    return open_it


def test_what_one_node_computed_another_copies(node, storage, local):
    first = node("a", storage)
    done = run(first)
    assert (done.computed, len(done.bad)) == (N_ROWS - len(BAD), len(BAD))
    assert files(first) == local
    assert shared(first) == shards(local)
    assert json.loads(first.shared.read("manifest.json"))["digest"] == SPEC.digest
    second = node("b", storage)
    again = run(second, dataset=dataset(unread))
    assert (again.computed, again.bad) == (0, done.bad)
    assert files(second) == local
    assert (first.pushed, second.pulled) == (N_SHARDS - 1, N_SHARDS - 1)
    assert (first.pulled, second.pushed) == (0, 0)
    assert np.array_equal(second.take(np.array([94, 3])), first.take(np.array([94, 3])))
    # Nothing is copied twice.
    assert run(node("b", storage)).computed == 0
    assert node("b", storage).pulled == 0


def test_what_a_node_had_before_goes_up(node, storage, local, tmp_path):
    """A cache that was filled by a run without a shared place; the others compute nothing."""
    run(FeatureStore(tmp_path / "a", SPEC))
    assert run(node("a", storage), dataset=dataset(unread)).computed == 0
    second = node("b", storage)
    assert run(second, dataset=dataset(unread)).computed == 0
    assert files(second) == local


def test_parts_of_a_shard_come_together(node, storage, local):
    """Two nodes that were asked for different rows, each pushing its own; neither loses the other's."""
    one, two = node("a", storage), node("b", storage)
    run(one, ALL[::2])
    assert run(two, ALL[1::2]).computed == sum(row not in BAD for row in ALL[1::2].tolist())
    assert shared(two) == shards(local)
    assert run(node("a", storage), dataset=dataset(unread)).computed == 0
    assert files(one) == local
    third = node("c", storage)
    assert run(third, dataset=dataset(unread)).computed == 0
    assert files(third) == local


def test_a_cache_with_other_rows_than_the_shared_place(node, storage, local, tmp_path):
    run(FeatureStore(tmp_path / "a", SPEC), ALL[::2])
    run(node("b", storage), ALL[1::2])
    one = node("a", storage)
    assert run(one, dataset=dataset(unread)).computed == 0
    assert files(one) == local
    assert shared(one) == shards(local)


@pytest.mark.parametrize("where", [200, -60, -1])
def test_damage_in_the_shared_place_is_computed_again(node, folder, local, where):
    """In the rows, in the bits that say which are there, in the checksum."""
    run(node("a", folder))
    path = folder.path / "store" / SPEC.digest / "00003.npy"
    data = bytearray(path.read_bytes())
    data[where] ^= 64
    path.write_bytes(data)
    told: list[str] = []
    second = node("b", folder, warn=told.append)
    assert run(second).computed == SHARD_ROWS
    assert told == [f"{folder}/store/{SPEC.digest}/00003.npy has a wrong checksum; its rows are computed again"]
    assert files(second) == local
    assert shared(second) == shards(local)
    third = node("c", folder)
    assert run(third, dataset=dataset(unread)).computed == 0


@pytest.mark.parametrize(("length", "words"), [(0, "is cut off"), (300, "is cut off"), (620, "has 620 bytes instead of 654")])
def test_a_shard_that_was_cut_off(node, storage, local, length, words):
    first = node("a", storage)
    run(first)
    first.shared.write("00003.npy", local["00003.npy"][:length])
    told: list[str] = []
    second = node("b", storage, warn=told.append)
    assert run(second).computed == SHARD_ROWS
    assert told == [f"{second.shared.inside('00003.npy')} {words}; its rows are computed again"]
    assert shared(second) == shards(local)


def test_a_shard_of_another_store_under_its_name(node, folder, local):
    first = node("a", folder)
    run(first)
    first.shared.write("00003.npy", local["00004.npy"])
    told: list[str] = []
    assert run(node("b", folder, warn=told.append)).computed == SHARD_ROWS
    assert told == [f"{folder}/store/{SPEC.digest}/00003.npy belongs to another store; its rows are computed again"]


def test_bad_rows_of_two_writers_are_both_kept(node, storage):
    """Both looked before either wrote."""
    one, two = node("a", storage), node("b", storage)
    one.missing(ALL)
    two.missing(ALL)
    threads = [threading.Thread(target=each.mark_bad, args=({row: "no image"},)) for each, row in ((one, 1), (two, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rows for _, rows in node("c", storage).missing(np.array([1, 2, 3]))] == [3]
    assert len([name for name in one.shared.sizes() if name.startswith("bad-00000-")]) == 2


def test_bad_rows_that_cannot_be_understood_are_tried_again(node, storage):
    first = node("a", storage)
    run(first)
    name = next(name for name in first.shared.sizes() if name.startswith("bad-00006-"))
    first.shared.write(name, b"{")
    assert set(run(node("b", storage)).bad) == set(BAD)


# Several at once


def together(stores: list[SharedStore], rows: np.ndarray = ALL, **options: Any) -> list[Extraction]:
    """Each in a thread, as ranks would be in processes."""
    results: dict[int, Extraction] = {}

    def go(number: int) -> None:
        results[number] = run(stores[number], rows, **options)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return [results[number] for number in range(len(stores))]


def lacking_at_first(store: SharedStore) -> list[int]:
    """How many rows the store lacked when it was first asked, once it was: others may have brought some already."""
    first, missing = list[int](), store.missing

    def asked(rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        found = missing(rows)
        if not first:
            first.append(sum(len(part) for _, part in found))
        return found

    store.missing = asked  # type: ignore[method-assign]
    return first


def ranks(storage: Storage, tmp_path: Path, caches: tuple[str, ...], **options: Any) -> list[SharedStore]:
    size = len(caches)
    stores = [opener(storage, rank=rank, size=size, **options)(tmp_path / cache, SPEC) for rank, cache in enumerate(caches)]
    assert all(isinstance(store, SharedStore) for store in stores)
    return stores  # type: ignore[return-value]


@pytest.mark.parametrize("caches", [("a", "b", "c"), ("a", "a", "b"), ("a", "a")])
def test_ranks_share_the_work(storage, local, tmp_path, caches):
    """On nodes of their own, or two on one: nothing twice, and every cache is whole in the end."""
    stores = ranks(storage, tmp_path, caches)
    heard: list[int] = []
    lacked = [lacking_at_first(store) for store in stores]
    done = together(stores, progress=heard.append)
    assert sum(each.computed for each in done) == N_ROWS - len(BAD)
    assert min(each.computed for each in done) > 0
    assert all(each.complete and set(each.bad) == set(BAD) for each in done)
    assert max(lacked) == [N_ROWS]
    assert sum(heard) == sum(map(sum, lacked))
    for store in stores:
        assert files(store) == local
    assert shared(stores[0]) == shards(local)


def test_ranks_go_on_where_a_lost_group_ended(storage, local, tmp_path):
    """Three computed a part and are gone with one node's cache; two of them, on what is left and a new node, do the rest."""
    counts: list[int] = []
    first = ranks(storage, tmp_path, ("a", "b", "c"))
    before = together(first, stop=lambda: len(counts) > 6, progress=counts.append)
    computed = sum(each.computed for each in before)
    assert 0 < computed < N_ROWS - len(BAD)
    assert first[0].absent(ALL)
    done = together(ranks(storage, tmp_path, ("a", "d")))
    assert computed + sum(each.computed for each in done) == N_ROWS - len(BAD)  # partial shards went up too
    assert shared(ranks(storage, tmp_path, ("a",))[0]) == shards(local)


def test_a_rank_waits_for_the_others_and_hears_a_stop(folder, tmp_path):
    """The other rank never comes: this one computes its half, and ends when it is told to."""
    stopped = threading.Event()
    store = ranks(folder, tmp_path, ("a", "b"))[0]
    result: list[Extraction] = []
    thread = threading.Thread(target=lambda: result.append(run(store, stop=stopped.is_set)))
    thread.start()
    deadline = time.monotonic() + 120
    while len(shared(store)) < 4 and time.monotonic() < deadline:  # of five, one is bad as a whole
        time.sleep(0.05)
    assert sorted(shared(store)) == ["00000.npy", "00002.npy", "00004.npy", "00006.npy"]
    assert thread.is_alive()
    stopped.set()
    thread.join(120)
    assert not thread.is_alive()
    assert not result[0].complete


def test_a_damaged_shard_of_another_rank_is_computed_by_whoever_finds_it(folder, local, tmp_path):
    """Its owner has a whole copy in its own cache and would never make it anew."""
    stores = ranks(folder, tmp_path, ("a", "b"))
    together(stores)
    path = folder.path / "store" / SPEC.digest / "00000.npy"  # of rank 0
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    rank0, rank1 = ranks(folder, tmp_path, ("a", "c"))
    done = together([rank0, rank1])
    assert [each.computed for each in done] == [0, SHARD_ROWS - 1]
    assert shared(rank1) == shards(local)


def test_a_stop_while_features_are_copied(node, storage, monkeypatch):
    """It ends as a stop amid an extraction does, so that all ranks hear of it at the same place."""
    run(node("a", storage))
    monkeypatch.setattr(shared_store, "COPIES", 1)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    second = node("b", storage, stop=stop)
    assert len(second.missing(ALL)) == N_SHARDS - 1 - 4
    assert second.pulled == 4
    assert not run(second, stop=stop).complete


def test_processes_of_a_node_may_copy_at_once(node, storage, local):
    run(node("a", storage))
    stores = [node("b", storage) for _ in range(4)]
    assert [each.computed for each in together(stores, dataset=dataset(unread))] == [0] * 4
    assert sum(store.pulled for store in stores) == N_SHARDS - 1
    assert files(stores[0]) == local
    assert list(stores[0].folder.rglob("*.tmp")) == []


def test_without_a_shared_place_it_is_the_cache_alone(tmp_path):
    assert opener(None, rank=1, size=4) is FeatureStore


def test_what_is_absent_is_asked_of_the_shared_place(node, storage):
    store = node("a", storage)
    assert sum(len(rows) for _, rows in store.absent(ALL)) == N_ROWS
    run(store, ALL[:25])
    absent = node("b", storage).absent(ALL)
    assert [shard for shard, _ in absent] == list(range(2, N_SHARDS))
    assert absent[0][1].tolist() == [25, 26, 27, 28, 29]
    run(store)
    other = node("b", storage)
    assert (other.absent(ALL), other.pulled, shards(files(other))) == ([], 0, {})
