from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest

import xfer.data.digests
from xfer.data.dataset import Dataset, FileReader
from xfer.data.digests import ABSENT, content_digests, listing_digest
from xfer.errors import DiskFullError, StoreError

LONG_AGO = 1_600_000_000


@pytest.fixture
def files(tmp_path):
    """Makes a dataset of files that were written long ago, and counts how often each is read."""

    def make(contents, *, settled=True):
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        paths = []
        for number, content in enumerate(contents):
            path = folder / f"{number}.jpg"
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
                if settled:
                    os.utime(path, (LONG_AGO + number, LONG_AGO + number))
            paths.append(str(path))
        return dataset(paths)

    def dataset(paths):
        reader = FileReader(tuple(paths))
        read = []

        def reading(row):
            read.append(row)
            return reader(row)

        n = len(paths)
        made = Dataset(("a", "b"), tuple(map(os.path.basename, paths)), np.arange(n) % 2, np.full(n, ""), reading, reader.stamp)
        return made, read

    return make


def test_of_files(files):
    dataset, _ = files([b"one", b"two"])
    assert content_digests(dataset, cache=None, threads=2) == [blake2b(raw, digest_size=16).hexdigest() for raw in (b"one", b"two")]


def test_of_arrays(draw, in_memory):
    grey = draw(8, 8, grey=True)
    digests = content_digests(in_memory([draw(8, 8), draw(8, 8), grey, grey.reshape(4, 16)]), cache=None, threads=1)
    assert digests[0] == digests[1]
    assert len({*digests}) == 3
    assert all(len(digest) == 32 for digest in digests)


def test_the_cache_saves_reading(files, tmp_path):
    dataset, read = files([b"one", b"two", b"three"])
    first = content_digests(dataset, cache=tmp_path, threads=2)
    assert sorted(read) == [0, 1, 2]
    assert content_digests(dataset, cache=tmp_path, threads=2) == first
    assert len(read) == 3


def test_a_changed_file_is_read_again(files, tmp_path):
    before = content_digests(files([b"one", b"two"])[0], cache=tmp_path, threads=1)
    dataset, read = files([b"one", b"TWO"])
    os.utime(tmp_path / "files/1.jpg", (LONG_AGO + 99, LONG_AGO + 99))
    after = content_digests(dataset, cache=tmp_path, threads=1)
    assert read == [1]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_file_of_another_size_with_the_old_time_is_read_again(files, tmp_path):
    content_digests(files([b"one", b"two"])[0], cache=tmp_path, threads=1)
    dataset, read = files([b"one", b"longer"])
    content_digests(dataset, cache=tmp_path, threads=1)
    assert read == [1]


def test_a_file_written_just_now_is_not_trusted_to_stay(files, tmp_path):
    dataset, read = files([b"one"], settled=False)
    content_digests(dataset, cache=tmp_path, threads=1)
    content_digests(dataset, cache=tmp_path, threads=1)
    assert read == [0, 0]


def test_an_unreadable_file_counts_once_it_can_be_read(files, tmp_path):
    dataset, read = files([b"one", b"two"])
    path = tmp_path / "files/1.jpg"
    path.rename(tmp_path / "away")
    assert content_digests(dataset, cache=tmp_path, threads=1)[1] == ABSENT
    (tmp_path / "away").rename(path)
    assert content_digests(dataset, cache=tmp_path, threads=1)[1] == blake2b(b"two", digest_size=16).hexdigest()
    assert read == [0, 1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": 3}', '{"x": [1, 2]}'])
def test_a_cache_that_makes_no_sense_is_an_empty_one(files, tmp_path, text):
    dataset, read = files([b"one", b"two"])
    expected = content_digests(dataset, cache=tmp_path, threads=1)
    (file,) = (tmp_path / "digests").iterdir()
    file.write_text(text)
    assert content_digests(dataset, cache=tmp_path, threads=1) == expected
    assert len(read) == 4
    assert len(json.loads(file.read_text())) >= 2


def test_digests_are_kept_as_they_come(files, tmp_path, monkeypatch):
    monkeypatch.setattr(xfer.data.digests, "BLOCK", 2)
    dataset, read = files([b"0", b"1", b"2", b"3", b"4"])
    stopped = KeyboardInterrupt()

    def reading(row):
        if row == 3:
            raise stopped
        return dataset.read(row)

    interrupted = Dataset(dataset.classes, dataset.keys, dataset.labels, dataset.splits, reading, dataset.stamp)
    with pytest.raises(KeyboardInterrupt):
        content_digests(interrupted, cache=tmp_path, threads=1)
    read.clear()
    content_digests(dataset, cache=tmp_path, threads=1)
    assert read == [2, 3, 4]


def test_names_that_are_not_unicode(tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.jpg"))
    with open(path, "wb") as file:
        file.write(b"x")
    os.utime(path, (LONG_AGO, LONG_AGO))
    reader = FileReader((path,))
    dataset = Dataset(("a", "b"), ("x",), np.array([0]), np.array([""]), reader, reader.stamp)
    assert content_digests(dataset, cache=tmp_path, threads=1) == content_digests(dataset, cache=tmp_path, threads=1)


def test_no_room(files, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError) as error:
        content_digests(files([b"one"])[0], cache=tmp_path / "cache", threads=1)
    (folder,) = (tmp_path / "cache").iterdir()
    assert error.value.message.startswith(f"{folder}/")
    assert error.value.message.endswith(".json: no room left for the digests of the images")
    assert error.value.hint == "free some space, or clear the cache"
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError) as error:
        content_digests(files([b"one"])[0], cache=tmp_path / "cache", threads=1)
    assert error.value.message.startswith(f"{tmp_path}/cache/digests/")
    assert error.value.message.endswith(".json: can't be written: not a directory")


def test_threads_do_not_mix_rows_up(files):
    contents = [str(number).encode() for number in range(200)]
    dataset, _ = files(contents)
    assert content_digests(dataset, cache=None, threads=8) == [blake2b(raw, digest_size=16).hexdigest() for raw in contents]


def test_listing(in_memory):
    dataset = in_memory([b"", b"", b""])
    same = in_memory([b"x", b"y", b"z"])
    assert listing_digest(dataset) == listing_digest(same)
    assert len(listing_digest(dataset)) == 32
    others = [
        replace(dataset, classes=("a", "c")),
        replace(dataset, keys=("0", "1", "x")),
        replace(dataset, labels=np.array([0, 1, 1])),
        replace(dataset, splits=np.array(["", "", "val"])),
    ]
    assert len({listing_digest(each) for each in [dataset, *others]}) == 5
